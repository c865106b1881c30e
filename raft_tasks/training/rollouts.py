"""Trajectories z ~ p_student(. | x) of the current student (Eq. 6).

What a row draws does not depend on the rows beside it: it has a seed of its own. So rollouts are the same whatever
the number of processes, the order of the prompts, or the batches they are sampled in. (Up to floating point: padding
changes the last digits of the logits, which moves a draw that falls within about 1e-6 of the border of two tokens.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Rollout:
    """One sampled answer. It always has at least one token, so every sample has a position to learn from."""

    tokens: list[int]  # the stop token included, if it was sampled
    truncated: bool  # the length bound came before a stop token

    @property
    def empty(self) -> bool:
        """The student ended its turn at once; what remains is that decision."""
        return len(self.tokens) == 1 and not self.truncated


class Sampler(Protocol):
    """Anything that samples from the student as it is now; equal weights, prompts and seeds give equal rollouts."""

    def __call__(self, prompts: list[list[int]], seeds: list[int]) -> list[Rollout]:
        """One rollout per prompt, in the prompts' order, drawn with the prompt's own seed."""
        ...


def rollout_seed(seed: int, step: int, row: str) -> int:
    """The seed of one row's rollout. No generator state has to survive: a resumed step draws the same."""
    return int.from_bytes(hashlib.sha256(f"rollouts/{seed}/{step}/{row}".encode()).digest()[:8], "big") >> 1


class Draws:
    """A logits processor that decides the next token by inverse CDF, and leaves the greedy search just that one.

    Args:
        seeds: one per row; a row's draws depend on its seed alone.
        prompt_length: of the left-padded batch.
        temperature: of the sampling.
        max_new_tokens: draws per row.
        device: of the logits.
    """

    def __init__(
        self, seeds: list[int], prompt_length: int, temperature: float, max_new_tokens: int, device: torch.device
    ) -> None:
        self.prompt_length, self.temperature = prompt_length, temperature
        draws = [torch.rand(max_new_tokens, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        self.draws = torch.stack(draws).to(device)  # made on the CPU: the same for every device

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] -> 0 at the drawn token, -inf elsewhere."""
        mass = (scores.float() / self.temperature).softmax(-1).cumsum(-1)
        whole = mass[:, -1:]
        drawn = self.draws[:, input_ids.shape[1] - self.prompt_length, None] * whole
        drawn = torch.minimum(drawn, whole.nextafter(torch.zeros_like(whole)))  # rounding must not pass the last token
        return torch.full_like(scores, float("-inf")).scatter_(-1, torch.searchsorted(mass, drawn, right=True), 0.0)


class GenerateSampler:
    """Sampling with transformers' `generate`: one left-padded batch, full distribution at a temperature.

    Args:
        model: the student, sampled as it is at the time of the call, in evaluation mode.
        stop_ids: tokens that end a rollout.
        temperature: of the sampling; 1 is the student's own distribution.
        max_new_tokens: bound on the length.
        precision: makes the context to run in (autocast, like the student's own passes).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        stop_ids: list[int],
        temperature: float,
        max_new_tokens: int,
        precision: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        from transformers import GenerationConfig

        self.model, self.temperature, self.precision = model, temperature, precision
        self.stop_ids = set(stop_ids)
        self.config = GenerationConfig(
            do_sample=False,  # `Draws` samples
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(stop_ids),
            pad_token_id=min(stop_ids),  # what is behind the stop token is cut off by position, not by id
            use_cache=True,
        )
        self.neutral = GenerationConfig()

    def __call__(self, prompts: list[list[int]], seeds: list[int]) -> list[Rollout]:
        from transformers import LogitsProcessorList

        longest = max(map(len, prompts))
        device = self.model.device
        pad = self.config.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        # a model's own generation_config (a repetition penalty, top-k) would be mixed in and sample off-policy
        own, self.model.generation_config = self.model.generation_config, self.neutral
        was_training = self.model.training
        self.model.eval()
        try:
            draws = Draws(seeds, longest, self.temperature, self.config.max_new_tokens, device)
            with torch.no_grad(), self.precision():
                output: torch.Tensor = self.model.generate(  # type: ignore[operator]  # it is a method
                    ids,
                    attention_mask=mask,
                    generation_config=self.config,
                    logits_processor=LogitsProcessorList([draws]),
                )
        finally:
            self.model.train(was_training)
            self.model.generation_config = own
        return [self.cut(row) for row in output[:, longest:].tolist()]

    def cut(self, tokens: list[int]) -> Rollout:
        """Everything up to and with the first stop token."""
        for length, token in enumerate(tokens, start=1):
            if token in self.stop_ids:
                return Rollout(tokens[:length], truncated=False)
        return Rollout(tokens, truncated=True)
