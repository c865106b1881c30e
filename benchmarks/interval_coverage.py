"""Do the intervals hold what they promise? Simulated studies whose truth is known, counted by whether it is covered.

    python benchmarks/interval_coverage.py [studies]

A study is drawn from a world of sources (facts) and seeds: the log odds of a right answer are a level plus an effect of
the source, of the seed, and of both together, each model's own beside what all share of a source. A design says how
many there are of each, and how large the effects. Printed is the share of studies whose 95 % interval holds the truth;
93 to 97 % is wanted. The recovered fraction is counted in the studies that report one: those
whose loss is significant.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import numpy as np

from raft_tasks.evaluation.statistics import Bootstrap, Floats, Outcomes, difference, mean, ratio, recovered_fraction

STUDIES = 2000
CONFIDENCE = 0.95
RESAMPLES = 400
MANY = 400_000  # sources and seeds that the truth is computed from


@dataclass(frozen=True)
class Design:
    name: str
    seeds: int
    sources: int
    per_source: int | tuple[int, int]  # items of a source; or from, to: uneven
    level: float  # log odds of the base
    change: float  # what SFT adds to them; the method, half of it
    shared: float = 1.5  # standard deviations: of a source, on both sides alike,
    own: float = 0.7  # of a source under training,
    seed: float = 0.0  # of a training seed,
    both: float = 0.0  # of a source under a seed


DESIGNS = [
    Design("one seed, one item a source", 1, 100, 1, 0.5, -0.5),
    Design("one seed, clusters of 4", 1, 50, 4, 0.5, -0.5),
    Design("one seed, uneven clusters", 1, 60, (1, 8), 0.5, -0.5),
    Design("one seed, 25 sources", 1, 25, 2, 0.5, -0.5),
    Design("one seed, high level", 1, 100, 2, 2.5, -0.8),
    Design("three seeds, alike", 3, 60, 2, 0.5, -0.5),
    Design("three seeds, differing", 3, 60, 2, 0.5, -0.5, seed=0.4, both=0.5),
    Design("three seeds, far apart", 3, 60, 2, 0.5, -0.5, seed=1.0),
    Design("three seeds, high level", 3, 100, 2, 2.5, -0.8, seed=0.2),
    Design("three seeds, a large loss", 3, 60, 2, 0.5, -2.0, seed=0.2),
    Design("two seeds, alike", 2, 60, 2, 0.5, -0.5),
    Design("two seeds, differing", 2, 60, 2, 0.5, -0.5, seed=0.4),
    Design("five seeds, differing", 5, 60, 2, 0.5, -0.5, seed=0.4, both=0.5),
]


def draw(design: Design, generator: np.random.Generator) -> tuple[Outcomes, Outcomes, Outcomes]:
    """One study: the base, which no seed has touched, then SFT and a method that keeps half of what SFT loses."""
    sizes = (
        np.full(design.sources, design.per_source)
        if isinstance(design.per_source, int)
        else generator.integers(design.per_source[0], design.per_source[1] + 1, design.sources)
    )
    of_item = np.repeat(np.arange(design.sources), sizes)
    names = tuple(map(str, of_item))
    shared = design.level + generator.normal(0, design.shared, design.sources)
    base = _answers(shared[None, of_item], generator)
    seeds: tuple[int | None, ...] = tuple(range(design.seeds)) if design.seeds > 1 else (None,)

    def trained(change: float) -> Outcomes:
        odds = shared + change + generator.normal(0, design.own, design.sources)
        odds = odds + generator.normal(0, design.seed, (design.seeds, 1))
        odds = odds + generator.normal(0, design.both, (design.seeds, design.sources))
        return Outcomes(_answers(odds[:, of_item], generator), seeds, names)

    return Outcomes(base, (None,), names), trained(design.change), trained(design.change / 2)


def truth(design: Design) -> tuple[float, float, float]:
    """Share of right answers of base, SFT and method, over all sources and seeds there could be."""
    generator = np.random.default_rng(1)
    normal = generator.normal(0, 1, MANY)
    spread = np.sqrt(design.shared**2 + design.own**2 + design.seed**2 + design.both**2)
    return (
        float(_chance(design.level + design.shared * normal).mean()),
        float(_chance(design.level + design.change + spread * normal).mean()),
        float(_chance(design.level + design.change / 2 + spread * normal).mean()),
    )


def _chance(odds: Floats) -> Floats:
    return 1 / (1 + np.exp(-odds))


def _answers(odds: Floats, generator: np.random.Generator) -> Floats:
    return (generator.random(odds.shape) < _chance(odds)).astype(np.float64)


def coverage(design: Design, studies: int, seed: int) -> dict[str, tuple[float, int]]:
    """By measure, the share of intervals that hold the truth, and of how many."""
    base, reference, method = truth(design)
    true = {
        "score": method,
        "against base": method - base,
        "against SFT": method - reference,
        "retention": method / base,
        "recovered": (method - reference) / (base - reference),
    }
    generator = np.random.default_rng(seed)
    held: dict[str, list[bool]] = {name: [] for name in true}
    for number in range(studies):
        of_base, of_reference, of_method = ([one] for one in draw(design, generator))
        settings = Bootstrap(CONFIDENCE, RESAMPLES, number)
        found = {
            "score": mean(of_method, settings),
            "against base": difference(of_method, of_base, settings),
            "against SFT": difference(of_method, of_reference, settings),
            "retention": ratio(of_method, of_base, settings),
            "recovered": recovered_fraction(of_method, of_reference, of_base, settings),
        }
        for name, one in found.items():
            if one and one.low is not None and one.high is not None:
                held[name].append(one.low <= true[name] <= one.high)
    return {name: (float(np.mean(own)), len(own)) for name, own in held.items()}


def main() -> None:
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else STUDIES
    started = time.monotonic()
    for number, design in enumerate(DESIGNS):
        shares = coverage(design, studies, number)
        if not number:
            print("| design | " + " | ".join(shares) + " |\n|---|" + "---:|" * len(shares))
        cells = [f"{100 * share:.1f}" + (f" (of {of})" if of < studies else "") for share, of in shares.values()]
        print(f"| {design.name} | " + " | ".join(cells) + " |", flush=True)
    print(f"\n{studies} studies of each design, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
