"""How much each answer token counts in L_SFT: L_SFT = mean over tokens of w_t x (-log p(y_t | x, y_<t)).

Weights are constants to the gradient. Axes as in losses.py: t positions of a tile, V vocabulary.
"""

from __future__ import annotations

import math

from torch import Tensor

from raft_tasks.training.chunked_losses import TokenWeights

ENTROPY_K = 20  # tokens that EAFT's entropy looks at, as in its paper


def probability(cross_entropy: Tensor, logits: Tensor) -> Tensor:
    """DFT (arXiv:2508.05629): w_t = sg[p(y_t)]. cross_entropy [t], logits [t, V] -> [t], in [0, 1].

    The gradient becomes that of -p(y_t): tokens that the model thinks impossible no longer pull hardest.
    """
    return (-cross_entropy).exp()


def entropy(cross_entropy: Tensor, logits: Tensor) -> Tensor:
    """EAFT (arXiv:2601.02151, L_EAFT): w_t = H_t / ln K. cross_entropy [t], logits [t, V] -> [t], in [0, 1].

    H_t is the entropy of the K = 20 most likely tokens, renormalised as in the authors' code. Where the model is sure
    (of the label, or of something else: a "confident conflict"), little is learned.
    """
    log_p = logits.topk(min(ENTROPY_K, logits.shape[-1])).values.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1) / math.log(log_p.shape[-1])


TOKEN_WEIGHTS: dict[str, TokenWeights | None] = {"none": None, "dft": probability, "eaft": entropy}
