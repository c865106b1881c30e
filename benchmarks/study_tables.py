"""The tables of a study (benchmarks/study.py), as Markdown: `python benchmarks/study_tables.py anchors`.

A line is an arm; its numbers are means over its seeds, in percent. "general" is the plain average of recall,
instructions, reading and rewriting; "kept" is general / the base's general. Differences are paired, over the same items
and the seeds that both sides have. 95 % intervals let items (a fact's go together) and seeds vary.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from study import STUDIES, results_of

from raft_tasks.evaluation.statistics import Bootstrap, Estimate, Outcomes, difference, mean, ratio

GENERAL = ("recall", "instructions", "reading", "rewriting")
SHOWN = ("domain", *GENERAL, "domain_instructions", "skills")
BOOTSTRAP = Bootstrap(confidence=0.95, samples=2000, seed=0)

Rows = dict[int, dict[str, Any]]  # seed -> line of the study


def outcomes(rows: Rows, task: str, sources: tuple[str, ...]) -> Outcomes:
    values = np.array([[float(mark) for mark in row["outcomes"][task]] for row in rows.values()])
    seeds: tuple[int | None, ...] = tuple(seed if row["arm"] else None for seed, row in rows.items())
    return Outcomes(values, seeds, sources)


def percent(estimate: Estimate | None, signed: bool = False) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return "-"
    form = "{:+.1f} ({:+.1f} to {:+.1f})" if signed else "{:.1f} ({:.1f} to {:.1f})"
    return form.format(*(100 * value for value in (estimate.estimate, estimate.low, estimate.high)))


class Table:
    """All arms at one world, domain and learning rate. Epochs belong to the arm."""

    def __init__(self, lines: list[dict[str, Any]], base: dict[str, Any]) -> None:
        self.sources = {task: tuple(found) for task, found in base["sources"].items()}
        self.base: Rows = {0: base}
        self.arms: dict[str, Rows] = {}
        for line in sorted(lines, key=lambda line: line["seed"]):
            self.arms.setdefault(line["arm"], {})[line["seed"]] = line

    def tasks(self, rows: Rows, names: tuple[str, ...]) -> list[Outcomes]:
        return [outcomes(rows, name, self.sources[name]) for name in names]

    def compared(self, arm: str, other: str, names: tuple[str, ...]) -> Estimate | None:
        """arm - other over the seeds that both have."""
        mine, theirs = self.arms[arm], self.arms.get(other, {})
        seeds = [seed for seed in mine if seed in theirs]
        if not seeds:
            return None
        sides = [self.tasks({seed: rows[seed] for seed in seeds}, names) for rows in (mine, theirs)]
        return difference(*sides, BOOTSTRAP)

    def lines(self, arms: list[str], against: str) -> list[str]:
        head = ["arm", "seeds", *SHOWN, "general", "kept", f"domain - {against}", f"general - {against}", "s"]
        made = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
        base = self.base[0]["scores"]
        general = 100 * sum(base[name] for name in GENERAL) / len(GENERAL)
        cells = [f"{100 * base[name]:.1f}" for name in SHOWN]
        made.append(f"| base | | {' | '.join(cells)} | {general:.1f} | 100 | | | |")
        for arm in arms:
            if arm not in self.arms:
                continue
            rows = self.arms[arm]
            shown = [f"{100 * mean(self.tasks(rows, (name,)), BOOTSTRAP).estimate:.1f}" for name in SHOWN]
            overall = self.tasks(rows, GENERAL)
            kept = ratio(overall, self.tasks(self.base, GENERAL), BOOTSTRAP)
            differences = [
                "" if arm == against else percent(self.compared(arm, against, names), signed=True)
                for names in (("domain",), GENERAL)
            ]
            seconds = np.mean([row["seconds"] for row in rows.values()])
            cells = [arm, str(len(rows)), *shown, percent(mean(overall, BOOTSTRAP)), percent(kept), *differences]
            made.append("| " + " | ".join(cells) + f" | {seconds:.0f} |")
        return made


def main() -> None:
    name = sys.argv[1]
    lines = list(results_of(name).values())
    bases = {(line["world"], line["domain"]): line for line in lines if line["arm"] is None}
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for line in lines:
        if line["arm"] is not None:
            groups.setdefault((line["world"], line["domain"], line["rate"]), []).append(line)
    print(f"{STUDIES / name}.jsonl: {len(lines)} models")
    for (world, domain, rate), own in sorted(groups.items()):
        table = Table(own, bases[world, domain])
        print(f"\n### {world} world, {domain}, learning rate {rate:g}\n")
        print("\n".join(table.lines(list(table.arms), "fused_sft")))


if __name__ == "__main__":
    main()
