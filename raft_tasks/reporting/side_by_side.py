"""Models that no run of the pipeline ties together, compared by the report's own statistics, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft_tasks.artifacts import atomic_file
from raft_tasks.config import Report
from raft_tasks.evaluation.statistics import Bootstrap
from raft_tasks.reporting import figures
from raft_tasks.reporting.flips import chosen, flips
from raft_tasks.reporting.frontier import frontier_points
from raft_tasks.reporting.report import MEASURE_NAMES, Origin, compared, described, page_environment
from raft_tasks.reporting.study import BASE, Benchmarked, Run
from raft_tasks.reporting.tables import label, measure_models, single_parts
from raft_tasks.schemas import Example

REFERENCE = "sft"  # a model of this name is plain fine-tuning: what the others recover of its loss is counted


@dataclass(frozen=True)
class Answers:
    """Of the models on one domain's held-out questions and on the general tasks; an `Answered` of reporting.study."""

    test: list[Example]
    base: Benchmarked
    runs: Mapping[str, list[Run]]


def measure_side_by_side(
    domains: Mapping[str, Answers], tasks: list[str], whats: Mapping[str, list[str]], report: Report
) -> dict[str, Any]:
    """Every number of the comparison, JSON-ready.

    Args:
        domains: answers by domain, the same models in each.
        whats: what the command called every model, by name; BASE among them.
    """
    bootstrap = Bootstrap(report.confidence, report.bootstrap_samples, report.seed)
    runs = next(iter(domains.values())).runs
    reference = REFERENCE if REFERENCE in runs else None
    found = {
        name: measure_models(name, answers, tasks, reference, None, bootstrap) for name, answers in domains.items()
    }
    return {
        "confidence": report.confidence,
        "models": dict(whats),
        "seeds": [run.seed for run in next(iter(runs.values()))],
        "reference": reference,
        "domains": {
            name: {**one, "frontier": frontier_points(one["methods"], [], name) if tasks else []}
            for name, one in found.items()
        },
    }


def write_side_by_side(
    domains: Mapping[str, Answers], metrics: dict[str, Any], report: Report, origin: Origin, again: str, folder: Path
) -> None:
    """Write report.html and report.md of `metrics` into `folder`; `again` is the command that makes them."""
    environment = page_environment()
    names = list(next(iter(domains.values())).runs)
    style = figures.styles_of(names)
    environment.globals["colour_of"] = {name: colour for name, (colour, _) in style.items()}
    views = []
    for name, answers in domains.items():
        found = metrics["domains"][name]
        seeds = {method: row["per_seed"] for method, row in found["methods"].items()}
        views.append(
            {
                "name": name,
                "found": found,
                "headlines": [
                    compared(
                        one,
                        BASE,
                        {
                            measure: change["verdict"]
                            for measure, change in found["methods"][one]["against_base"].items()
                        },
                    )
                    for one in names
                ],
                "sentences": sentences(found, names),
                "figures": {
                    "frontier": (
                        "Up is more of the domain, right is more of what the base could do.",
                        [figures.frontier(found["frontier"], seeds, style)] if found["frontier"] else [],
                    ),
                    "changes": ("", []),
                },
                "flips": chosen(flips(answers, single_parts(found["measures"])), report.flips),
            }
        )
    seen = {
        "domains": views,
        "metrics": metrics,
        "models": metrics["models"],
        "names": names,
        "report": report,
        "reference": metrics["reference"],
        "candidate": None,
        "again": again,
        "origin": origin,
    }
    for template, output in (
        ("side_by_side.html.jinja", "report.html"),
        ("side_by_side.md.jinja", "report.md"),
    ):
        with atomic_file(folder / output) as temporary:
            temporary.write_text(environment.get_template(template).render(seen), encoding="utf-8")


def sentences(found: dict[str, Any], names: list[str]) -> list[str]:
    """The numbers behind the headlines: every model against the base."""
    measured = [one for one in MEASURE_NAMES if one in found["measures"] and one != "domain_complete"]
    return [
        f"{label(name)} against {BASE}: "
        + "; ".join(
            f"{MEASURE_NAMES[one]} score {described(found['methods'][name]['against_base'][one])}" for one in measured
        )
        + "."
        for name in names
    ]
