"""Trajectories z ~ p_student(. | x) of the current student (Eq. 6)."""

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
    """Anything that samples from the student as it is now; equal weights, prompts and seed give equal rollouts."""

    def __call__(self, prompts: list[list[int]], seed: int) -> list[Rollout]:
        """One rollout per prompt, in the prompts' order."""
        ...


def step_seed(seed: int, step: int) -> int:
    """The seed of one optimiser step's rollouts. No generator state has to survive: a resumed step draws the same."""
    return int.from_bytes(hashlib.sha256(f"rollouts/{seed}/{step}".encode()).digest()[:8], "big") >> 1


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

        self.model, self.precision = model, precision
        self.stop_ids = set(stop_ids)
        self.config = GenerationConfig(
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(stop_ids),
            pad_token_id=min(stop_ids),  # what is behind the stop token is cut off by position, not by id
            use_cache=True,
        )
        self.neutral = GenerationConfig()

    def __call__(self, prompts: list[list[int]], seed: int) -> list[Rollout]:
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
            devices = [device] if device.type == "cuda" else []
            with torch.no_grad(), torch.random.fork_rng(devices), self.precision():
                torch.manual_seed(seed)
                output: torch.Tensor = self.model.generate(  # type: ignore[operator]  # it is a method
                    ids, attention_mask=mask, generation_config=self.config
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
