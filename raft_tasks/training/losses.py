"""The losses of RAFT (Eqs. 6-10), stateless: tensors and numbers in, values per token out.

Axes: B sequences, L positions of a padded sequence, T positions in one flat list, V vocabulary, K kept tokens,
H hidden size. `logits` are unnormalised and untempered. Every mean of the project is `masked_mean`.

Two ways to the same values. The plain functions take logits [T, V]. The lean ones (`lean_*`) take hidden states
[T, H] and the output head, and walk over tiles of positions, so that no [T, V] tensor outlives its tile, neither for
the teacher nor for the student, neither forward nor backward. That is possible because on the renormalised top-K set
the full-vocabulary normaliser cancels: p~ = softmax(v[K_t] / T).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_ELEMENTS = 2**26  # logits of one tile (256 MB in float32): the head is read from memory once per tile
CACHE_ELEMENTS = 2**18  # logits that a CPU core keeps in its cache (1 MB in float32)
FEW = 32  # a CPU multiplies a row of the head that it fetches for one position about so much slower than in a product


# --- means ------------------------------------------------------------------------------------------------------------


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None, count: int | None = None) -> Tensor:
    """Mean of `values` where `mask` is true.

    Args:
        values: any shape.
        mask: bool, same shape.
        dim: the axis to average over; None averages over everything.
        count: divide by this instead of the number of true entries: the whole's number, when `values` is a part
            of it (one micro-batch of an optimiser step) and the parts' results are to be added.

    Raises:
        ValueError: if nothing is left to average: the zero that would come out looks like success.
    """
    if mask.shape != values.shape:
        raise ValueError(f"mask has shape {list(mask.shape)}, values have {list(values.shape)}; expected equal shapes")
    number = mask.sum() if dim is None else mask.sum(dim)
    if not bool((number > 0).all()):
        raise ValueError("a mean over no token: every position is masked; check the lengths of the answers")
    kept = torch.where(mask, values, values.new_zeros(()))  # not values * mask: a masked inf must not become nan
    total = kept.sum() if dim is None else kept.sum(dim)
    return total / (number if count is None else count)


def trajectory_loss(per_token: Tensor, mask: Tensor, temperature: float, samples: int | None = None) -> Tensor:
    """L_KL of Eq. 10: T^2 x mean over samples of the mean over positions.

    Args:
        per_token: [B, L] KL of each sampled position.
        mask: [B, L] bool, true at the positions that a sample has.
        temperature: T of Eq. 8; the factor T^2 keeps gradients comparable across temperatures.
        samples: number of samples of the whole optimiser step, when these B are a part of it.
    """
    of_samples = masked_mean(per_token, mask, dim=-1)
    return temperature**2 * masked_mean(of_samples, torch.ones_like(of_samples, dtype=torch.bool), count=samples)


# --- from logits ------------------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p(label): logits [T, V], labels [T] -> [T], in at least float32."""
    return F.cross_entropy(logits.to(wide(logits.dtype)), labels, reduction="none")


def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """K_t of Eq. 9: the k most likely tokens of each position. logits [T, V] -> ids [T, K], logits [T, K]."""
    vocabulary = logits.shape[-1]
    if k > vocabulary:
        raise ValueError(f"top_k {k} exceeds the vocabulary of {vocabulary}; lower distillation.top_k")
    group = math.isqrt(vocabulary // k)
    if group < 4:
        values, ids = logits.topk(k)
        return ids, values
    # The k largest lie in the k groups with the largest maxima (and in what is left over): most tokens are never sorted
    groups = vocabulary // group
    grouped, rest = logits[:, : groups * group].unflatten(-1, (group, groups)), range(groups * group, vocabulary)
    best = grouped.amax(1).topk(k, sorted=False).indices
    members = torch.arange(group, device=logits.device)[:, None] * groups
    candidates = (best[:, None, :] + members).flatten(1)
    if rest:
        left_over = torch.arange(rest.start, rest.stop, device=logits.device)
        candidates = torch.cat([candidates, left_over.expand(len(logits), -1)], dim=-1)
    values, at = logits.gather(-1, candidates).topk(k)
    return candidates.gather(-1, at), values


def log_mass_outside(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Unnormalised log mass outside K_t: logsumexp of logits / temperature over V less `ids`. -> [T]; -inf if K = V."""
    outside = logits.scatter(-1, ids, float("-inf"))
    return (outside / temperature).logsumexp(-1)


def top_k_forward_kl(
    student_logits_at_ids: Tensor,
    teacher_logits_at_ids: Tensor,
    temperature: float,
    tail: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """KL(q~ || p~) of Eqs. 8-10 at each position, without the factor T^2.

    q~ and p~ are teacher and student at temperature T, restricted to the teacher's K_t and renormalised. Both lists
    of logits stand at the same ids; a constant added to one side's logits changes nothing, so no normaliser is needed.

    Args:
        student_logits_at_ids: [T, K].
        teacher_logits_at_ids: [T, K].
        temperature: T of Eq. 8.
        tail: (student's, teacher's) `log_mass_outside` [T], each at `temperature`. With it the distributions have a
            (K+1)st class that holds everything outside K_t: the renormalised form is blind to what the student
            puts there.

    Returns:
        [T], >= 0 up to rounding. It is not clamped: a clamp would kill the gradient.
    """
    if student_logits_at_ids.shape != teacher_logits_at_ids.shape:
        raise ValueError(
            f"student's logits have shape {list(student_logits_at_ids.shape)}, teacher's "
            f"{list(teacher_logits_at_ids.shape)}; expected both at the teacher's ids, [T, K]"
        )
    student = student_logits_at_ids.to(wide(student_logits_at_ids.dtype)) / temperature
    teacher = teacher_logits_at_ids.to(wide(teacher_logits_at_ids.dtype)) / temperature
    if tail is not None:
        student_tail, teacher_tail = (side.to(student.dtype).unsqueeze(-1) for side in tail)
        if bool(teacher_tail.isneginf().any()):
            raise ValueError(
                "K_t is the whole vocabulary: there is no tail; lower distillation.top_k or drop the tail bucket"
            )
        student = torch.cat([student, student_tail], dim=-1)
        teacher = torch.cat([teacher, teacher_tail], dim=-1)
    log_p = student.log_softmax(-1)
    log_q = teacher.log_softmax(-1)
    return (log_q.exp() * (log_q - log_p)).sum(-1)


# --- from hidden states, tile by tile ---------------------------------------------------------------------------------


class Head(NamedTuple):
    """logits = cap(scale * (hidden @ weight.T + bias)), where cap(x) = soft_cap * tanh(x / soft_cap)."""

    weight: Tensor  # [V, H]; may be the input embedding too (tied)
    bias: Tensor | None = None  # [V]
    scale: float = 1.0
    soft_cap: float | None = None


class TopK(NamedTuple):
    """What is kept of T positions."""

    ids: Tensor  # [T, K] int32
    logits: Tensor  # [T, K], float32 or wider
    log_mass: Tensor  # [T], of a student perhaps fewer: log probability of the kept ids, temperature 1; no gradient
    tail: Tensor | None  # [T] `log_mass_outside` at the tail's temperature, if asked for


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to accumulate in: float32 for the half types, else the type itself."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def head_logits(hidden: Tensor, head: Head, out: Tensor | None = None) -> Tensor:
    """Logits [T, V] of hidden [T, H], multiplied in the dtype of `hidden`, in at least float32 from there on.

    `out` [T, V], of that dtype or (on a GPU) of the wider one, may be overwritten; no gradient then.
    """
    weight = head.weight.to(hidden.dtype).T
    if out is None or out.dtype == hidden.dtype:
        product = torch.mm(hidden, weight, out=out)
    else:  # a GPU need not round its float32 sums on the way out
        product = torch.mm(hidden, weight, out_dtype=out.dtype, out=out)
    return finished(product, head.bias, head)


def finished(product: Tensor, bias: Tensor | None, head: Head) -> Tensor:
    """hidden @ weight.T -> logits, in at least float32. `bias` has the last axis of `product`, or its shape."""
    logits = product.to(wide(product.dtype))
    if bias is not None:
        logits = logits + bias
    if head.scale != 1.0:
        logits = logits * head.scale
    if head.soft_cap is not None:
        logits = head.soft_cap * torch.tanh(logits / head.soft_cap)
    return logits


def lean_top_k(
    hidden: Tensor, head: Head, k: int, tail_temperature: float | None = None, tile: int | None = None
) -> TopK:
    """The teacher's side of Eq. 9 without [T, V]: hidden [T, H] -> its k most likely tokens per position. No gradient.

    Args:
        hidden: [T, H].
        head: the teacher's.
        k: K.
        tail_temperature: also return the tail at this temperature.
        tile: positions per tile; by default as many as TILE_ELEMENTS allows.
    """
    parts = []
    with torch.no_grad():
        for _, logits in tiles(hidden, head, tile):
            ids, kept = top_k(logits, k)
            outside = None if tail_temperature is None else log_mass_outside(logits, ids, tail_temperature)
            parts.append(TopK(ids.int(), kept, kept.logsumexp(-1) - log_sum_exp(logits), outside))
    return joined(parts)


def lean_logits_at(
    hidden: Tensor,
    head: Head,
    ids: Tensor,
    tail_temperature: float | None = None,
    mass_every: int = 1,
    tile: int | None = None,
) -> TopK:
    """The student's side of Eq. 9 without [T, V]: hidden [T, H] -> its logits at the teacher's ids [T, K].

    The gradient of `logits` (and of `tail`) reaches `hidden` and, where they require it, the head's weight and bias.
    Only K rows of the head enter it, so the backward pass has no product with the whole vocabulary (the tail's has).
    Neither has the forward pass, as far as the mass, which takes no part in the loss, is not asked for.

    Args:
        hidden: [T, H].
        head: the student's.
        ids: [T, K], the teacher's.
        tail_temperature: also return the tail at this temperature.
        mass_every: where K rows of the head are enough for the loss, `log_mass` just at every so many positions, the
            first included; elsewhere at all, where it costs next to nothing.
        tile: positions per tile; by default as many as TILE_ELEMENTS allows.
    """
    kept, log_mass, outside = _LogitsAt.apply(
        hidden, head.weight, head.bias, ids, head.scale, head.soft_cap, tail_temperature, mass_every, tile
    )
    return TopK(ids, kept, log_mass, None if tail_temperature is None else outside)


def lean_mean_cross_entropy(
    hidden: Tensor,
    head: Head,
    labels: Tensor,
    count: int,
    weigh: Callable[[Tensor, Tensor], Tensor] | None = None,
    tile: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of weight x `cross_entropy` over the positions, divided by `count`, without [T, V].

    As the factor of each token is known in the forward pass, the gradient is made there, from the tile at hand: the
    backward pass need not compute the logits anew.

    Args:
        hidden: [T, H].
        head: the student's.
        labels: [T].
        count: tokens of the whole optimiser step, of which these may be a part.
        weigh: the tokens' weights [t], constants to the gradient, from their cross-entropy [t] and logits [t, V];
            by default 1.
        tile: positions per tile; by default as many as TILE_ELEMENTS allows.

    Returns:
        The scalar with the gradient, once; and the unweighted cross-entropy [T] without one.
    """
    return _MeanCrossEntropy.apply(
        hidden, head.weight, head.bias, labels, head.scale, head.soft_cap, count, weigh, tile, torch.is_grad_enabled()
    )


def tiles(hidden: Tensor, head: Head, tile: int | None) -> Iterator[tuple[slice, Tensor]]:
    """Tile by tile, the positions and their logits [t, V]. The next tile overwrites them; outside autograd only."""
    vocabulary = len(head.weight)
    head = head._replace(weight=head.weight.detach().to(hidden.dtype))
    size = min(tile or max(1, TILE_ELEMENTS // vocabulary), len(hidden))
    buffer = hidden.new_empty(size, vocabulary, dtype=wide(hidden.dtype) if hidden.is_cuda else hidden.dtype)
    for start in range(0, len(hidden), size):
        rows = slice(start, min(start + size, len(hidden)))
        yield rows, head_logits(hidden[rows].detach(), head, out=buffer[: rows.stop - start])


def few_logits(hidden: Tensor, head: Head, ids: Tensor) -> Tensor:
    """`head_logits` at `ids` [T, K] alone, from those rows of the head. No gradient."""
    weight, dtype = head.weight.detach(), wide(hidden.dtype)
    product = torch.empty(ids.shape, dtype=dtype, device=hidden.device)
    kept = weight.new_empty(ids.shape[-1], weight.shape[-1])  # one position's: it stays in the CPU's cache
    for at, state, out in zip(ids.long(), hidden.detach().to(dtype), product, strict=True):
        torch.index_select(weight, 0, at, out=kept)
        torch.mv(kept.to(hidden.dtype).to(dtype), state, out=out)
    bias = None if head.bias is None else head.bias.detach()[ids.long()]
    return finished(product.to(hidden.dtype), bias, head)


def reads_few(hidden: Tensor, head: Head, ids: Tensor) -> bool:
    """Whether `few_logits` beats the product with the whole head: by far on a CPU with K << V; unmeasured on a GPU."""
    return not hidden.is_cuda and ids.shape[-1] * FEW <= len(head.weight)


def in_cache(logits: Tensor) -> list[slice]:
    """Rows to work on together: several passes over them then cost one pass over the memory. On a GPU, all rows."""
    size = len(logits) if logits.is_cuda else max(1, CACHE_ELEMENTS // logits.shape[-1])
    return [slice(start, start + size) for start in range(0, len(logits), size)]


def joined(parts: list[TopK]) -> TopK:
    """The tiles' results in one."""
    ids, logits, log_mass, tail = zip(*parts, strict=True)
    return TopK(torch.cat(ids), torch.cat(logits), torch.cat(log_mass), None if tail[0] is None else torch.cat(tail))


def log_sum_exp(logits: Tensor) -> Tensor:
    """logsumexp over the last axis of [t, V]."""
    return torch.cat([logits[near].logsumexp(-1) for near in in_cache(logits)])


def through_cap(grad: Tensor, logits: Tensor, scale: float, soft_cap: float | None) -> Tensor:
    """Gradient of the logits -> gradient of hidden @ weight.T + bias, for the head's scale and soft cap."""
    if soft_cap is not None:
        grad = grad * (1 - (logits / soft_cap) ** 2)
    return grad if scale == 1.0 else grad * scale


def cross_entropy_gradient(
    logits: Tensor, labels: Tensor, normaliser: Tensor, factor: Tensor, scale: float, soft_cap: float | None
) -> Tensor:
    """Gradient [t, V] of sum(factor x cross-entropy) at hidden @ weight.T + bias; overwrites `logits` where it can."""
    grad = logits if soft_cap is None else logits.clone()  # the cap's derivative needs the logits
    shift, upstream = normaliser[:, None], factor[:, None]
    for near in in_cache(grad):
        grad[near].sub_(shift[near]).exp_().mul_(upstream[near])  # the probabilities, weighted
    grad.scatter_add_(-1, labels[:, None], -upstream)
    return through_cap(grad, logits, scale, soft_cap)


class _HeadGradients:
    """Sums the gradients of one head over tiles, in at least float32."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: tuple[bool, ...]) -> None:
        self.source, self.weight = hidden.detach(), weight.detach().to(hidden.dtype)
        self.like, self.needs = (weight.detach(), bias), needs
        self.hidden = torch.zeros_like(self.source) if needs[0] else None
        self.of_weight: Tensor | None = None
        self.of_bias = torch.zeros_like(bias, dtype=wide(bias.dtype)) if bias is not None and needs[2] else None

    def add(self, rows: slice, grad: Tensor) -> None:
        """grad [t, V] of hidden @ weight.T + bias at positions `rows`."""
        if self.of_bias is not None:
            self.of_bias += grad.sum(0)
        grad, source = grad.to(self.weight.dtype), self.source[rows]
        if self.hidden is not None:
            self.hidden[rows] = grad @ self.weight
        if not self.needs[1]:
            return
        dtype = wide(self.like[0].dtype)
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
        weight = self.like[0].to(wide(self.like[0].dtype)) if self.needs[1] else self.weight
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
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        scale: float,
        soft_cap: float | None,
        tail_temperature: float | None,
        mass_every: int,
        tile: int | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        head = Head(weight, bias, scale, soft_cap)
        outside = None
        if mass_every > 1 and tail_temperature is None and reads_few(hidden, head, ids):
            kept = few_logits(hidden, head, ids)
            normalisers = [log_sum_exp(logits) for _, logits in tiles(hidden[::mass_every], head, tile)]
            log_mass = kept[::mass_every].logsumexp(-1) - torch.cat(normalisers)
        else:
            parts = []
            for rows, logits in tiles(hidden, head, tile):
                at = ids[rows].long()
                near = logits.gather(-1, at)
                tail = None if tail_temperature is None else log_mass_outside(logits, at, tail_temperature)
                parts.append(TopK(at, near, near.logsumexp(-1) - log_sum_exp(logits), tail))
            _, kept, log_mass, outside = joined(parts)
        ctx.save_for_backward(hidden, weight, bias, ids, kept, outside)
        ctx.settings = (scale, soft_cap, tail_temperature, tile)
        ctx.mark_non_differentiable(log_mass)
        return kept, log_mass, outside

    @staticmethod
    def backward(ctx: Any, grad_kept: Tensor, _: Tensor, grad_outside: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, kept, outside = ctx.saved_tensors
        scale, soft_cap, temperature, tile = ctx.settings
        gradients = _HeadGradients(hidden, weight, bias, ctx.needs_input_grad[:3])
        if temperature is not None and grad_outside is not None:
            head = Head(weight, bias, scale, soft_cap)
            for rows, logits in tiles(hidden, head, tile):
                # d log_mass_outside / d logit = softmax over what is outside / temperature; none at K = V
                share = (logits / temperature - outside[rows, None]).exp_().scatter_(-1, ids[rows].long(), 0.0)
                grad = share * (grad_outside[rows, None] / temperature)
                gradients.add(rows, through_cap(grad, logits, scale, soft_cap))
        gradients.add_at(ids.long(), through_cap(grad_kept, kept, scale, soft_cap))
        return (*gradients.result(), None, None, None, None, None, None)


class _MeanCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        scale: float,
        soft_cap: float | None,
        count: int,
        weigh: Callable[[Tensor, Tensor], Tensor] | None,
        tile: int | None,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        gradients = _HeadGradients(hidden, weight, bias, ctx.needs_input_grad[:3])
        losses, shares = [], []
        for rows, logits in tiles(hidden, Head(weight, bias, scale, soft_cap), tile):
            normaliser = log_sum_exp(logits)
            loss = normaliser - logits.gather(-1, labels[rows, None]).squeeze(-1)
            factor = (torch.ones_like(loss) if weigh is None else weigh(loss, logits)) / count
            losses.append(loss)
            shares.append(factor * loss)
            if with_gradient:
                gradients.add(rows, cross_entropy_gradient(logits, labels[rows], normaliser, factor, scale, soft_cap))
        ctx.gradients = gradients.result() if with_gradient else None
        each = torch.cat(losses)
        ctx.mark_non_differentiable(each)
        return torch.cat(shares).sum(), each

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradient of lean_mean_cross_entropy can be taken once: it is not kept")
        if upstream.item() != 1.0:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(upstream)
        return (*gradients, None, None, None, None, None, None, None)
