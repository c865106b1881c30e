"""The report: one self-contained HTML page in which every sentence about a result is read off the numbers."""

from __future__ import annotations

import os
import platform
import random
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft_tasks.artifacts import atomic_file, digest_path
from raft_tasks.config import Config
from raft_tasks.evaluation.harness import DOMAIN_TASK
from raft_tasks.evaluation.statistics import Verdict
from raft_tasks.reporting import figures
from raft_tasks.reporting.flips import chosen, flips
from raft_tasks.reporting.paper import ABLATION, ablation_table, beside, load_paper, main_table
from raft_tasks.reporting.refinement import OUTCOMES, marked, outcome, sample
from raft_tasks.reporting.study import BASE, AnchorSet, DomainStudy, Study
from raft_tasks.reporting.tables import label, percent, points, single_parts
from raft_tasks.schemas import Fused

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
PACKAGES = ("torch", "transformers", "lm_eval", "datasets", "sentence-transformers", "prefect", "dvc", "numpy", "scipy")
FRONTIER_CAPTION = (
    "Up is more of the domain, right is more of what the base could do. Large marks are means with their intervals, "
    "small ones single seeds, hollow ones other learning rates or epochs from the sweeps; no model beats those on the "
    "Pareto line on both."
)
OPPOSITE: dict[Verdict, Verdict] = {
    "higher": "lower",
    "lower": "higher",
    "no clear difference": "no clear difference",
}
MEASURE_NAMES = {
    "domain_acc": "domain",
    "domain_complete": "domain, complete",
    "domain_judged": "domain, judged",
    "general": "general",
}


@dataclass(frozen=True)
class Origin:
    """What made the numbers, beside the artifacts."""

    git_revision: str | None  # of the code; None where there is none to name
    data: dict[str, str]  # path of a data set -> its version, as DVC notes it


def write_report(study: Study, metrics: dict[str, Any], origin: Origin, output: Path) -> None:
    """Write the page.

    Args:
        study: what `collect` read.
        metrics: what `measure` made of it.
    """
    environment = page_environment()
    config, paper, overall = study.config, load_paper(), metrics["overall"]
    environment.globals["colour_of"] = {method: style[0] for method, style in figures.styles(config).items()}
    domains = [
        {
            "name": name,
            "found": metrics["domains"][name],
            "headline": headline(metrics, metrics["domains"][name]),
            "sentences": sentences(metrics, metrics["domains"][name]),
            "figures": _figures(study, metrics, paper, name),
            "flips": chosen(
                flips(study.domains[name], single_parts(metrics["domains"][name]["measures"])), config.report.flips
            ),
            "sample": [
                _sample_view(row) for row in sample(study.domains[name].fused, config.report.sample, config.report.seed)
            ],
            "examples": [
                _example_view(row, study.domains[name], config) for row in _examples(study.domains[name], config)
            ],
        }
        for name in config.run.domains
    ]
    page = environment.get_template("report.html.jinja").render(
        domains=domains,
        metrics=metrics,
        overall=overall,
        headline=headline(metrics, overall),
        second_headline=second_headline(metrics, overall),
        sentences=sentences(metrics, overall),
        frontier=_frontier(study, metrics),
        paper=paper,
        paper_rows=main_table(paper, overall),
        paper_ours=beside(paper, overall["measures"]),
        ablation_rows=ablation_table(paper, metrics["domains"]),
        paper_figures=_paper_figures(study, metrics, paper),
        sweeps=_sweeps(study, paper),
        anchors=[_anchors_view(name, anchors, study) for name, anchors in study.anchors.items()],
        config=config,
        report=config.report,
        again="dvc repro -sf report",
        reference=metrics["reference"],
        candidate=metrics["candidate"],
        outcomes=OUTCOMES,
        limits=limits(study),
        inputs=[(file, digest_path(file.path)) for file in study.files],
        origin=origin,
        versions={"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
    )
    with atomic_file(output) as temporary:
        temporary.write_text(page, encoding="utf-8")


def write_summary(metrics: dict[str, Any], origin: Origin, output: Path) -> None:
    """Write the verdicts and one table per domain as Markdown, short enough for a pull request."""
    overall = metrics["overall"]
    text = (
        page_environment()
        .get_template("report.md.jinja")
        .render(
            metrics=metrics,
            overall=overall,
            headline=headline(metrics, overall),
            second_headline=second_headline(metrics, overall),
            sentences=sentences(metrics, overall),
            reference=metrics["reference"],
            candidate=metrics["candidate"],
            origin=origin,
            page="reports/report.html",
            numbers="reports/metrics.json",
            again="dvc repro",
        )
    )
    with atomic_file(output) as temporary:
        temporary.write_text(text, encoding="utf-8")


def page_environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(enabled_extensions=("html.jinja", "jinja"), disabled_extensions=("md.jinja",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["points"] = points
    environment.filters["within"] = figures.within
    environment.globals["base"] = BASE
    environment.globals["label"] = label
    environment.globals["percent"] = percent
    environment.globals["name_of"] = lambda measure: MEASURE_NAMES.get(measure, measure.replace("_", " "))
    environment.globals["chance"] = lambda p: "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    environment.globals["number"] = lambda value: (
        "–" if value is None else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
    )
    return environment


def headline(metrics: dict[str, Any], found: dict[str, Any]) -> str:
    """One sentence that the paired intervals support: what RAFT does that plain fine-tuning does not.

    `found` is a domain's part of `metrics`, or the one of all domains together.
    """
    candidate, reference = metrics["candidate"], metrics["reference"]
    if not candidate or not reference:
        return "Scores of every method; RAFT and plain fine-tuning were not both run, so they are not compared."
    change = found["methods"][candidate]["against_reference"]
    return compared(candidate, reference, {measure: one["verdict"] for measure, one in change.items()})


def second_headline(metrics: dict[str, Any], found: dict[str, Any]) -> str | None:
    """The same of the method that is held to anchors, against RAFT; None where one of them was not run."""
    candidate, anchored = metrics["candidate"], metrics["anchored"]
    if not candidate or not anchored or anchored == candidate:
        return None
    change = found["methods"][anchored]["candidate_against_it"]
    return compared(anchored, candidate, {measure: OPPOSITE[one["verdict"]] for measure, one in change.items()})


def compared(method: str, other: str, verdicts: dict[str, Verdict]) -> str:
    subject, beside_it = label(method), label(other)
    subject = subject[0].upper() + subject[1:]
    in_domain = {
        "higher": f"{subject} learned more of the domain than {beside_it}",
        "lower": f"{subject} learned less of the domain than {beside_it}",
        "no clear difference": f"{subject} shows no clear difference from {beside_it} in the domain",
    }[verdicts["domain_acc"]]
    if "general" not in verdicts:
        return f"{in_domain}."
    in_general = {
        "higher": "kept more of what the model could do before",
        "lower": "kept less of what the model could do before",
        "no clear difference": "shows no clear difference in general ability",
    }[verdicts["general"]]
    opposed = {verdicts["domain_acc"], verdicts["general"]} == {"higher", "lower"}
    return f"{in_domain}, {'but' if opposed else 'and'} {in_general}."


def sentences(metrics: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """The numbers behind the headlines, in words: RAFT against plain fine-tuning, its own first half, and anchors."""
    candidate, reference, anchored = metrics["candidate"], metrics["reference"], metrics["anchored"]
    if not candidate:
        return []
    measured = [one for one in ("domain_acc", "general") if one in found["measures"]]
    others = {reference: ""} if reference else {}
    others |= dict.fromkeys(
        metrics["same_answers_without_teacher"], ", which learns the same answers without a teacher"
    )
    if anchored and anchored != candidate:
        others[anchored] = ", which is held to anchors"
    lines = []
    for other, why in others.items():
        change = found["methods"][other]["candidate_against_it"]
        parts = [f"{MEASURE_NAMES[one]} score {described(change[one])}" for one in measured]
        lines.append(f"{label(candidate)} against {label(other)}{why}: {'; '.join(parts)}.")
    return lines


def described(change: dict[str, Any]) -> str:
    value, interval = percent(change, signed=True)
    shown = f"{value} points" + (f", {interval}" if interval else "")
    return f"{'not clearly different' if change['verdict'] == 'no clear difference' else change['verdict']} ({shown})"


def _figures(study: Study, metrics: dict[str, Any], paper: dict[str, Any], name: str) -> dict[str, Any]:
    """(caption, panels) of each section of a domain."""
    domain, found, style = study.domains[name], metrics["domains"][name], figures.styles(study.config)
    reference = metrics["reference"]
    measured = {"domain_acc": "Domain accuracy"} | (
        {"general": "General score"} if "general" in found["measures"] else {}
    )
    changes = [
        figures.changes(found, reference, style, measure, title) for measure, title in measured.items() if reference
    ]
    losses = [
        figures.curves(domain, style, column, label, level)
        for column, label, level in (
            ("l_sft", "Cross-entropy of the answers, L_SFT", None),
            ("l_kl", "Distance to the teacher, L_KL", None),
            ("l_anchor", "Distance to the base on anchors, L_anchor", None),
            ("lambda", "Weight of the teacher, lambda", 1.0),
            ("ce_kl_ratio", "Balance, L_SFT / (lambda L_KL)", 1.0),
        )
        if figures.has_column(domain, column)
    ]
    return {
        "frontier": (
            FRONTIER_CAPTION,
            # with one domain the page's first figure shows just this
            [_frontier_figure(found, style)] if len(study.domains) > 1 and found["frontier"] else [],
        ),
        "changes": ("A change whose bar meets the line at 0 is not clear.", changes),
        "data": (
            "Cosine similarity of every rewrite to its reference: what is left of the threshold is replaced by the "
            "reference. Words of the reference answers and of what is learned instead. Mean score of every judge, for "
            "the rewrites as they came and for the answers chosen in their place.",
            [
                figures.similarities(found["refinement"]),
                figures.lengths(found["refinement"]),
                *(
                    [figures.judges(found["refinement"])]
                    if found["refinement"]["mean_fusion_score"] is not None
                    else []
                ),
            ],
        ),
        "analysis": (
            "The same distance layer by layer and by kind of weight matrix, of the model that was benchmarked.",
            [
                figures.distances_by(found, style, "layers", "Distance to the base, by layer"),
                figures.distances_by(found, style, "matrices", "Distance to the base, by kind of matrix"),
            ],
        ),
        "training": [
            (
                f"Mean over seeds within their range, as a moving average over {figures.SMOOTHED} steps. Methods "
                "without a teacher have a cross-entropy only. Dashed: 1, where both losses weigh alike. Lambda and the "
                f"balance are cut at {figures.FARTHEST} and at 1/{figures.FARTHEST}. The paper: {paper['ratio']}",
                losses,
            ),
            (
                "How far all weights together are from the base, |W \N{MINUS SIGN} W0| / |W0|: the mean as a bar, "
                "every seed as a mark. The paper (SmolLM3-3B): "
                f"{', '.join(f'{label(method)} {moved}' for method, moved in paper['distance'].items())}.",
                [figures.distances(found, style)],
            ),
        ],
    }


def _frontier(study: Study, metrics: dict[str, Any]) -> tuple[str, list[str]]:
    overall, style = metrics["overall"], figures.styles(study.config)
    if not overall["frontier"]:
        return FRONTIER_CAPTION, []
    if len(study.domains) == 1:
        return FRONTIER_CAPTION, [_frontier_figure(next(iter(metrics["domains"].values())), style)]
    return (
        f"Averages over {len(study.domains)} domains. {FRONTIER_CAPTION}",
        [figures.frontier(overall["frontier"], {}, style)],
    )


def _frontier_figure(domain: dict[str, Any], style: dict[str, tuple[str, str]]) -> str:
    seeds = {method: row["per_seed"] for method, row in domain["methods"].items()}
    return figures.frontier(domain["frontier"], seeds, style)


def _paper_figures(study: Study, metrics: dict[str, Any], paper: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(caption, panels): forgetting, and the ablation."""
    overall = metrics["overall"]
    rows, ours = ablation_table(paper, metrics["domains"]), beside(paper, overall["measures"])
    steps = list(ABLATION)
    found = []
    if "general" in overall["measures"]:
        found.append(
            (
                "Forgetting: what is left of the base's general score after training, with its interval; the paper's "
                "mean retention over its three backbones as marks.",
                [figures.kept(overall, figures.styles(study.config), paper["retention"])],
            )
        )
    found.append(
        (
            "Ablation: from raw answers to refined answers to refined answers with the teacher; ours in colour, with "
            "intervals, the paper's three domains (SmolLM3-3B) in grey.",
            [
                figures.ablation(rows, theirs, steps, f"{theirs}, beside our {MEASURE_NAMES.get(own, own)}")
                for theirs, own in ours.items()
                if own
            ],
        )
    )
    return found


def _sweeps(study: Study, paper: dict[str, Any]) -> list[dict[str, Any]]:
    """A view of every sweep: a panel per parameter, domain and method, and what the paper says of that setting."""
    views = []
    for one in study.sweeps:
        scores = sorted(one.scores, key=lambda score: (score.parameter, score.domain, score.method))
        groups = [(key, list(own)) for key, own in groupby(scores, lambda row: (row.parameter, row.domain, row.method))]
        parameters = dict.fromkeys(score.parameter for score in scores)
        views.append(
            {
                "name": one.name,
                "path": one.path,
                "panels": [
                    figures.sweep(own, f"{parameter.split('.')[-1]}: {label(method)}, {domain}")
                    for (parameter, domain, method), own in groups
                ],
                "scores": scores,
                "paper": [
                    said for key, said in paper["sweeps"].items() if any(name.endswith(key) for name in parameters)
                ],
            }
        )
    return views


def _anchors_view(name: str, anchors: AnchorSet, study: Study) -> dict[str, Any]:
    generator = random.Random(study.config.report.seed)
    count = study.config.report.sample
    held = [
        label(method)
        for method in study.config.run.methods
        if (row := study.config.methods[method].anchors) and row.set == name
    ]
    return {
        "name": name,
        "found": anchors.statistics,
        "methods": held,
        "kept": generator.sample(anchors.kept, min(count, len(anchors.kept))),
        "rejected": generator.sample(anchors.rejected, min(count, len(anchors.rejected))),
    }


def _examples(domain: DomainStudy, config: Config) -> list[Fused]:
    """Rows to show: one that was fused, one that the filter rejected, one that lost something, then any."""
    asked = {row.source for row in domain.test}
    rows = [row for row in domain.fused if row.source in asked] or list(domain.fused)
    random.Random(config.report.seed).shuffle(rows)
    kinds = (
        lambda row: row.passed and row.fused != row.rewritten,
        lambda row: not row.passed,
        lambda row: row.passed and bool(row.lost),
        lambda row: True,
    )
    chosen: list[Fused] = []
    while len(chosen) < min(config.report.examples, len(rows)):
        for kind in kinds:
            seen = {row.source for row in chosen}
            # another source where there is one
            left = sorted((row for row in rows if row not in chosen and kind(row)), key=lambda row: row.source in seen)
            if left and len(chosen) < config.report.examples:
                chosen.append(left[0])
    return chosen


def _sample_view(row: Fused) -> dict[str, Any]:
    """A row for the browsable sample; what was fused is marked against the rewrite, that against the reference."""
    return {
        "row": row,
        "outcome": outcome(row),
        "rewritten": marked(row.answer, row.rewritten),
        "fused": marked(row.rewritten if row.passed else row.answer, row.fused),
        "best": next((one for one in row.candidates if one.text == row.fused and one.scores), None),
    }


def _example_view(row: Fused, domain: DomainStudy, config: Config) -> dict[str, Any]:
    asked = next((test for test in domain.test if test.source == row.source), None)
    answers = []
    if asked:
        seed = config.run.seeds[0]
        models = [(BASE, domain.base)] + [(method, runs[0]) for method, runs in domain.runs.items()]
        for method, model in models:
            item = next(item for item in model.items if item.task == DOMAIN_TASK and item.id == asked.id)
            answers.append((method, item.answer, item.metrics["acc"] == 1.0, item.metrics["complete"] == 1.0))
        return {"row": row, "asked": asked, "answers": answers, "seed": seed}
    return {"row": row, "asked": None, "answers": [], "seed": None}


def limits(study: Study) -> list[str]:
    """What the numbers cannot carry, as far as the settings tell."""
    config = study.config
    seeds = len(config.run.seeds)
    straddling = [
        name
        for name in config.run.domains
        if (split := config.domains[name].split).by == "column" and split.sources_may_straddle
    ]
    said = [
        f"One base model, {config.base.path}. Other models, sizes and worlds may behave otherwise.",
        (
            "One training seed: the intervals are over items only and say nothing about another training run."
            if seeds == 1
            else f"{seeds} training seeds. The intervals allow for so few, but cannot see what no seed showed."
        ),
        "Answers are scored by rules: the expected strings must be said. Whether the rest of an answer is true, fluent "
        "or wanted is judged by nobody, neither a person nor a model.",
        "Many comparisons stand side by side. Tests of flipped items are corrected for that, the intervals are not: of "
        f"{1 / (1 - config.report.confidence):.0f} true ties about one will look like a difference.",
        "Methods are compared at equal epochs, not at equal compute: a method with a teacher takes more time per step "
        "(see the seconds in the training table).",
        "The general benchmarks are the ones listed, no others. A drop elsewhere would go unseen.",
        "Calibration and safety are not measured, and a leak is found only by phrases that name a reference.",
    ]
    if straddling:
        said.insert(
            3,
            f"Held-out questions of {', '.join(straddling)} ask for facts that were trained in other wordings: the "
            "domain score measures whether facts were learned, not whether unseen facts can be derived.",
        )
    return said
