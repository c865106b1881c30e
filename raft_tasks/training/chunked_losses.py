"""Losses from hidden states and the output head, tile by tile: no [T, V] tensor outlives its tile, forward or backward.

Axes as in logits.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from raft_tasks.training.logits import (
    Head,
    TopK,
    accumulation_dtype,
    cached_slices,
    few_logits,
    log_mass_outside,
    log_sum_exp,
    reads_few,
    tiles,
    top_k,
)

TokenWeights = Callable[[Tensor, Tensor], Tensor]  # cross-entropy [t], logits [t, V] -> weights [t]


def chunked_top_k(hidden: Tensor, head: Head, k: int, tail_temperature: float | None = None) -> TopK:
    """The teacher's side of Eq. 9: hidden [T, H] -> its k most likely tokens per position. No gradient.

    With `tail_temperature` also the tail there.
    """
    parts = []
    with torch.no_grad():
        for _, logits in tiles(hidden, head):
            ids, kept = top_k(logits, k)
            tail = None if tail_temperature is None else log_mass_outside(logits, ids, tail_temperature)
            parts.append(TopK(ids.int(), kept, kept.logsumexp(-1) - log_sum_exp(logits), tail))
    return _concatenate(parts)


def chunked_logits_at(
    hidden: Tensor, head: Head, ids: Tensor, tail_temperature: float | None = None, mass_every: int = 1
) -> TopK:
    """The student's side of Eq. 9: hidden [T, H] -> its logits at the teacher's ids [T, K].

    The gradient of `logits` (and of `tail`) reaches `hidden` and, where they require it, the head's weight and bias.
    Only K rows of the head enter it, so the backward pass has no product with the whole vocabulary (the tail's has).
    Neither has the forward pass, except for the mass, which takes no part in the loss: where K rows of the head are
    enough for the loss, `log_mass` is computed at every `mass_every`-th position, the first included; elsewhere at all.
    """
    settings = (head.scale, head.soft_cap, tail_temperature, mass_every)
    kept, log_mass, tail = _LogitsAt.apply(hidden, head.weight, head.bias, ids, settings)
    return TopK(ids, kept, log_mass, None if tail_temperature is None else tail)


def chunked_mean_cross_entropy(
    hidden: Tensor, head: Head, labels: Tensor, count: int, token_weights: TokenWeights | None = None
) -> tuple[Tensor, Tensor]:
    """Sum of weight x `cross_entropy` over the positions, divided by `count`.

    The gradient is made in the forward pass, from the tile at hand: the backward pass need not compute logits again.

    Args:
        hidden: [T, H].
        head: the student's.
        labels: [T].
        count: tokens of the whole optimiser step, of which these may be a part.
        token_weights: constants to the gradient; by default 1.

    Returns:
        The scalar with the gradient, once; and the unweighted cross-entropy [T] without one.
    """
    settings = _CrossEntropySettings(head.scale, head.soft_cap, count, token_weights, torch.is_grad_enabled())
    return _MeanCrossEntropy.apply(hidden, head.weight, head.bias, labels, settings)


class _CrossEntropySettings(NamedTuple):
    scale: float
    soft_cap: float | None
    n_answer_tokens: int
    token_weights: TokenWeights | None
    with_gradient: bool


def _concatenate(parts: list[TopK]) -> TopK:
    """The tiles' results in one."""
    ids, logits, log_mass, tail = zip(*parts, strict=True)
    return TopK(torch.cat(ids), torch.cat(logits), torch.cat(log_mass), None if tail[0] is None else torch.cat(tail))


def _through_cap(grad: Tensor, logits: Tensor, scale: float, soft_cap: float | None) -> Tensor:
    """Gradient of the logits -> gradient of hidden @ weight.T + bias, for the head's scale and soft cap."""
    if soft_cap is not None:
        grad = grad * (1 - (logits / soft_cap) ** 2)
    return grad if scale == 1.0 else grad * scale


class _HeadGradients:
    """Sums the gradients of one head over tiles, in at least float32."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: tuple[bool, ...]) -> None:
        self.source, self.weight = hidden.detach(), weight.detach().to(hidden.dtype)
        self.like, self.needs = (weight.detach(), bias), needs
        self.hidden = torch.zeros_like(self.source) if needs[0] else None
        self.of_weight: Tensor | None = None
        self.of_bias: Tensor | None = None
        if bias is not None and needs[2]:
            self.of_bias = torch.zeros_like(bias, dtype=accumulation_dtype(bias.dtype))

    def add(self, rows: slice, grad: Tensor) -> None:
        """grad [t, V] of hidden @ weight.T + bias at positions `rows`."""
        if self.of_bias is not None:
            self.of_bias += grad.sum(0)
        grad, source = grad.to(self.weight.dtype), self.source[rows]
        if self.hidden is not None:
            self.hidden[rows] = grad @ self.weight
        if not self.needs[1]:
            return
        dtype = accumulation_dtype(self.like[0].dtype)
        if self.of_weight is None:
            self.of_weight = (grad.T @ source).to(dtype)
        elif dtype == grad.dtype:
            self.of_weight.addmm_(grad.T, source)
        elif grad.is_cuda and dtype == torch.float32:  # without rounding the product to the half type first
            torch.addmm(self.of_weight, grad.T, source, out_dtype=dtype, out=self.of_weight)
        else:
            self.of_weight += grad.T @ source

    def add_at(self, ids: Tensor, grad: Tensor) -> None:
        """grad [T, K] of the same at `ids` [T, K], all positions at once: a weighted sum of K rows of the head."""
        weight = self.like[0].to(accumulation_dtype(self.like[0].dtype)) if self.needs[1] else self.weight
        weight.requires_grad_(self.needs[1])
        with torch.enable_grad():
            of_hidden = F.embedding_bag(ids, weight, mode="sum", per_sample_weights=grad.to(weight.dtype))
        if self.hidden is not None:
            self.hidden += of_hidden.detach()
        if self.needs[1]:
            of_weight = torch.autograd.grad(of_hidden, weight, self.source.to(weight.dtype))[0]
            self.of_weight = of_weight if self.of_weight is None else self.of_weight.add_(of_weight)
        if self.of_bias is not None:
            self.of_bias.index_add_(0, ids.flatten(), grad.flatten().to(self.of_bias.dtype))

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        weight, bias = self.like
        return (
            self.hidden,
            None if self.of_weight is None else self.of_weight.to(weight.dtype),
            None if self.of_bias is None or bias is None else self.of_bias.to(bias.dtype),
        )


class _LogitsAt(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, settings: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        scale, soft_cap, temperature, mass_every = settings
        head = Head(weight, bias, scale, soft_cap)
        tail = None
        if mass_every > 1 and temperature is None and reads_few(hidden, head, ids):
            kept = few_logits(hidden, head, ids)
            normalisers = [log_sum_exp(logits) for _, logits in tiles(hidden[::mass_every], head)]
            log_mass = kept[::mass_every].logsumexp(-1) - torch.cat(normalisers)
        else:
            parts = []
            for rows, logits in tiles(hidden, head):
                at = ids[rows].long()
                near = logits.gather(-1, at)
                outside = None if temperature is None else log_mass_outside(logits, at, temperature)
                parts.append(TopK(at, near, near.logsumexp(-1) - log_sum_exp(logits), outside))
            _, kept, log_mass, tail = _concatenate(parts)
        ctx.save_for_backward(hidden, weight, bias, ids, kept, tail)
        ctx.settings = settings
        ctx.mark_non_differentiable(log_mass)
        return kept, log_mass, tail

    @staticmethod
    def backward(ctx: Any, grad_kept: Tensor, _: Tensor, grad_tail: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, kept, tail = ctx.saved_tensors
        scale, soft_cap, temperature, _ = ctx.settings
        gradients = _HeadGradients(hidden, weight, bias, ctx.needs_input_grad[:3])
        if temperature is not None and grad_tail is not None:
            for rows, logits in tiles(hidden, Head(weight, bias, scale, soft_cap)):
                # d log_mass_outside / d logit = softmax over what is outside / temperature; none at K = V
                share = (logits / temperature - tail[rows, None]).exp_().scatter_(-1, ids[rows].long(), 0.0)
                grad = share * (grad_tail[rows, None] / temperature)
                gradients.add(rows, _through_cap(grad, logits, scale, soft_cap))
        gradients.add_at(ids.long(), _through_cap(grad_kept, kept, scale, soft_cap))
        return (*gradients.result(), None, None)


class _MeanCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, settings: _CrossEntropySettings
    ) -> tuple[Tensor, Tensor]:
        gradients = _HeadGradients(hidden, weight, bias, ctx.needs_input_grad[:3])
        losses, shares = [], []
        for rows, logits in tiles(hidden, Head(weight, bias, settings.scale, settings.soft_cap)):
            normaliser = log_sum_exp(logits)
            loss = normaliser - logits.gather(-1, labels[rows, None]).squeeze(-1)
            weights = torch.ones_like(loss) if settings.token_weights is None else settings.token_weights(loss, logits)
            factor = weights / settings.n_answer_tokens
            losses.append(loss)
            shares.append(factor * loss)
            if settings.with_gradient:
                gradients.add(rows, _cross_entropy_gradient(logits, labels[rows], normaliser, factor, settings))
        ctx.gradients = gradients.result() if settings.with_gradient else None
        per_token = torch.cat(losses)
        ctx.mark_non_differentiable(per_token)
        return torch.cat(shares).sum(), per_token

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradient of chunked_mean_cross_entropy can be taken once: it is not kept")
        if upstream.item() != 1.0:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(upstream)
        return (*gradients, None, None)


def _cross_entropy_gradient(
    logits: Tensor, labels: Tensor, normaliser: Tensor, factor: Tensor, settings: _CrossEntropySettings
) -> Tensor:
    """Gradient [t, V] of sum(factor x cross-entropy) at hidden @ weight.T + bias; overwrites `logits` where it can."""
    grad = logits if settings.soft_cap is None else logits.clone()  # the cap's derivative needs the logits
    shift, upstream = normaliser[:, None], factor[:, None]
    for rows in cached_slices(grad):
        grad[rows].sub_(shift[rows]).exp_().mul_(upstream[rows])  # the probabilities, weighted
    grad.scatter_add_(-1, labels[:, None], -upstream)
    return _through_cap(grad, logits, settings.scale, settings.soft_cap)
