"""Drift: how far a tuned model's answers are from the base's in length and style, whatever they say.

Style is a text's character trigrams. They hold words too, so a distance falls to 0 only for the same answers; compare
models on the same questions with each other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from math import log, log2
from statistics import fmean

from raft_tasks.ngrams import character_ngrams

TOLD_APART = 0.9  # balanced accuracy from which two styles count as different enough to say whose an answer is


def words(text: str) -> int:
    """Number of words."""
    return len(re.findall(r"\w+", text))


def length_distance(lengths: Sequence[int], others: Sequence[int]) -> float:
    """Kolmogorov-Smirnov distance of two samples of lengths: the widest gap of their distribution functions, in [0, 1].

    Raises:
        ValueError: an empty sample.
    """
    if not lengths or not others:
        raise ValueError(f"got {len(lengths)} and {len(others)} answers, expected some of both")
    return max(
        abs(sum(one <= at for one in lengths) / len(lengths) - sum(one <= at for one in others) / len(others))
        for at in {*lengths, *others}
    )


def style_distance(texts: Sequence[str], others: Sequence[str]) -> float:
    """Jensen-Shannon divergence of two samples' trigram frequencies, in bits: 0 the same, 1 nothing in common.

    Raises:
        ValueError: an empty sample.
    """
    if not texts or not others:
        raise ValueError(f"got {len(texts)} and {len(others)} texts, expected some of both")
    p, q = (Counter(gram for text in sample for gram in character_ngrams(text)) for sample in (texts, others))

    def half(one: Counter[str], other: Counter[str]) -> float:
        shares = ((n / one.total(), other[gram] / other.total()) for gram, n in one.items())
        return sum(share * log2(2 * share / (share + there)) for share, there in shares)

    return (half(p, q) + half(q, p)) / 2


class Styles:
    """Tells two styles apart: naive Bayes over character trigrams, add-one smoothing, equal priors.

    Args:
        own, foreign: texts of either style.
    """

    def __init__(self, own: Sequence[str], foreign: Sequence[str]) -> None:
        counts = [Counter(gram for text in sample for gram in character_ngrams(text)) for sample in (own, foreign)]
        size = len(counts[0] | counts[1])
        self.known = [(count, log(count.total() + size)) for count in counts]

    def is_foreign(self, text: str) -> bool:
        own, foreign = (
            sum(log(count[gram] + 1) - total for gram in character_ngrams(text)) for count, total in self.known
        )
        return foreign > own


def told_apart(own: Sequence[str], foreign: Sequence[str]) -> float | None:
    """How well `Styles` tells texts that it has not seen: balanced accuracy, every second text held out.

    None with fewer than two texts of a style: there is nothing to hold out.
    """
    if min(len(own), len(foreign)) < 2:
        return None
    styles = Styles(own[::2], foreign[::2])
    return (fmean(not styles.is_foreign(text) for text in own[1::2]) + fmean(map(styles.is_foreign, foreign[1::2]))) / 2


def foreign_share(answers: Sequence[str], own: Sequence[str], foreign: Sequence[str]) -> float | None:
    """Share of the answers that are nearer to the foreign style; None where the styles cannot be told apart.

    Args:
        own: the base's answers.
        foreign: the references that the domain's data holds.
    """
    apart = told_apart(own, foreign)
    if apart is None or apart < TOLD_APART:
        return None
    styles = Styles(own, foreign)
    return fmean(map(styles.is_foreign, answers))
