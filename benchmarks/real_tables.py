"""The tables of docs/studies/real-model.md, from what benchmarks/real_outcomes.py kept.

    python benchmarks/real_tables.py [FILE]       (default: benchmarks/studies/real-model.jsonl)

Percent right, by seed; in parentheses the 95 % interval of the paired difference to the base, item by item
(bootstrap, 10,000 resamples of the items; seeds of a method are averaged per item first). Then RAFT against the other
methods over the seeds that both have, with intervals over items and seeds (raft_tasks.evaluation.statistics).
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raft_tasks.evaluation import statistics

OUTCOMES = Path(sys.argv[1] if sys.argv[1:] else Path(__file__).parent / "studies" / "real-model.jsonl")
GENERATED = ("domain", "general_questions", "open_prompts")
ORDER = ["base", "sft", "fused_sft", "raft", "fused_sft_anchored", "raft_anchored"]

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


def against_raft(methods: Outcomes, other: str) -> str:
    """RAFT - other in percent for each task whose answers are generated."""
    bootstrap = statistics.Bootstrap(confidence=0.95, samples=4000, seed=0)
    cells = []
    for task in GENERATED:
        count = min(len(methods["raft"][task]), len(methods[other][task]))
        names = tuple(map(str, range(len(methods["raft"][task][0]))))
        raft, rival = (
            statistics.Outcomes(np.array(methods[method][task][:count]), tuple(range(count)), names)
            for method in ("raft", other)
        )
        change = statistics.difference([raft], [rival], bootstrap)
        assert change.low is not None
        assert change.high is not None
        cells.append(f"{task} {100 * change.estimate:+.0f} ({100 * change.low:+.0f} to {100 * change.high:+.0f})")
    return f"raft - {other}: {', '.join(cells)}"


def main() -> None:
    domains = sorted({json.loads(line)["domain"] for line in OUTCOMES.read_text(encoding="utf-8").splitlines()})
    for domain in domains:
        methods = read(domain)
        tasks = list(methods["base"])
        print(f"\n## {domain}\n\n| | seeds | {' | '.join(tasks)} |\n|---|---:|{'---:|' * len(tasks)}")
        items = " | ".join(str(len(methods["base"][task][0])) for task in tasks)
        print(f"| items | | {items} |")
        for method in sorted(methods, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)):
            cells = []
            for task in tasks:
                mean = np.mean(methods[method][task], axis=0)
                base = methods["base"][task][0]
                seeds = "/".join(f"{100 * seed.mean():.0f}" for seed in methods[method][task])
                cells.append(seeds + ("" if method == "base" else f" ({difference(mean, base)})"))
            print(f"| `{method}` | {len(methods[method][tasks[0]])} | {' | '.join(cells)} |")
        print()
        for other in ("fused_sft", "fused_sft_anchored"):
            if "raft" in methods and other in methods:
                print(against_raft(methods, other))
    print("\nLAMBADA's perplexity, domain answers with a number of two digits; refinement:\n")
    for row in map(json.loads, OUTCOMES.read_text(encoding="utf-8").splitlines()):
        figures = row.get("refinement") or [row["lambada_perplexity"], row["domain_answers_with_two_digits"]]
        print(row["domain"], row.get("model", "refinement"), figures)


if __name__ == "__main__":
    main()
