"""Models from anywhere, compared by the report's statistics, tables and figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raft_tasks.config import Report
from raft_tasks.evaluation.statistics import Bootstrap
from raft_tasks.reporting.figures.panel import Styles, styles_of
from raft_tasks.reporting.flips import find_flips, select_flips
from raft_tasks.reporting.measures import Roles, measure_models, single_parts
from raft_tasks.reporting.metrics import Comparison, DomainMetrics
from raft_tasks.reporting.origin import Origin
from raft_tasks.reporting.report import page_environment, render
from raft_tasks.reporting.study import BASE, Answered
from raft_tasks.reporting.views import domain_frontier
from raft_tasks.reporting.wording import MEASURE_NAMES, compare_in_words, describe_changes, label

REFERENCE = "sft"  # a model of this name is plain SFT: the fraction of its loss that the others recover is counted


def measure_side_by_side(
    domains: Mapping[str, Answered], tasks: list[str], models: Mapping[str, list[str]], report: Report
) -> Comparison:
    """Every number of the comparison.

    Args:
        domains: answers by domain, of the same models in each.
        models: what the command called every model, by name; BASE among them.
    """
    bootstrap = Bootstrap(report.confidence, report.bootstrap_samples, report.seed)
    runs = next(iter(domains.values())).runs
    reference = REFERENCE if REFERENCE in runs else None
    return {
        "confidence": report.confidence,
        "models": dict(models),
        "seeds": [run.seed for run in next(iter(runs.values()))],
        "reference": reference,
        "domains": {
            name: measure_models(name, answers, tasks, Roles(reference), bootstrap) for name, answers in domains.items()
        },
    }


def write_side_by_side(
    domains: Mapping[str, Answered], metrics: Comparison, report: Report, origin: Origin, command: str, folder: Path
) -> None:
    """Write report.html and report.md of `metrics` into `folder`; `command` is the command line that makes them."""
    names = list(next(iter(domains.values())).runs)
    styles = styles_of(names)
    environment = page_environment(styles)
    view = {
        "domains": [
            _domain_view(name, answers, metrics["domains"][name], styles, report.flips)
            for name, answers in domains.items()
        ],
        "metrics": metrics,
        "models": metrics["models"],
        "names": names,
        "report": report,
        "reference": metrics["reference"],
        "candidate": None,
        "redo_command": command,
        "origin": origin,
    }
    for suffix in ("html", "md"):
        render(environment, f"side_by_side.{suffix}.jinja", view, folder / f"report.{suffix}")


def _domain_view(
    name: str, answers: Answered, scored: DomainMetrics, styles: Styles, flip_count: int
) -> dict[str, Any]:
    against_base = {method: scored["methods"][method]["against_base"] for method in answers.runs}
    measures = [key for key in MEASURE_NAMES if key in scored["measures"] and key != "domain_complete"]
    return {
        "name": name,
        "metrics": scored,
        "headlines": [
            compare_in_words(method, BASE, {measure: row["verdict"] for measure, row in changes.items()})
            for method, changes in against_base.items()
        ],
        "sentences": [
            describe_changes(f"{label(method)} against {BASE}", changes, measures)
            for method, changes in against_base.items()
        ],
        "figures": {"frontier": domain_frontier(scored, styles), "changes": []},
        "flips": select_flips(find_flips(answers, single_parts(scored["measures"])), flip_count),
    }
