"""How much each answer token counts in L_SFT: L_SFT = mean over tokens of w_t x (-log p(y_t | x, y_<t)).

Weights are constants to the gradient. Axes as in losses.py: t positions of a tile, V vocabulary.
"""

import math
from collections.abc import Sequence
from statistics import median

from torch import Tensor

from raft_tasks.training.chunked_losses import TokenWeights

ENTROPY_K = 20  # tokens that EAFT's entropy looks at, as in its paper
TALR_FLOOR = 0.01  # the least weight under TALR


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


def adaptive(row_losses: Sequence[float]) -> TokenWeights:
    """TALR (arXiv:2509.20758): w_t = sg[max(p(y_t)^(1/tau), floor)], in (0, 1], without normalisation over the tokens.

    p^(1/tau) minimises sum w_t l_t + tau sum w_t log w_t. tau is the median of `row_losses`, the mean cross-entropy of
    each of the step's answers: what is hard now counts little, and more once the model has come nearer.
    """
    temperature = max(median(row_losses), 1e-6)
    return lambda cross_entropy, logits: (-cross_entropy / temperature).exp().clamp(min=TALR_FLOOR)


TOKEN_WEIGHTS: dict[str, TokenWeights | None] = {"none": None, "dft": probability, "eaft": entropy}  # talr: `adaptive`
