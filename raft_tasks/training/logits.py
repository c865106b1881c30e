"""Logits of an output head: all of them, tile by tile, or at few tokens; their top K and the mass outside it.

Axes: T positions in one flat list, t positions of a tile, V vocabulary, K kept tokens, H hidden size.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

TILE_ELEMENTS = 2**26  # logits of one tile (256 MB in float32): the head is read from memory once per tile
CACHE_ELEMENTS = 2**18  # logits that a CPU core keeps in its cache (1 MB in float32)
FEW = 32  # a CPU multiplies a row of the head that it fetches for one position about so much slower than in a product


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


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for the half types, else the type itself."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """K_t of Eq. 9: the k most likely tokens of each position. logits [T, V] -> ids [T, K], logits [T, K]."""
    vocabulary = logits.shape[-1]
    if k > vocabulary:
        raise ValueError(f"top_k {k} exceeds the vocabulary of {vocabulary}; lower distillation.top_k")
    group = math.isqrt(vocabulary // k)
    if group < 4:
        values, ids = logits.topk(k)
        return ids, values
    # The k largest lie in the k groups with the largest maxima (and in the remainder): most tokens are never sorted
    groups = vocabulary // group
    grouped, first_left = logits[:, : groups * group].unflatten(-1, (group, groups)), groups * group
    best = grouped.amax(1).topk(k, sorted=False).indices
    members = torch.arange(group, device=logits.device)[:, None] * groups
    candidates = (best[:, None, :] + members).flatten(1)
    if first_left < vocabulary:
        remainder = torch.arange(first_left, vocabulary, device=logits.device)
        candidates = torch.cat([candidates, remainder.expand(len(logits), -1)], dim=-1)
    values, at = logits.gather(-1, candidates).topk(k)
    return candidates.gather(-1, at), values


def log_mass_outside(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Unnormalised log mass outside K_t: logsumexp of logits / temperature over V less `ids`. -> [T]; -inf if K = V."""
    outside = logits.scatter(-1, ids, float("-inf"))
    return (outside / temperature).logsumexp(-1)


def head_logits(hidden: Tensor, head: Head, out: Tensor | None = None) -> Tensor:
    """Logits [T, V] of hidden [T, H], multiplied in the dtype of `hidden`, in at least float32 from there on.

    `out` [T, V], of that dtype or (on a GPU) of the wider one, is overwritten; no gradient then.
    """
    weight = head.weight.to(hidden.dtype).T
    if out is None or out.dtype == hidden.dtype:
        product = torch.mm(hidden, weight, out=out)
    else:  # a GPU need not round its float32 sums on the way out
        product = torch.mm(hidden, weight, out_dtype=out.dtype, out=out)
    return apply_bias_scale_cap(product, head.bias, head)


def apply_bias_scale_cap(product: Tensor, bias: Tensor | None, head: Head) -> Tensor:
    """hidden @ weight.T -> logits, in at least float32. `bias` has the last axis of `product`, or its shape."""
    logits = product.to(accumulation_dtype(product.dtype))
    if bias is not None:
        logits = logits + bias
    if head.scale != 1.0:
        logits = logits * head.scale
    if head.soft_cap is not None:
        logits = head.soft_cap * torch.tanh(logits / head.soft_cap)
    return logits


def tiles(hidden: Tensor, head: Head) -> Iterator[tuple[slice, Tensor]]:
    """Tile by tile, the positions and their logits [t, V]. The next tile overwrites them; outside autograd only."""
    vocabulary = len(head.weight)
    head = head._replace(weight=head.weight.detach().to(hidden.dtype))
    size = min(max(1, TILE_ELEMENTS // vocabulary), len(hidden))
    dtype = accumulation_dtype(hidden.dtype) if hidden.is_cuda else hidden.dtype
    buffer = hidden.new_empty(size, vocabulary, dtype=dtype)
    for start in range(0, len(hidden), size):
        rows = slice(start, min(start + size, len(hidden)))
        yield rows, head_logits(hidden[rows].detach(), head, out=buffer[: rows.stop - start])


def few_logits(hidden: Tensor, head: Head, ids: Tensor) -> Tensor:
    """`head_logits` at `ids` [T, K] alone, from those rows of the head. No gradient."""
    weight, dtype = head.weight.detach(), accumulation_dtype(hidden.dtype)
    product = torch.empty(ids.shape, dtype=dtype, device=hidden.device)
    kept = weight.new_empty(ids.shape[-1], weight.shape[-1])  # one position's: it stays in the CPU's cache
    for at, state, out in zip(ids.long(), hidden.detach().to(dtype), product, strict=True):
        torch.index_select(weight, 0, at, out=kept)
        torch.mv(kept.to(hidden.dtype).to(dtype), state, out=out)
    bias = None if head.bias is None else head.bias.detach()[ids.long()]
    return apply_bias_scale_cap(product.to(hidden.dtype), bias, head)


def reads_few(hidden: Tensor, head: Head, ids: Tensor) -> bool:
    """Whether `few_logits` beats the product with the whole head: by far on a CPU with K << V; unmeasured on a GPU."""
    return not hidden.is_cuda and ids.shape[-1] * FEW <= len(head.weight)


def cached_slices(logits: Tensor) -> list[slice]:
    """Rows to work on together: several passes over them then cost one pass over the memory. On a GPU, all rows."""
    size = len(logits) if logits.is_cuda else max(1, CACHE_ELEMENTS // logits.shape[-1])
    return [slice(start, start + size) for start in range(0, len(logits), size)]


def log_sum_exp(logits: Tensor) -> Tensor:
    """logsumexp over the last axis of [t, V]."""
    return torch.cat([logits[rows].logsumexp(-1) for rows in cached_slices(logits)])
