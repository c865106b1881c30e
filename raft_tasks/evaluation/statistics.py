"""Estimates with intervals over items and seeds, from the outcome of every item under every training seed.

Two things vary at once: which items were asked (those of one source, a fact or a document, go together) and which
seed a model was trained with. An interval here comes from a two-way bootstrap: sources and seeds are drawn with
replacement, crossed, and the percentiles of the resampled estimates are read off. Three seeds are few, and a bootstrap
of three numbers is too narrow, so the percentiles' distances to the estimate are stretched to a half width H from the
crossed random-effects variance, each part with Student's t at its own degrees of freedom (Howe 1974; the "modified
large sample" intervals of Burdick and Graybill 1992):

    H^2 = t_S^2 max(V_S - c V_E, 0) + t_E^2 c V_E + t_C^2 max(V_C - V_E, 0)

with V_S of the seeds' means, V_C of the sources', V_E of the interaction. c = 1 makes the variance unbiased, but few
seeds that happen to agree are believed too readily: three seeds that differ cover 92 %, two 88 %. So the larger of H at
c = 1 and at SEED_SHARE is taken; how that was chosen, and what it covers, stands in docs/studies/coverage.md.
A single seed leaves only the items to vary; the interval says so. Letters: R resamples, S seeds, N items, C sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
SEED_SHARE = {2: 0.3}  # c by the number of seeds
SEED_SHARE_OF_MORE = 0.7
Verdict = Literal["higher", "lower", "no clear difference"]


@dataclass(frozen=True)
class Outcomes:
    """One task's outcomes under one method: values [S, N], the seeds [S] and the source [N] of each item."""

    values: Floats
    seeds: tuple[int | None, ...]  # (None,) for a model without a training seed
    sources: tuple[str, ...]

    def __post_init__(self) -> None:
        expected = (len(self.seeds), len(self.sources))
        if self.values.shape != expected or 0 in expected:
            raise ValueError(f"got outcomes of shape {self.values.shape}, expected {expected} [seeds, items]")
        if not np.isfinite(self.values).all():
            raise ValueError("got outcomes that are not finite; every item needs a number under every seed")


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; no interval where one source alone gives no idea of the variation."""

    estimate: float
    low: float | None
    high: float | None
    n_items: int
    n_sources: int
    n_seeds: int
    over: Literal["items and seeds", "items"]  # what the interval lets vary


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: their level, the number of resamples, and the generator's seed."""

    confidence: float
    samples: int
    seed: int


def mean(tasks: Sequence[Outcomes], bootstrap: Bootstrap) -> Estimate:
    """The mean over items and seeds; of several tasks, the plain average of the tasks' means.

    Where every outcome is 0, or every outcome 1, no resample differs: there the interval is exact.
    """
    values = np.concatenate([task.values.ravel() for task in tasks])
    if (values == values[0]).all() and values[0] in (0.0, 1.0):
        least = _least_share(tasks, bootstrap)
        low, high = (least, 1.0) if values[0] else (0.0, 1.0 - least)
        return _estimate(float(values[0]), low, high, tasks)
    within = (0.0, 1.0) if _are_shares(tasks) else (-np.inf, np.inf)
    return _interval(_average(tasks, _Weights(tasks, bootstrap)), within, tasks, bootstrap)


def difference(tasks: Sequence[Outcomes], others: Sequence[Outcomes], bootstrap: Bootstrap) -> Estimate:
    """mean(tasks) - mean(others), paired: the same items, and the same seeds where both were trained.

    Where every item flips the same way, no resample differs: there the inner end is exact.

    Raises:
        ValueError: if the two do not have the same items in the same order, or were trained under other seeds.
    """
    tasks, others = align(tasks, others)
    weights = _Weights(tasks, bootstrap)
    within = (-1.0, 1.0) if _are_shares([*tasks, *others]) else (-np.inf, np.inf)
    change = _interval(_average(tasks, weights) - _average(others, weights), within, tasks, bootstrap)
    if change.low is None or change.estimate not in within:
        return change
    inner = change.estimate * (2 * _least_share(tasks, bootstrap) - 1)  # the other items may flip the other way
    return replace(change, low=min(change.estimate, inner), high=max(change.estimate, inner))


def ratio(tasks: Sequence[Outcomes], others: Sequence[Outcomes], bootstrap: Bootstrap) -> Estimate | None:
    """mean(tasks) / mean(others), paired as in `difference`; None where mean(others) is 0 (or is so in a resample)."""
    tasks, others = align(tasks, others)
    weights = _Weights(tasks, bootstrap)
    divisor = _average(others, weights)
    quotient = _average(tasks, weights).over(divisor)
    if quotient is None:
        return None
    share = _interval(quotient, (0.0, np.inf), tasks, bootstrap)
    if share.high != 0:
        return share
    return replace(share, high=(1 - _least_share(tasks, bootstrap)) / divisor.value)  # no outcome but 0: as in `mean`


def recovered_fraction(
    tasks: Sequence[Outcomes], damaged: Sequence[Outcomes], base: Sequence[Outcomes], bootstrap: Bootstrap
) -> Estimate | None:
    """(mean(tasks) - mean(damaged)) / (mean(base) - mean(damaged)): 1 where nothing is left of what `damaged` lost.

    Returns:
        None unless the interval of damaged - base lies below 0: a share of a loss that may be none means nothing.
    """
    if verdict(difference(damaged, base, bootstrap)) != "lower":
        return None
    tasks, damaged, base = align(tasks, damaged, base)
    weights = _Weights(tasks, bootstrap)
    lowest = _average(damaged, weights)
    quotient = (_average(tasks, weights) - lowest).over(_average(base, weights) - lowest)
    return None if quotient is None else _interval(quotient, (-np.inf, np.inf), tasks, bootstrap)


def half_width(tasks: Sequence[Outcomes], others: Sequence[Outcomes], probability: float) -> float | None:
    """How far the paired difference's estimate falls short of the truth at most, with this probability (above 1/2).

    None where one source alone gives no idea of the variation.
    """
    tasks, others = align(tasks, others)
    changes = [a - b for a, b in zip(_influences(tasks), _influences(others), strict=True)]
    return _half_width(changes, probability)


def verdict(change: Estimate) -> Verdict:
    """What a paired difference lets one say: a direction only where its interval excludes 0."""
    if change.low is not None and change.low > 0:
        return "higher"
    if change.high is not None and change.high < 0:
        return "lower"
    return "no clear difference"


class _Weights:
    """How often each resample draws each source, task by task [R, C], and each seed, for all tasks alike [R, S]."""

    def __init__(self, tasks: Sequence[Outcomes], bootstrap: Bootstrap) -> None:
        generator = np.random.default_rng(bootstrap.seed)
        n_seeds = len(tasks[0].seeds)
        self.seeds = _draw_counts(generator, n_seeds, bootstrap.samples) / n_seeds
        self.sources = [_draw_counts(generator, len(set(task.sources)), bootstrap.samples) for task in tasks]

    def means(self, tasks: Sequence[Outcomes]) -> Floats:
        """The average of the tasks' means in every resample, [R]."""
        total = np.zeros(len(self.seeds))
        for task, drawn in zip(tasks, self.sources, strict=True):
            sums, sizes = _by_source(task)
            per_seed = (drawn @ sums.T) / (drawn @ sizes)[:, None]  # [R, S]
            total += (self.seeds * per_seed).sum(axis=1)
        return total / len(tasks)


def _draw_counts(generator: np.random.Generator, count: int, samples: int) -> NDArray[np.int64]:
    """How often each of `count` is among `count` draws with replacement, [R, count]; faster than multinomial."""
    picked = generator.integers(count, size=(samples, count)) + count * np.arange(samples)[:, None]
    return np.bincount(picked.ravel(), minlength=samples * count).reshape(samples, count)


def _by_source(task: Outcomes) -> tuple[Floats, Floats]:
    """Outcomes summed over the items of each source, [S, C], and how many items each has, [C]."""
    codes = np.unique(task.sources, return_inverse=True)[1]
    sizes = np.bincount(codes).astype(np.float64)
    member = np.zeros((len(codes), len(sizes)))
    member[np.arange(len(codes)), codes] = 1.0
    return task.values @ member, sizes


def _least_share(tasks: Sequence[Outcomes], bootstrap: Bootstrap) -> float:
    """The share that items which all agree have at least: Clopper-Pearson's lower end, with the sources as trials.

    In an average every task counts with the sources of the smallest one, where all the other items may be.
    """
    n_sources = len(tasks) * min(len(set(task.sources)) for task in tasks)
    return ((1 - bootstrap.confidence) / 2) ** (1 / n_sources)


def _are_shares(tasks: Sequence[Outcomes]) -> bool:
    return all(task.values.min() >= 0 and task.values.max() <= 1 for task in tasks)


def _influences(tasks: Sequence[Outcomes]) -> list[Floats]:
    """Per task [S, C]: what each source under each seed moves the average of the tasks by; the mean of each is 0."""
    influences = []
    for task in tasks:
        sums, sizes = _by_source(task)
        influences.append((sums - task.values.mean() * sizes) * len(sizes) / sizes.sum() / len(tasks))
    return influences


@dataclass(frozen=True)
class _Statistic:
    """A number, its value in every resample [R], and per task what each source under each seed moves it by [S, C]."""

    value: float
    resampled: Floats
    influences: list[Floats]

    def __sub__(self, other: _Statistic) -> _Statistic:
        influences = [a - b for a, b in zip(self.influences, other.influences, strict=True)]
        return _Statistic(self.value - other.value, self.resampled - other.resampled, influences)

    def over(self, other: _Statistic) -> _Statistic | None:
        """The quotient; None where the denominator is not positive in all resamples."""
        if other.value <= 0 or (other.resampled <= 0).any():
            return None
        value = self.value / other.value
        influences = [(a - value * b) / other.value for a, b in zip(self.influences, other.influences, strict=True)]
        return _Statistic(value, self.resampled / other.resampled, influences)


def _average(tasks: Sequence[Outcomes], weights: _Weights) -> _Statistic:
    """The average of the tasks' means."""
    return _Statistic(float(np.mean([task.values.mean() for task in tasks])), weights.means(tasks), _influences(tasks))


def _interval(
    statistic: _Statistic, within: tuple[float, float], tasks: Sequence[Outcomes], bootstrap: Bootstrap
) -> Estimate:
    """Percentiles of the resampled estimates, stretched as the module's head says."""
    from scipy.special import ndtri  # the normal quantile; scipy.stats takes seconds to import

    estimate, tail = statistic.value, (1 - bootstrap.confidence) / 2
    half = _half_width(statistic.influences, 1 - tail)
    if half is None:
        return _estimate(estimate, None, None, tasks)
    low, high = np.quantile(statistic.resampled, [tail, 1 - tail])
    spread = statistic.resampled.std(ddof=1)
    if spread > 0:
        stretch = half / (float(ndtri(1 - tail)) * spread)
        # a resampled ratio or weighted mean is a little off centre; the distances are kept as they are
        low, high = estimate + (low - estimate) * stretch, estimate + (high - estimate) * stretch
    return _estimate(estimate, max(float(low), within[0]), min(float(high), within[1]), tasks)


def _half_width(influences: list[Floats], probability: float) -> float | None:
    """H of the module's head, for t's one-sided quantile at `probability`; `influences` per task [S, C]."""
    from scipy.special import stdtrit  # t's quantile

    if min(influence.shape[1] for influence in influences) < 2:
        return None
    seeds = len(influences[0])
    by_source = [influence.mean(axis=0) for influence in influences]  # [C] each
    v_sources = sum(float(means.var(ddof=1)) / len(means) for means in by_source)
    df_sources = sum(len(means) - 1 for means in by_source)
    if seeds == 1:
        return float(stdtrit(df_sources, probability) * v_sources**0.5)
    by_seed = np.sum([influence.mean(axis=1) for influence in influences], axis=0)  # [S]
    v_seeds, v_both = float(by_seed.var(ddof=1)) / seeds, 0.0
    for influence, means in zip(influences, by_source, strict=True):
        rest = influence - means - influence.mean(axis=1, keepdims=True) + influence.mean()
        v_both += float((rest**2).sum()) / ((seeds - 1) * (len(means) - 1)) / influence.size
    t_seeds, t_sources, t_both = stdtrit([seeds - 1, df_sources, df_sources * (seeds - 1)], probability) ** 2
    squares = [
        t_seeds * max(v_seeds - c * v_both, 0.0) + t_both * c * v_both + t_sources * max(v_sources - v_both, 0.0)
        for c in (1.0, SEED_SHARE.get(seeds, SEED_SHARE_OF_MORE))
    ]
    return float(max(squares) ** 0.5)


def align(*sides: Sequence[Outcomes]) -> list[list[Outcomes]]:
    """All sides with the same seeds: a model without a training seed is repeated under the others' seeds.

    Raises:
        ValueError: as `difference`.
    """
    if len({len(side) for side in sides}) > 1:
        raise ValueError(f"got {[len(side) for side in sides]} tasks to compare, expected the same tasks on every side")
    for tasks in zip(*sides, strict=True):
        if any(task.sources != tasks[0].sources for task in tasks):
            raise ValueError(
                "got different items, expected the same items in the same order; benchmark every side again"
            )
    drawn = sorted({task.seeds for side in sides for task in side} - {(None,)})
    if len(drawn) > 1:
        raise ValueError(f"got seeds {' and '.join(map(str, drawn))}, expected the same ones on every side")
    return [[_repeat(task, drawn[0] if drawn else (None,)) for task in side] for side in sides]


def _repeat(task: Outcomes, seeds: tuple[int | None, ...]) -> Outcomes:
    if task.seeds != (None,) or seeds == (None,):
        return task
    return Outcomes(np.repeat(task.values, len(seeds), axis=0), seeds, task.sources)


def _estimate(estimate: float, low: float | None, high: float | None, tasks: Sequence[Outcomes]) -> Estimate:
    seeds = len(tasks[0].seeds)
    return Estimate(
        estimate=estimate,
        low=low,
        high=high,
        n_items=sum(len(task.sources) for task in tasks),
        n_sources=sum(len(set(task.sources)) for task in tasks),
        n_seeds=seeds,
        over="items and seeds" if seeds > 1 else "items",
    )
