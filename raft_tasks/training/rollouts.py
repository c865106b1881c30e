"""Trajectories z ~ p_student(. | x) of the current student (Eq. 6): what a rollout is, and what samples one.

Samplers: transformers_rollouts.py, vllm_rollouts.py.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rollout:
    """One sampled answer. It always has at least one token, so every sample has a position to learn from."""

    tokens: list[int]  # the stop token included, if it was sampled
    truncated: bool  # the length bound came before a stop token
    log_probs: list[float]  # of each token as the sampler drew it, at the sampling temperature

    @property
    def empty(self) -> bool:
        """The student ended its turn at once; what remains is that decision."""
        return len(self.tokens) == 1 and not self.truncated


@dataclass(frozen=True)
class RolloutSampling:
    """How rollouts are sampled: from the student's whole distribution, at a temperature, up to a stop token."""

    stop_ids: list[int]
    temperature: float  # 1 is the student's own distribution
    max_new_tokens: int

    def rollout(self, tokens: list[int], log_probs: list[float]) -> Rollout:
        """Everything up to and with the first stop token."""
        for length, token in enumerate(tokens, start=1):
            if token in self.stop_ids:
                return Rollout(tokens[:length], truncated=False, log_probs=log_probs[:length])
        return Rollout(tokens, truncated=True, log_probs=log_probs)


# From prompts, each with a seed, to a rollout each, in their order, by the student as it is now; equal weights, prompts
# and seeds give equal rollouts.
Sampler = Callable[[list[list[int]], list[int]], list[Rollout]]
