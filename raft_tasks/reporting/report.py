"""The report: one self-contained HTML page in which every sentence about a result is read off the numbers."""

from __future__ import annotations

import platform
import random
from importlib.metadata import version
from pathlib import Path
from typing import Any

from raft_tasks.artifacts import atomic_file, digest_path
from raft_tasks.evaluation.harness import DOMAIN_TASK
from raft_tasks.params import Params
from raft_tasks.reporting import figures
from raft_tasks.reporting.refinement import OUTCOMES, marked, outcome, sample
from raft_tasks.reporting.study import BASE, DomainStudy, Study
from raft_tasks.reporting.tables import label, percent, points
from raft_tasks.schemas import Fused

TEMPLATES = Path(__file__).parent / "templates"
PACKAGES = ("torch", "transformers", "lm_eval", "datasets", "sentence-transformers", "prefect", "dvc", "numpy", "scipy")
MEASURE_NAMES = {"domain_acc": "domain", "domain_complete": "domain, complete", "general": "general"}


def write_report(study: Study, metrics: dict[str, Any], git_revision: str | None, output: Path) -> None:
    """Write the page.

    Args:
        study: what `collect` read.
        metrics: what `measure` made of it.
        git_revision: of the code that made the numbers; None where there is none to name.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["points"] = points
    environment.filters["within"] = figures.within
    environment.globals["percent"] = percent
    environment.globals["number"] = lambda value: (
        "–" if value is None else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
    )
    params = study.params
    domains = [
        {
            "name": name,
            "found": metrics["domains"][name],
            "headline": headline(metrics, name),
            "sentences": sentences(metrics, name),
            "figures": _figures(study, metrics, name),
            "sample": [
                _sample_view(row) for row in sample(study.domains[name].fused, params.report.sample, params.report.seed)
            ],
            "examples": [
                _example_view(row, study.domains[name], params) for row in _examples(study.domains[name], params)
            ],
        }
        for name in params.run.domains
    ]
    page = environment.get_template("report.html.jinja").render(
        domains=domains,
        metrics=metrics,
        params=params,
        reference=metrics["reference"],
        candidate=metrics["candidate"],
        base=BASE,
        label=label,
        name_of=lambda measure: MEASURE_NAMES.get(measure, measure.replace("_", " ")),
        colour_of={method: style[0] for method, style in figures.styles(params).items()},
        outcomes=OUTCOMES,
        limits=limits(study),
        inputs=[(file, digest_path(file.path)) for file in study.files],
        git_revision=git_revision,
        versions={"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
    )
    with atomic_file(output) as temporary:
        temporary.write_text(page, encoding="utf-8")


def headline(metrics: dict[str, Any], domain: str) -> str:
    """One sentence that the paired intervals support: what RAFT does that plain fine-tuning does not."""
    candidate, reference = metrics["candidate"], metrics["reference"]
    if not candidate or not reference:
        return "Scores of every method; RAFT and plain fine-tuning were not both run, so they are not compared."
    change = metrics["domains"][domain]["methods"][candidate]["against_reference"]
    subject, other = label(candidate), label(reference)
    in_domain = {
        "higher": f"{subject} learned more of the domain than {other}",
        "lower": f"{subject} learned less of the domain than {other}",
        "no clear difference": f"{subject} shows no clear difference from {other} in the domain",
    }[change["domain_acc"]["verdict"]]
    if "general" not in change:
        return f"{in_domain}."
    in_general = {
        "higher": "kept more of what the model could do before",
        "lower": "kept less of what the model could do before",
        "no clear difference": "shows no clear difference in general ability",
    }[change["general"]["verdict"]]
    opposed = {change["domain_acc"]["verdict"], change["general"]["verdict"]} == {"higher", "lower"}
    return f"{in_domain}, {'but' if opposed else 'and'} {in_general}."


def sentences(metrics: dict[str, Any], domain: str) -> list[str]:
    """The numbers behind the headline, in words: RAFT against plain fine-tuning, and against its own first half."""
    found = metrics["domains"][domain]
    candidate, reference = metrics["candidate"], metrics["reference"]
    if not candidate:
        return []
    measured = [one for one in ("domain_acc", "general") if one in found["measures"]]
    lines = []
    for other in dict.fromkeys([*([reference] if reference else []), *metrics["same_answers_without_teacher"]]):
        change = found["methods"][other]["candidate_against_it"]
        why = "" if other == reference else ", which learns the same answers without a teacher"
        parts = [f"{MEASURE_NAMES[one]} score {_described(change[one])}" for one in measured]
        lines.append(f"{label(candidate)} against {label(other)}{why}: {'; '.join(parts)}.")
    return lines


def _described(change: dict[str, Any]) -> str:
    value, interval = percent(change, signed=True)
    shown = f"{value} points" + (f", {interval}" if interval else "")
    return f"{'not clearly different' if change['verdict'] == 'no clear difference' else change['verdict']} ({shown})"


def _figures(study: Study, metrics: dict[str, Any], name: str) -> dict[str, Any]:
    """(caption, panels) of each section of a domain."""
    domain, found, style = study.domains[name], metrics["domains"][name], figures.styles(study.params)
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
            ("lambda", "Weight of the teacher, lambda", 1.0),
            ("ce_kl_ratio", "Balance, L_SFT / (lambda L_KL)", 1.0),
        )
        if figures.has_column(domain, column)
    ]
    return {
        "frontier": (
            "The scores above as a picture: up is more of the domain, right is more of what the base could do. Small "
            "marks are single seeds, large ones the means; bars are intervals.",
            [figures.frontier(found, style)] if "general" in measured else [],
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
        "training": [
            (
                f"Mean over seeds within their range, as a moving average over {figures.SMOOTHED} steps. Methods "
                "without a teacher have a cross-entropy only. Dashed: 1, where both losses weigh alike. Lambda and the "
                f"balance are cut at {figures.FARTHEST} and at 1/{figures.FARTHEST}.",
                losses,
            ),
            (
                "How far all weights together are from the base, |W \N{MINUS SIGN} W0| / |W0|: the mean as a bar, "
                "every seed as a mark.",
                [figures.distances(found, style)],
            ),
        ],
    }


def _examples(domain: DomainStudy, params: Params) -> list[Fused]:
    """Rows to show: one that was fused, one that the filter rejected, one that lost something, then any."""
    asked = {row.source for row in domain.test}
    rows = [row for row in domain.fused if row.source in asked] or list(domain.fused)
    random.Random(params.report.seed).shuffle(rows)
    kinds = (
        lambda row: row.passed and row.fused != row.rewritten,
        lambda row: not row.passed,
        lambda row: row.passed and bool(row.lost),
        lambda row: True,
    )
    chosen: list[Fused] = []
    while len(chosen) < min(params.report.examples, len(rows)):
        for kind in kinds:
            seen = {row.source for row in chosen}
            # another source where there is one
            left = sorted((row for row in rows if row not in chosen and kind(row)), key=lambda row: row.source in seen)
            if left and len(chosen) < params.report.examples:
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


def _example_view(row: Fused, domain: DomainStudy, params: Params) -> dict[str, Any]:
    asked = next((test for test in domain.test if test.source == row.source), None)
    answers = []
    if asked:
        seed = params.run.seeds[0]
        models = [(BASE, domain.base)] + [(method, runs[0]) for method, runs in domain.runs.items()]
        for method, model in models:
            item = next(item for item in model.items if item.task == DOMAIN_TASK and item.id == asked.id)
            answers.append((method, item.answer, item.metrics["acc"] == 1.0, item.metrics["complete"] == 1.0))
        return {"row": row, "asked": asked, "answers": answers, "seed": seed}
    return {"row": row, "asked": None, "answers": [], "seed": None}


def limits(study: Study) -> list[str]:
    """What the numbers cannot carry, as far as the settings tell."""
    params = study.params
    seeds = len(params.run.seeds)
    straddling = [
        name
        for name in params.run.domains
        if (split := params.domains[name].split).by == "column" and split.sources_may_straddle
    ]
    said = [
        f"One base model, {params.base.path}. Other models, sizes and worlds may behave otherwise.",
        (
            "One training seed: the intervals are over items only and say nothing about another training run."
            if seeds == 1
            else f"{seeds} training seeds. The intervals allow for so few, but cannot see what no seed showed."
        ),
        "Answers are scored by rules: the expected strings must be said. Whether the rest of an answer is true, fluent "
        "or wanted is judged by nobody, neither a person nor a model.",
        "Many comparisons stand side by side and the intervals are not corrected for that: of "
        f"{1 / (1 - params.report.confidence):.0f} true ties about one will look like a difference.",
        "Methods are compared at equal epochs, not at equal compute: a method with a teacher takes more time per step "
        "(see the seconds in the training table).",
        "The general benchmarks are the ones listed, no others. A drop elsewhere would go unseen.",
        "Calibration, safety, and whether the phrasing of a teacher that sees the answer leaks into the student are "
        "not measured.",
    ]
    if straddling:
        said.insert(
            3,
            f"Held-out questions of {', '.join(straddling)} ask for facts that were trained in other wordings: the "
            "domain score measures whether facts were learned, not whether unseen facts can be derived.",
        )
    return said
