"""The tables of docs/studies/real-model.md, from what benchmarks/real_outcomes.py kept.

    python benchmarks/real_tables.py [FILE [PICTURE]]       (default: benchmarks/studies/real-model.jsonl)

Percent right, by seed; in parentheses the 95 % interval of the paired difference to the base, item by item
(bootstrap, 10,000 resamples of the items; seeds of a method are averaged per item first). Then the two scores, and
methods against each other over the seeds that both have, with intervals over items and seeds
(raft_tasks.evaluation.statistics). "general" is the mean over all benchmarks but the domain's.
PICTURE: an SVG file for the frontier.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raft_tasks.evaluation import statistics
from raft_tasks.reporting.figures.panel import styles_of
from raft_tasks.reporting.figures.scores import frontier
from raft_tasks.reporting.frontier import undominated

OUTCOMES = Path(sys.argv[1] if sys.argv[1:] else Path(__file__).parent / "studies" / "real-model.jsonl")
GENERATED = ("domain", "general_questions", "open_prompts")
ORDER = ["base", "sft", "fused_sft", "raft", "fused_sft_anchored", "fused_sft_anchored_4_epochs",
         "raft_anchored", "mixsd_refined_anchored"]  # fmt: skip
PAIRS = [
    ("raft", "fused_sft"),
    ("raft", "fused_sft_anchored"),
    ("fused_sft_anchored", "fused_sft"),
    ("raft", "fused_sft_anchored_4_epochs"),
    ("raft_anchored", "raft"),
    ("raft_anchored", "fused_sft_anchored_4_epochs"),
    ("raft_anchored", "fused_sft_anchored"),
    ("mixsd_refined_anchored", "fused_sft_anchored"),
]
BOOTSTRAP = statistics.Bootstrap(confidence=0.95, samples=4000, seed=0)

Outcomes = dict[str, dict[str, list[NDArray[np.float64]]]]  # method -> task -> outcomes per seed


def read(domain: str) -> Outcomes:
    methods: Outcomes = defaultdict(lambda: defaultdict(list))
    for row in map(json.loads, OUTCOMES.read_text(encoding="utf-8").splitlines()):
        if row["domain"] == domain and "model" in row:
            method = row["model"].rpartition("-")[0] or row["model"]
            for task, marks in row["outcomes"].items():
                methods[method][task].append(np.array([float(mark) for mark in marks]))
    return methods


def difference(ours: NDArray[np.float64], base: NDArray[np.float64]) -> str:
    deltas = ours - base
    draws = np.random.default_rng(0).choice(deltas, size=(10_000, len(deltas))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{100 * deltas.mean():+.0f}, {100 * low:+.0f} to {100 * high:+.0f}"


def paired(methods: Outcomes, one: str, other: str) -> str:
    """one - other in percent for each task whose answers are generated, and for the general score."""
    count = min(len(methods[one]["domain"]), len(methods[other]["domain"]))
    cells = []
    for name, tasks in {**{task: [task] for task in GENERATED}, "general": general(methods)}.items():
        change = statistics.difference(
            chosen(methods, one, tasks, count), chosen(methods, other, tasks, count), BOOTSTRAP
        )
        cells.append(f"{name} {percent(change, '+.1f')}")
    return f"{one} - {other}: {', '.join(cells)}"


def general(methods: Outcomes) -> list[str]:
    return [task for task in methods["base"] if task != "domain"]


def chosen(methods: Outcomes, method: str, tasks: list[str], count: int | None = None) -> list[statistics.Outcomes]:
    """A method's outcomes in some tasks with its first `count` seeds."""
    made = []
    for task in tasks:
        values = np.array(methods[method][task][:count])
        seeds = (None,) if method == "base" else tuple(range(len(values)))
        made.append(statistics.Outcomes(values, seeds, tuple(map(str, range(values.shape[1])))))
    return made


def percent(estimate: statistics.Estimate | None, form: str = ".1f") -> str:
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    middle, low, high = (format(100 * value, form) for value in (estimate.estimate, estimate.low, estimate.high))
    return f"{middle} ({low} to {high})"


def two_scores(methods: Outcomes, names: list[str], seconds: dict[str, list[float]]) -> tuple[list[str], str]:
    """Domain and general score of each method, the share of the base's that is kept, seconds; and a picture."""
    tasks = general(methods)
    scores = {
        name: [statistics.mean(chosen(methods, name, of), BOOTSTRAP) for of in (["domain"], tasks)] for name in names
    }
    best = undominated([(domain.estimate, rest.estimate) for domain, rest in scores.values()])
    lines = ["| | domain | general | kept | s |", "|---|---:|---:|---:|---:|"]
    for index, (name, (domain, rest)) in enumerate(scores.items()):
        kept = statistics.ratio(chosen(methods, name, tasks), chosen(methods, "base", tasks), BOOTSTRAP)
        cells = [percent(domain), percent(rest), "100" if name == "base" else percent(kept)]
        shown = f"**`{name}`**" if index in best else f"`{name}`"
        lines.append(f"| {shown} | {' | '.join(cells)} | {'/'.join(f'{value:.0f}' for value in seconds[name])} |")
    points: Any = [
        {
            "method": name,
            "setting": None,
            "line": None,
            "best": n in best,
            "domain_acc": vars(domain),
            "general": vars(rest),
        }
        for n, (name, (domain, rest)) in enumerate(scores.items())
    ]
    return lines, frontier(points, {}, styles_of(names[1:]))


def main() -> None:
    domains = sorted({json.loads(line)["domain"] for line in OUTCOMES.read_text(encoding="utf-8").splitlines()})
    for domain in domains:
        methods = read(domain)
        tasks = list(methods["base"])
        print(f"\n## {domain}\n\n| | seeds | {' | '.join(tasks)} |\n|---|---:|{'---:|' * len(tasks)}")
        items = " | ".join(str(len(methods["base"][task][0])) for task in tasks)
        print(f"| items | | {items} |")
        ordered = sorted(methods, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
        seconds: dict[str, list[float]] = defaultdict(list)
        for row in map(json.loads, OUTCOMES.read_text(encoding="utf-8").splitlines()):
            if row["domain"] == domain and "seconds" in row:
                seconds[row["model"].rpartition("-")[0]].append(row["seconds"])
        for method in ordered:
            cells = []
            for task in tasks:
                mean = np.mean(methods[method][task], axis=0)
                base = methods["base"][task][0]
                seeds = "/".join(f"{100 * seed.mean():.0f}" for seed in methods[method][task])
                cells.append(seeds + ("" if method == "base" else f" ({difference(mean, base)})"))
            print(f"| `{method}` | {len(methods[method][tasks[0]])} | {' | '.join(cells)} |")
        print("\nBold: no other row is better in both scores. s: seconds of a training.\n")
        lines, picture = two_scores(methods, ordered, seconds)
        print(*lines, sep="\n")
        if sys.argv[2:]:
            Path(sys.argv[2]).write_text(picture, encoding="utf-8")
        print()
        for one, other in PAIRS:
            if one in methods and other in methods:
                print(paired(methods, one, other))
    print("\nLAMBADA's perplexity, domain answers with a number of two digits; refinement:\n")
    for row in map(json.loads, OUTCOMES.read_text(encoding="utf-8").splitlines()):
        figures = row.get("refinement") or [row["lambada_perplexity"], row["domain_answers_with_two_digits"]]
        print(row["domain"], row.get("model", "refinement"), figures)


if __name__ == "__main__":
    main()
