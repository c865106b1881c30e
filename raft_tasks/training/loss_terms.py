"""The terms of L, each of one micro-batch in one forward pass, as its part of the whole optimiser step's mean.

L_SFT, L_replay    mean over the step's answer tokens of weight x cross-entropy
L_KL               T^2 x mean over the step's rollouts of the mean over positions of KL(teacher || student) (Eq. 10)
L_anchor           mean over the step's anchor positions of KL(base || student), or of the cross-entropy
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from raft_tasks.config import Distillation
from raft_tasks.training.anchor_logits import AnchorBatches
from raft_tasks.training.completion_forward import CompletionForward, completion_mask
from raft_tasks.training.conversations import Encoded
from raft_tasks.training.losses import (
    Head,
    TopK,
    chunked_logits_at,
    chunked_mean_cross_entropy,
    chunked_top_k,
    top_k_forward_kl,
    trajectory_loss,
)
from raft_tasks.training.probe import base_top_k, kl_to_base, token_log_probs
from raft_tasks.training.rollouts import Rollout
from raft_tasks.training.teacher import Teacher
from raft_tasks.training.token_weights import TokenWeights

ResultT = TypeVar("ResultT")

MASS_EVERY = 7  # where the student's mass in the top K costs a product with the head: a prime, so all phases are met


class Sampled(NamedTuple):
    """Rows of one micro-batch with their rollouts."""

    rows: list[Encoded]
    rollouts: list[Rollout]

    @property
    def prompts(self) -> list[list[int]]:
        return [row.prompt_ids for row in self.rows]

    @property
    def tokens(self) -> list[list[int]]:
        return [rollout.tokens for rollout in self.rollouts]


def base_kl(hidden: Tensor, head: Head, base: TopK, count: int) -> Tensor:
    """Sum over positions of KL(base || student) on the base's top K, temperature 1, divided by `count`."""
    student = chunked_logits_at(hidden, head, base.ids, mass_every=len(hidden))
    return top_k_forward_kl(student.logits, base.logits, temperature=1.0).sum() / count


def token_losses(hidden: Tensor, head: Head, labels: Tensor) -> Tensor:
    """Cross-entropy at each position."""
    return chunked_mean_cross_entropy(hidden, head, labels, 1)[1]


class LossTerms:
    """Forward passes of student and teacher; `model` is the student as it is wrapped for training.

    Within `autocast`, and with hidden states of `dtype`, they have the training's precision.
    """

    def __init__(
        self,
        distillation: Distillation | None,
        teacher: Teacher | None,
        device: torch.device,
        dtype: torch.dtype | None,
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        self._distillation, self.teacher = distillation, teacher
        self.device, self.dtype, self.autocast = device, dtype, autocast

    @property
    def distillation(self) -> Distillation:
        assert self._distillation is not None  # the callers have checked
        return self._distillation

    def forward_completions(
        self, model: Any, prompts: list[list[int]], completions: list[list[int]], head_fn: Callable[..., ResultT]
    ) -> ResultT:
        """What `head_fn` computes from hidden states and head, of one forward pass."""
        with self.autocast():
            result: ResultT = model(completion_forward=CompletionForward(prompts, completions, head_fn, self.dtype))
        return result

    @torch.no_grad()
    def forward_teacher(
        self, model: Any, prompts: list[list[int]], completions: list[list[int]], head_fn: Callable[..., TopK]
    ) -> TopK:
        """`forward_completions` of the teacher; the result is moved to the student's device."""
        assert self.teacher is not None  # the caller has checked
        top_k = self.forward_completions(partial(self.teacher, model), prompts, completions, head_fn)
        return TopK(*(None if tensor is None else tensor.to(self.device) for tensor in top_k))  # type: ignore[arg-type]

    def answers(
        self, model: Any, rows: list[Encoded], count: int, token_weights: TokenWeights | None, base: TopK | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Cross-entropy of the answers, weighted and (no gradient) not; `count` answer tokens are in the step.

        With the `base`'s top K at these tokens also the mean KL(base || student) there (ASFT, arXiv:2509.23753).
        """
        answers = [row.completion_ids for row in rows]
        labels = self.labels(answers)

        def head_fn(hidden: Tensor, head: Head) -> tuple[Tensor, Tensor, Tensor | None]:
            loss, per_token = chunked_mean_cross_entropy(hidden, head, labels, count, token_weights)
            return loss, per_token.sum() / count, None if base is None else base_kl(hidden, head, base, count)

        return self.forward_completions(model, [row.prompt_ids for row in rows], answers, head_fn)

    @torch.no_grad()
    def row_losses(self, model: Any, batches: list[tuple[list[Encoded], bool]]) -> list[float]:
        """Mean cross-entropy of each row's answer; batches that do not count go through the model all the same."""
        result = []
        for rows, counts in batches:
            answers = [row.completion_ids for row in rows]
            head_fn = partial(token_losses, labels=self.labels(answers))
            per_token = self.forward_completions(model, [row.prompt_ids for row in rows], answers, head_fn)
            if counts:
                result += [losses.mean().item() for losses in per_token.split([*map(len, answers)])]
        return result

    def anchor(self, model: Any, anchors: AnchorBatches, numbers: list[int], count: int) -> Tensor:
        """L_anchor of the anchors `numbers`; `count` answer positions are in the step."""
        rows = [anchors.rows[number] for number in numbers]
        prompts, answers = [row.prompt_ids for row in rows], [row.completion_ids for row in rows]
        if anchors.loss == "ce":
            return self.answers(model, rows, count, None)[0]
        if anchors.stored is not None:
            base = anchors.stored.top_k_at(numbers, self.device)
        else:
            base = self.forward_teacher(model, prompts, answers, partial(chunked_top_k, k=self.distillation.top_k))
        return self.forward_completions(model, prompts, answers, partial(base_kl, base=base, count=count))

    def teacher_top_k(self, model: Any, batch: Sampled) -> TopK:
        """The teacher's top K at the positions of the rollouts (Eqs. 7-9)."""
        head_fn = partial(chunked_top_k, k=self.distillation.top_k, tail_temperature=self.tail_temperature)
        prompts = [row.teacher_prompt_ids or [] for row in batch.rows]
        return self.forward_teacher(model, prompts, batch.tokens, head_fn)

    def kl(
        self, model: Any, batch: Sampled, teacher: TopK, samples: int, positions: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """L_KL (Eqs. 8-10), student's and teacher's mean mass in the top K; the step has `samples` and `positions`."""
        temperature, tokens = self.distillation.temperature, batch.tokens

        def head_fn(hidden: Tensor, head: Head) -> tuple[Tensor, Tensor, Tensor]:
            student = chunked_logits_at(hidden, head, teacher.ids, self.tail_temperature, MASS_EVERY)
            tail = None if student.tail is None or teacher.tail is None else (student.tail, teacher.tail)
            flat = top_k_forward_kl(student.logits, teacher.logits, temperature, tail)
            mask = completion_mask(tokens).to(flat.device)
            per_token = torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)
            loss = trajectory_loss(per_token, mask, temperature, samples)
            masses = [side.log_mass.exp().mean() * (len(flat) / positions) for side in (student, teacher)]
            return loss, masses[0], masses[1]

        return self.forward_completions(model, batch.prompts, tokens, head_fn)

    @torch.no_grad()
    def probe(
        self, model: Any, batch: Sampled, phase: Callable[[str], AbstractContextManager]
    ) -> tuple[float, float, int]:
        """Sums over the rollouts' tokens: KL(base || student), |log p by the sampler - by the trainer|, 1.

        `phase` times teacher and student.
        """
        settings, tokens = self.distillation, self.labels(batch.tokens)
        with phase("teacher"):
            base = self.forward_teacher(model, batch.prompts, batch.tokens, partial(base_top_k, k=settings.top_k))

        def head_fn(hidden: Tensor, head: Head) -> tuple[Tensor, Tensor]:
            log_probs = token_log_probs(hidden, head, tokens, settings.rollout_temperature)
            return kl_to_base(hidden, head, base), log_probs

        with phase("student"):
            kl, log_probs = self.forward_completions(model, batch.prompts, batch.tokens, head_fn)
        sampled = torch.tensor([p for rollout in batch.rollouts for p in rollout.log_probs], device=log_probs.device)
        return kl.sum().item(), (log_probs - sampled).abs().sum().item(), len(tokens)

    @property
    def tail_temperature(self) -> float | None:
        return self.distillation.temperature if self.distillation.tail_bucket else None

    def labels(self, completions: list[list[int]]) -> Tensor:
        return torch.tensor([token for tokens in completions for token in tokens], device=self.device)
