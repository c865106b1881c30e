"""Did training break something? Exact tests, and the smallest drop that a benchmark would have shown.

An item is lost if it was right before and is wrong after, won the other way round. McNemar's exact test asks whether
the lost and the won could be the two sides of a fair coin. It takes items to be independent; those of one source are
not, nor are the seeds' answers to one item. So the coin is tossed per source here: under the null hypothesis before and
after may be swapped, for all items and seeds of a source at once, and the distribution of (won - lost) under all 2^C
swaps is computed exactly. With one item per source and one seed this is McNemar's exact test, digit for digit.

The test is about the models that were trained, under all their seeds together; the interval of `statistics.difference`
is about the method, other seeds included. Letters as there: S seeds, N items, C sources.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raft_tasks.evaluation.statistics import Outcomes, align, half_width

POWER = 0.8  # how often a drop of the detectable size would be seen


@dataclass(frozen=True)
class Degradation:
    """Items lost and won, as means over the seeds, and how likely such a difference is if neither model is better."""

    lost: float
    won: float
    p: float  # of all seeds together, two-sided
    p_per_seed: tuple[float, ...]


def degradation(after: Outcomes, before: Outcomes) -> Degradation | None:
    """The exact test of the module's head; None where an outcome is neither right (1) nor wrong (0).

    Raises:
        ValueError: if the two have other items, or were trained under other seeds.
    """
    (after,), (before,) = align([after], [before])
    if not (np.isin(after.values, (0, 1)).all() and np.isin(before.values, (0, 1)).all()):
        return None
    change = (after.values - before.values).astype(np.int64)  # [S, N]
    codes = np.unique(after.sources, return_inverse=True)[1]
    by_source = np.stack([np.bincount(codes, row) for row in change]).astype(np.int64)  # [S, C]
    return Degradation(
        lost=float((change < 0).sum(axis=1).mean()),
        won=float((change > 0).sum(axis=1).mean()),
        p=sign_flip_p(by_source.sum(axis=0)),
        p_per_seed=tuple(sign_flip_p(row) for row in by_source),
    )


def sign_flip_p(changes: ArrayLike) -> float:
    """P(|sum of changes under random signs| >= |sum of changes|), exact; 1 where nothing changed.

    Args:
        changes: whole numbers [C], one per independent source; of ones alone it is McNemar's exact test.
    """
    values = np.asarray(changes, dtype=np.int64)
    sizes = np.abs(values[values != 0])
    chances = np.ones(1)  # chances[k]: that the sizes tossed so far and come out positive add up to k
    for size in sizes:
        longer = np.zeros(len(chances) + size)
        longer[: len(chances)] += chances / 2
        longer[size:] += chances / 2
        chances = longer
    sums = 2 * np.arange(len(chances)) - sizes.sum()
    return min(1.0, float(chances[np.abs(sums) >= abs(values.sum())].sum()))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p (1979), in the order given: below alpha, the whole family errs with at most that chance."""
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, dtype=np.float64)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def power(n: int, discordance: float, drop: float, confidence: float) -> float:
    """The chance that McNemar's exact test of `n` independent items finds a drop.

    Args:
        discordance: share of the items that are lost or won.
        drop: share lost - share won, at most `discordance`.
    """
    from scipy.special import bdtr  # scipy.stats takes seconds to import

    pairs, critical = np.arange(1, n + 1), _critical(n, (1 - confidence) / 2)
    rejects = np.where(critical >= 0, bdtr(np.maximum(critical, 0), pairs, (discordance - drop) / (2 * discordance)), 0)
    chances = np.diff(bdtr(np.arange(n + 1), n, discordance))  # of 1 to n discordant items
    return float((chances * rejects).sum())


@cache
def _critical(n: int, tail: float) -> NDArray[np.float64]:
    """The most items won, of 1 to n discordant ones, at which the test rejects [n]; -1 where none would do."""
    from scipy.special import bdtr, bdtrik

    pairs = np.arange(1, n + 1)
    critical = np.ceil(bdtrik(tail, pairs, 0.5))
    return np.where(bdtr(np.maximum(critical, 0), pairs, 0.5) <= tail, critical, critical - 1)


def smallest_drop(n: int, discordance: float, confidence: float) -> float | None:
    """The smallest drop that `n` independent items show with a chance of POWER; None: not even a drop of all.

    Where the drop is larger than the discordance expected, all that changed was lost.
    """
    from scipy.optimize import brentq

    def excess(drop: float) -> float:
        return power(n, max(discordance, drop), drop, confidence) - POWER

    return None if excess(1.0) < 0 else float(brentq(excess, 1e-9, 1.0, xtol=1e-6))


def detectable_drop(tasks: Sequence[Outcomes], others: Sequence[Outcomes], confidence: float) -> float | None:
    """The smallest true drop that a comparison with these items, sources and seeds shows with a chance of POWER.

    Made as the paired difference's interval is, but no less than what that many independent items could show if nothing
    but the drop changed: where two models agree everywhere, the interval has no width, and the next pair might differ.
    """
    wide, likely = half_width(tasks, others, (1 + confidence) / 2), half_width(tasks, others, POWER)
    floor = smallest_drop(sum(len(set(task.sources)) for task in tasks), 0.0, confidence)
    if wide is None or likely is None or floor is None or wide + likely > 1:
        return None
    return max(wide + likely, floor)
