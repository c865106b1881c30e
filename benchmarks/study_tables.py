"""The tables of a study (benchmarks/study.py) as Markdown, and its frontiers as pictures, as its file's `tables` ask.

    python benchmarks/study_tables.py pocket [FOLDER]      FOLDER: where the frontiers' pictures go (docs)

Numbers are means over seeds and domains, in percent. "general" is the plain average of recall, instructions, reading
and rewriting; "kept" is general / the base's general. Differences are paired, over the same items and the seeds that
both sides have. 95 % intervals let items (a fact's go together) and seeds vary, not domains. A table of `tables`:

    {title, world, domains, rate, epochs, arms, against}         a line an arm; `seeds: [..]` takes these alone
    {title, ..., by: facts, asked: 0.5}                          of facts that rows ask for, and of the others
    {title, ..., cost: true}                                     ... CPU seconds and peak memory of the first training
    {title, ..., by: pair, pairs: [[arm, other], ...]}           arm - other, a line a pair
    {title, ..., by: domain}                                     domain accuracy and general score in each domain
    {title, world, domains, rates, epochs, arms, by: setting, main}    the frontier: a line a rate and length, and a
                                                                 picture, in which `main` [rate, epochs] is solid
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from study import STUDIES, is_asked, results_of

from raft_tasks.evaluation.statistics import Bootstrap, Estimate, Outcomes, difference, mean, ratio
from raft_tasks.reporting.figures.panel import styles_of
from raft_tasks.reporting.figures.scores import frontier
from raft_tasks.reporting.frontier import AXES, undominated
from raft_tasks.reporting.study import BASE

GENERAL = ("recall", "instructions", "reading", "rewriting")
OF_DOMAIN = ("domain", "domain_instructions")  # every domain has its own items
SHOWN = ("domain", *GENERAL, "domain_instructions", "skills")
BOOTSTRAP = Bootstrap(confidence=0.95, samples=2000, seed=0)

Line = dict[str, Any]
Rows = dict[int, list[Line]]  # seed -> its line of the study in each domain


def outcomes(rows: Rows, bases: list[Line], task: str) -> Outcomes:
    """Of several domains: its own items of each one after the other, the items that all share as their mean."""
    by_seed = [[[float(mark) for mark in line["outcomes"][task]] for line in lines] for lines in rows.values()]
    seeds: tuple[int | None, ...] = tuple(seed if lines[0]["arm"] else None for seed, lines in rows.items())
    if task in OF_DOMAIN:
        sources = tuple(f"{base['domain']} {source}" for base in bases for source in base["sources"][task])
        return Outcomes(np.array([np.concatenate(found) for found in by_seed]), seeds, sources)
    return Outcomes(np.array([np.mean(found, axis=0) for found in by_seed]), seeds, tuple(bases[0]["sources"][task]))


def percent(estimate: Estimate | None, signed: bool = False) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return "-"
    form = "{:+.1f} ({:+.1f} to {:+.1f})" if signed else "{:.1f} ({:.1f} to {:.1f})"
    return form.format(*(100 * value for value in (estimate.estimate, estimate.low, estimate.high)))


class Table:
    """The arms of one world at one learning rate, over some domains; of each arm the seeds that all of them have."""

    def __init__(self, lines: list[Line], asked: dict[str, Any]) -> None:
        mine = [line for line in lines if line["world"] == asked["world"] and line["domain"] in asked["domains"]]
        self.bases = [line for line in mine if line["arm"] is None]
        self.with_cost, self.share = asked.get("cost", False), asked.get("asked", 1.0)
        self.arms: dict[str, Rows] = {}
        for arm in asked["arms"]:
            seeds: Rows = {}
            for line in sorted(mine, key=lambda line: asked["domains"].index(line["domain"])):
                setting = (arm, asked["rate"], asked["own_epochs"].get(arm, asked["epochs"]))
                fits = (line["arm"], line["rate"], line["epochs"]) == setting
                if fits and line["seed"] in asked.get("seeds", [line["seed"]]):
                    seeds.setdefault(line["seed"], []).append(line)
            whole = {seed: found for seed, found in sorted(seeds.items()) if len(found) == len(asked["domains"])}
            if whole:
                self.arms[arm] = whole

    def tasks(self, rows: Rows, names: tuple[str, ...]) -> list[Outcomes]:
        return [outcomes(rows, self.bases, name) for name in names]

    def of_base(self, names: tuple[str, ...]) -> list[Outcomes]:
        return self.tasks({0: self.bases}, names)

    def mean(self, arm: str, names: tuple[str, ...]) -> Estimate:
        return mean(self.tasks(self.arms[arm], names), BOOTSTRAP)

    def compared(self, arm: str, other: str, names: tuple[str, ...]) -> Estimate | None:
        """arm - other over the seeds that both have."""
        mine, theirs = self.arms[arm], self.arms.get(other, {})
        seeds = [seed for seed in mine if seed in theirs]
        if not seeds:
            return None
        left, right = (self.tasks({seed: rows[seed] for seed in seeds}, names) for rows in (mine, theirs))
        return difference(left, right, BOOTSTRAP)

    def cost(self, rows: Rows) -> list[str]:
        """Seconds on average; or CPU seconds and peak memory of the first training, "-" where not recorded."""
        if not self.with_cost:
            return [f"{np.mean([line['seconds'] for lines in rows.values() for line in lines]):.0f}"]
        first = rows[min(rows)][0]
        if "cpu_seconds" not in first:
            return ["-", "-"]
        return [f"{first['cpu_seconds']:.0f}", f"{first['peak_bytes'] / 2**30:.2f}"]

    def lines(self, against: str) -> list[str]:
        head = ["arm", "seeds", *SHOWN, "general", "kept", f"domain - {against}", f"general - {against}"]
        head += ["CPU s", "GB"] if self.with_cost else ["s"]
        cells = [f"{100 * mean(self.of_base((name,)), BOOTSTRAP).estimate:.1f}" for name in SHOWN]
        general = 100 * mean(self.of_base(GENERAL), BOOTSTRAP).estimate
        made = [["base", "", *cells, f"{general:.1f}", "100", "", "", *("" for _ in head[len(cells) + 6 :])]]
        for arm, rows in self.arms.items():
            kept = ratio(self.tasks(rows, GENERAL), self.of_base(GENERAL), BOOTSTRAP)
            made.append(
                [
                    arm,
                    str(len(rows)),
                    *(f"{100 * self.mean(arm, (name,)).estimate:.1f}" for name in SHOWN),
                    percent(self.mean(arm, GENERAL)),
                    percent(kept),
                    *(
                        "" if arm == against else percent(self.compared(arm, against, names), signed=True)
                        for names in (("domain",), GENERAL)
                    ),
                    *self.cost(rows),
                ]
            )
        return markdown(head, made)


def by_facts(table: Table, against: str) -> list[str]:
    """A line an arm; the domain's accuracy on facts that rows asked for and on those in documents alone."""

    def of(rows: Rows, asked: bool) -> list[Outcomes]:
        (every,) = table.tasks(rows, ("domain",))
        places = [n for n, name in enumerate(every.sources) if is_asked(name.split(" ", 1)[1], table.share) == asked]
        return [Outcomes(every.values[:, places], every.seeds, tuple(every.sources[n] for n in places))]

    made = []
    for arm, rows in {BASE: {0: table.bases}, **table.arms}.items():
        seen = [f"{100 * mean(of(rows, asked), BOOTSTRAP).estimate:.1f}" for asked in (True, False)]
        scored = mean(table.tasks(rows, GENERAL), BOOTSTRAP).estimate
        compared = [
            difference(of(rows, False), of(table.arms[against], False), BOOTSTRAP),
            difference(table.tasks(rows, GENERAL), table.tasks(table.arms[against], GENERAL), BOOTSTRAP),
        ]
        told = ["", ""] if arm in (BASE, against) else [percent(found, signed=True) for found in compared]
        seconds = np.mean([line.get("seconds", 0.0) for lines in rows.values() for line in lines])
        made.append([arm, str(len(rows)), *seen, f"{100 * scored:.1f}", *told, f"{seconds:.0f}"])
    head = [
        "arm",
        "seeds",
        "asked",
        "documents alone",
        "general",
        f"documents alone - {against}",
        f"general - {against}",
    ]
    return markdown([*head, "s"], made)


def by_pair(lines: list[Line], asked: dict[str, Any]) -> list[str]:
    """A line a pair, paired over the seeds that both have."""
    table = Table(lines, {**asked, "arms": sorted({arm for pair in asked["pairs"] for arm in pair})})
    made = []
    for arm, other in asked["pairs"]:
        changes = [table.compared(arm, other, names) for names in (("domain",), GENERAL)]
        made.append([f"{arm} - {other}", *(percent(change, signed=True) for change in changes)])
    return markdown(["", "domain", "general"], made)


def by_domain(lines: list[Line], asked: dict[str, Any]) -> list[str]:
    """A line an arm; for each domain its accuracy and the general score that its training leaves."""
    tables = {domain: Table(lines, {**asked, "domains": [domain]}) for domain in asked["domains"]}
    made = []
    for arm in asked["arms"]:
        cells = [
            " / ".join(f"{100 * table.mean(arm, names).estimate:.1f}" for names in (("domain",), GENERAL))
            if arm in table.arms
            else "-"
            for table in tables.values()
        ]
        made.append([arm, *cells])
    return markdown(["arm", *(f"{domain}: domain / general" for domain in tables)], made)


def by_setting(lines: list[Line], asked: dict[str, Any]) -> tuple[list[str], str]:
    """A line a rate and length, an arm a column; what no other point beats on both is bold. And the picture."""
    settings = [(float(rate), epochs) for epochs in asked["epochs"] for rate in asked["rates"]]
    tables = {(rate, epochs): Table(lines, {**asked, "rate": rate, "epochs": epochs}) for rate, epochs in settings}
    points = [_point(arm, setting, table, table.arms[arm]) for setting, table in tables.items() for arm in table.arms]
    points.append(_point(BASE, None, (any_table := next(iter(tables.values()))), {0: any_table.bases}))
    best = undominated([(point["domain_acc"]["estimate"], point["general"]["estimate"]) for point in points])
    cell = {}
    for place, point in enumerate(points):
        point["best"] = place in best
        text = " / ".join(f"{100 * point[axis]['estimate']:.1f}" for axis in AXES)
        cell[point["method"], point["setting"]] = f"**{text}**" if point["best"] else text
    made = [
        [str(epochs), f"{rate:g}", *(cell.get((arm, (rate, epochs)), "-") for arm in asked["arms"])]
        for rate, epochs in settings
    ]
    head = ["epochs", "rate", *(f"{arm}: domain / general" for arm in asked["arms"])]
    main = (float(asked["main"][0]), asked["main"][1])
    drawn: Any = [{**point, "setting": None if point["setting"] == main else point["setting"]} for point in points]
    return markdown(head, made), frontier(drawn, {}, styles_of(asked["arms"]))


def _point(method: str, setting: tuple[float, int] | None, table: Table, rows: Rows) -> dict[str, Any]:
    scores = [mean(table.tasks(rows, names), BOOTSTRAP) for names in (("domain",), GENERAL)]
    places = [{"estimate": score.estimate, "low": score.low, "high": score.high} for score in scores]
    return {
        "method": method,
        "setting": setting,
        "line": setting and setting[1],
        **dict(zip(AXES, places, strict=True)),
    }


def markdown(head: list[str], lines: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|---|" + "---:|" * (len(head) - 1),
        *("| " + " | ".join(cells) + " |" for cells in lines),
    ]


def main() -> None:
    name, *folder = sys.argv[1:]
    lines = list(results_of(name).values())
    study = yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))
    own_epochs = {name: arm["epochs"] for name, arm in study["arms"].items() if "epochs" in arm}
    print(f"{STUDIES / name}.jsonl: {len(lines)} models")
    measured = {(line["world"], line["domain"]) for line in lines if line["arm"] is None}
    for table in study["tables"]:
        if not measured.issuperset((table["world"], domain) for domain in table["domains"]):
            print(f"\n### {table['title']}\n\nnot run yet")
            continue
        table["own_epochs"], picture = own_epochs, None
        if table.get("by") == "setting":
            made, picture = by_setting(lines, table)
        elif table.get("by") == "domain":
            made = by_domain(lines, table)
        elif table.get("by") == "pair":
            made = by_pair(lines, table)
        elif table.get("by") == "facts":
            made = by_facts(Table(lines, table), table["against"])
        else:
            made = Table(lines, table).lines(table["against"])
        print(f"\n### {table['title']}\n", *made, sep="\n")
        if picture and folder:
            title = re.sub(r"[^a-z0-9]+", "-", table["title"].lower()).strip("-")
            path = Path(folder[0]) / f"{name}-{title}.svg"
            path.write_text(picture, encoding="utf-8")
            print(f"\n![{table['title']}]({path.name})")


if __name__ == "__main__":
    main()
