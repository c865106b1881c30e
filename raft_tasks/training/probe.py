"""Measured now and then beside the losses: the student's KL to the base, and whether rollouts are the student's own."""

import torch
from torch import Tensor

from raft_tasks.training.losses import Head, TopK, chunked_logits_at, chunked_top_k, top_k_forward_kl


def base_top_k(hidden: Tensor, head: Head, k: int) -> TopK:
    """The base's side of `kl_to_base`: hidden [T, H] -> its k most likely tokens and the mass outside."""
    return chunked_top_k(hidden, head, k, 1.0 if k < len(head.weight) else None)


def kl_to_base(hidden: Tensor, head: Head, base: TopK) -> Tensor:
    """KL(base || student) [T] at temperature 1, the base seeing what the student sees, not the answer.

    Over the base's top K tokens and one class that holds all others: never more than over the whole vocabulary, and
    close to it as the top K hold nearly all of the base's mass.
    """
    student = chunked_logits_at(hidden, head, base.ids, None if base.tail is None else 1.0)
    tail = None if student.tail is None or base.tail is None else (student.tail, base.tail)
    return top_k_forward_kl(student.logits, base.logits, 1.0, tail)


def token_log_probs(hidden: Tensor, head: Head, tokens: Tensor, temperature: float) -> Tensor:
    """log p(token) [T] of the sampled `tokens` [T] at the sampling temperature."""
    at = chunked_logits_at(hidden, head, tokens[:, None].int(), temperature)
    assert at.tail is not None  # it was asked for
    logits = at.logits[:, 0] / temperature
    return logits - torch.logaddexp(logits, at.tail)
