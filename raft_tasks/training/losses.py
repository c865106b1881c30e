"""The losses of RAFT (Eqs. 6-10), stateless: tensors and numbers in, values per token out.

Axes: B sequences, L positions of a padded sequence, T positions in one flat list, V vocabulary, K kept tokens,
H hidden size. `logits` are unnormalised and untempered. Every mean of the project is `masked_mean`.

Two ways to the same values. The plain functions take logits [T, V]. The chunked ones (`chunked_*`) take hidden states
[T, H] and the output head, and walk over tiles of positions, so that no [T, V] tensor outlives its tile. That is
possible because on the renormalised top-K set the full-vocabulary normaliser cancels: p~ = softmax(v[K_t] / T).
"""

import torch
from torch import Tensor

from raft_tasks.training.chunked_losses import chunked_logits_at, chunked_mean_cross_entropy, chunked_top_k
from raft_tasks.training.logits import Head, TopK, accumulation_dtype, head_logits, log_mass_outside, top_k

__all__ = [
    "Head", "TopK", "chunked_logits_at", "chunked_mean_cross_entropy", "chunked_top_k", "head_logits",
    "log_mass_outside", "masked_mean", "top_k", "top_k_forward_kl", "trajectory_loss",
]  # fmt: skip


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None, count: int | None = None) -> Tensor:
    """Mean of `values` where `mask` (bool, same shape) is true, over the axis `dim` or everything.

    `count` divides instead of the number of true entries: the whole's number, when `values` is a part of it (one
    micro-batch of an optimiser step) and the parts' results are to be added.

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

    per_token [B, L], mask [B, L] true at the positions that a sample has. The factor T^2 keeps gradients comparable
    across temperatures. `samples`: of the whole optimiser step, when these B are a part of it.
    """
    per_sample = masked_mean(per_token, mask, dim=-1)
    return temperature**2 * masked_mean(per_sample, torch.ones_like(per_sample, dtype=torch.bool), count=samples)


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
        tail: (student's, teacher's) `log_mass_outside` [T], each at `temperature`: a (K+1)st class that holds
            everything outside K_t, to which the renormalised form is blind.

    Returns:
        [T], >= 0 up to rounding. It is not clamped: a clamp would kill the gradient.
    """
    if student_logits_at_ids.shape != teacher_logits_at_ids.shape:
        raise ValueError(
            f"student's logits have shape {list(student_logits_at_ids.shape)}, teacher's "
            f"{list(teacher_logits_at_ids.shape)}; expected both at the teacher's ids, [T, K]"
        )
    student, teacher = (
        logits.to(accumulation_dtype(logits.dtype)) / temperature
        for logits in (student_logits_at_ids, teacher_logits_at_ids)
    )
    if tail is not None:
        student_tail, teacher_tail = (side.to(student.dtype).unsqueeze(-1) for side in tail)
        if bool(teacher_tail.isneginf().any()):
            raise ValueError(
                "K_t is the whole vocabulary: there is no tail; lower distillation.top_k or drop the tail bucket"
            )
        student = torch.cat([student, student_tail], dim=-1)
        teacher = torch.cat([teacher, teacher_tail], dim=-1)
    log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
    return (log_q.exp() * (log_q - log_p)).sum(-1)
