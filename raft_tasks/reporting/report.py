"""The report: one self-contained HTML page and a short Markdown; sentences about results are read off the numbers."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft_tasks.artifacts import atomic_file, digest_path
from raft_tasks.reporting import wording
from raft_tasks.reporting.figures.panel import Styles, prefix_ids, styles_of
from raft_tasks.reporting.figures.training import AXIS_RANGE, SMOOTHING_STEPS
from raft_tasks.reporting.metrics import Metrics, less_is_better
from raft_tasks.reporting.origin import Origin
from raft_tasks.reporting.paper import ablation_table, load_paper, main_table, our_measures
from raft_tasks.reporting.refinement import OUTCOMES
from raft_tasks.reporting.study import BASE, Study
from raft_tasks.reporting.views import (
    anchors_view,
    domain_view,
    method_settings,
    overall_frontier,
    paper_panels,
    question_views,
    sweep_views,
)  # fmt: skip

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
PACKAGES = ("torch", "transformers", "lm_eval", "datasets", "sentence-transformers", "prefect", "dvc", "numpy", "scipy")
FRONTIER_CAPTION = (
    "Higher is more of the domain, further right is more of what the base could do. Large marks are means with their "
    "intervals, small ones single seeds, hollow ones other learning rates or epochs from the sweeps. No model is "
    "better on both axes than one on the Pareto line."
)


def write_report(study: Study, metrics: Metrics, origin: Origin, output: Path) -> None:
    """Write the page of what `collect` read and `measure` made of it."""
    config, paper, overall = study.config, load_paper(), metrics["overall"]
    ours = our_measures(paper, overall["measures"])
    styles = styles_of(config.run.methods)
    environment = page_environment(styles)
    view = {
        **_shared_view(metrics, origin),
        "domains": [domain_view(study, metrics, styles, name) for name in config.run.domains],
        "frontier": overall_frontier(metrics, styles),
        "questions": question_views(study, metrics),
        "paper": paper,
        "paper_rows": main_table(paper, overall),
        "paper_measures": ours,
        "ablation_rows": ablation_table(paper, metrics["domains"], ours),
        "paper_figures": paper_panels(paper, metrics, styles),
        "sweeps": sweep_views(study.sweeps, paper),
        "anchors": [anchors_view(name, anchors, config) for name, anchors in study.anchors.items()],
        "config": config,
        "report": config.report,
        "method_settings": method_settings(config),
        "known_facts": [
            name
            for name in config.run.domains
            if (split := config.domains[name].split).by == "column" and split.sources_may_straddle
        ],
        "redo_command": "dvc repro -sf report",
        "outcomes": OUTCOMES,
        "smoothing_steps": SMOOTHING_STEPS,
        "axis_range": AXIS_RANGE,
        "inputs": [(file, digest_path(file.path)) for file in study.files],
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
    }
    render(environment, "report.html.jinja", view, output)


def write_summary(metrics: Metrics, origin: Origin, output: Path) -> None:
    """Write the verdicts and one table per domain as Markdown, short enough for a pull request."""
    render(page_environment(), "report.md.jinja", _shared_view(metrics, origin), output)


def _shared_view(metrics: Metrics, origin: Origin) -> dict[str, Any]:
    overall = metrics["overall"]
    return {
        "metrics": metrics,
        "overall": overall,
        "headline": wording.headline(metrics, overall),
        "second_headline": wording.second_headline(metrics, overall),
        "sentences": wording.sentences(metrics, overall),
        "reference": metrics["reference"],
        "candidate": metrics["candidate"],
        "origin": origin,
    }


def render(environment: Environment, template: str, view: Mapping[str, Any], output: Path) -> None:
    with atomic_file(output) as temporary:
        temporary.write_text(environment.get_template(template).render(view), encoding="utf-8")


def page_environment(styles: Styles | None = None) -> Environment:
    """Jinja's environment with the report's filters; `styles` gives the methods their colours."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(enabled_extensions=("html.jinja", "jinja"), disabled_extensions=("md.jinja",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "points": wording.points,
        "label": wording.label,
        "prefix_ids": prefix_ids,
        "measure_name": wording.measure_name,
    }
    environment.tests["less_is_better"] = less_is_better
    environment.globals |= {
        "base": BASE,
        "label": wording.label,
        "percent": wording.percent,
        "number": wording.number,
        "p_value": wording.p_value,
        "name_of": wording.measure_name,
        "colour_of": {method: colour for method, (colour, _) in (styles or {}).items()},
        "frontier_caption": FRONTIER_CAPTION,
    }
    return environment
