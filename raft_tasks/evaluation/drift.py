"""Drift: how far a tuned model's answers are from the base's in length and style, whatever their content.

Style is a text's character trigrams. They hold words too, so a distance falls to 0 only for the same answers; compare
models on the same questions with each other.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from math import log, log2
from statistics import fmean

from raft_tasks.ngrams import character_ngrams, words

MIN_SEPARABILITY = 0.9  # balanced accuracy from which two styles differ enough to attribute an answer to one of them


def count_words(text: str) -> int:
    return len(words(text))


def length_distance(lengths: Sequence[int], others: Sequence[int]) -> float:
    """Kolmogorov-Smirnov distance of two samples of lengths: the widest gap of their distribution functions, in [0, 1].

    Raises:
        ValueError: an empty sample.
    """
    if not lengths or not others:
        raise ValueError(f"got {len(lengths)} and {len(others)} answers, expected some of both")
    a, b = sorted(lengths), sorted(others)  # scipy.stats.ks_2samp gives the same, after seconds of import
    return max(abs(bisect_right(a, at) / len(a) - bisect_right(b, at) / len(b)) for at in {*a, *b})


def style_distance(texts: Sequence[str], others: Sequence[str]) -> float:
    """Jensen-Shannon divergence of two samples' trigram frequencies, in bits: 0 the same, 1 nothing in common.

    Raises:
        ValueError: an empty sample.
    """
    if not texts or not others:
        raise ValueError(f"got {len(texts)} and {len(others)} texts, expected some of both")
    p, q = (Counter(gram for text in sample for gram in character_ngrams(text)) for sample in (texts, others))

    def half(counts: Counter[str], other: Counter[str]) -> float:
        shares = ((n / counts.total(), other[gram] / other.total()) for gram, n in counts.items())
        return sum(share * log2(2 * share / (share + other_share)) for share, other_share in shares)

    return (half(p, q) + half(q, p)) / 2


class StyleClassifier:
    """Naive Bayes over character trigrams, add-one smoothing, equal priors, of the base's and of a foreign style."""

    def __init__(self, base: Sequence[str], foreign: Sequence[str]) -> None:
        counts = [Counter(gram for text in sample for gram in character_ngrams(text)) for sample in (base, foreign)]
        size = len(counts[0] | counts[1])
        self.styles = [(count, log(count.total() + size)) for count in counts]

    def is_foreign(self, text: str) -> bool:
        base, foreign = (
            sum(log(count[gram] + 1) - total for gram in character_ngrams(text)) for count, total in self.styles
        )
        return foreign > base


def separability(base: Sequence[str], foreign: Sequence[str]) -> float | None:
    """How well a `StyleClassifier` classifies unseen texts: balanced accuracy, every second text held out.

    None with fewer than two texts of a style: there is nothing to hold out.
    """
    if min(len(base), len(foreign)) < 2:
        return None
    classifier = StyleClassifier(base[::2], foreign[::2])
    of_base = fmean(not classifier.is_foreign(text) for text in base[1::2])
    return (of_base + fmean(map(classifier.is_foreign, foreign[1::2]))) / 2


def foreign_share(answers: Sequence[str], base: Sequence[str], foreign: Sequence[str]) -> float | None:
    """Share of the answers that are nearer to the foreign style; None where the styles cannot be separated.

    Args:
        base: the base's answers.
        foreign: the references that the domain's data holds.
    """
    measured = separability(base, foreign)
    if measured is None or measured < MIN_SEPARABILITY:
        return None
    classifier = StyleClassifier(base, foreign)
    return fmean(map(classifier.is_foreign, answers))
