"""The parts of the page as its templates take them: panels, example rows, samples."""

import random
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from raft_tasks.config import Config
from raft_tasks.evaluation.harness import DOMAIN_TASK
from raft_tasks.reporting import wording
from raft_tasks.reporting.figures import refinement, scores, training
from raft_tasks.reporting.figures.panel import Styles
from raft_tasks.reporting.flips import AnsweredQuestion, find_flips, select_flips, telling_questions
from raft_tasks.reporting.measures import single_parts
from raft_tasks.reporting.metrics import DomainMetrics, Metrics, Refinement
from raft_tasks.reporting.paper import ABLATION, ablation_table, our_measures
from raft_tasks.reporting.refinement import mark_changes, row_outcome, sample_rows
from raft_tasks.reporting.study import BASE, AnchorSet, DomainStudy, Study
from raft_tasks.reporting.sweeps import Sweep
from raft_tasks.reporting.wording import label, measure_name
from raft_tasks.schemas import Fused

QUESTIONS = 3  # general ones at the top of the page
CURVES = (  # column of steps.csv, title, level that is marked
    ("l_sft", "Cross-entropy of the targets, L_SFT", None),
    ("l_kl", "KL to the teacher, L_KL", None),
    ("l_target_kl", "KL to the base on the learned answers, L_target", None),
    ("l_anchor", "KL to the base on anchors, L_anchor", None),
    ("lambda", "KL weight, lambda", 1.0),
    ("ce_kl_ratio", "Balance, L_SFT / (lambda L_KL)", 1.0),
)


def domain_view(study: Study, metrics: Metrics, styles: Styles, name: str) -> dict[str, Any]:
    domain, scored, settings = study.domains[name], metrics["domains"][name], study.config.report
    return {
        "name": name,
        "metrics": scored,
        "headline": wording.headline(metrics, scored),
        "sentences": wording.sentences(metrics, scored),
        "figures": {
            # with one domain the page's first figure shows just this
            "frontier": domain_frontier(scored, styles) if len(study.domains) > 1 else [],
            "changes": _change_panels(scored, metrics["reference"], styles),
            "data": _refinement_panels(scored["refinement"]),
            "analysis": [
                training.distances_by(scored, styles, "layers", "Distance to the base, by layer"),
                training.distances_by(scored, styles, "matrices", "Distance to the base, by kind of matrix"),
            ],
            "curves": [
                training.curves(domain, styles, column, title, level)
                for column, title, level in CURVES
                if training.has_column(domain, column)
            ],
            "paths": [training.paths(domain, styles)] if study.config.train.curve else [],
            "distance": [training.distances(scored, styles)],
        },
        "flips": select_flips(find_flips(domain, single_parts(scored["measures"])), settings.flips),
        "sample": [_sample_view(row) for row in sample_rows(domain.fused, settings.sample, settings.seed)],
        "examples": [_example_view(row, domain, study.config) for row in _example_rows(domain, study.config)],
    }


def domain_frontier(domain: DomainMetrics, styles: Styles) -> list[str]:
    """The frontier with every seed; empty without general tasks."""
    per_seed = {method: row["per_seed"] for method, row in domain["methods"].items()}
    return [scores.frontier(domain["frontier"], per_seed, styles)] if domain["frontier"] else []


def overall_frontier(metrics: Metrics, styles: Styles) -> str | None:
    """The page's first figure; None without general tasks."""
    if len(metrics["domains"]) == 1:
        return next(iter(domain_frontier(next(iter(metrics["domains"].values())), styles)), None)
    points = metrics["overall"]["frontier"]
    return scores.frontier(points, {}, styles) if points else None


def question_views(study: Study, metrics: Metrics) -> list[AnsweredQuestion]:
    """General questions of the first domain's models, answered by the base and the methods that the page compares."""
    name, domain = next(iter(study.domains.items()))
    parts = single_parts(metrics["domains"][name]["measures"])[1:]
    methods = [metrics["reference"], metrics["candidate"], metrics["anchored"]]
    trained = list(dict.fromkeys(method for method in methods if method))
    return telling_questions(domain, parts, trained, QUESTIONS) if trained else []


def paper_panels(paper: Mapping[str, Any], metrics: Metrics, styles: Styles) -> dict[str, list[str]]:
    """Retention, and the ablation by measure."""
    overall, measures = metrics["overall"], our_measures(paper, metrics["overall"]["measures"])
    rows = ablation_table(paper, metrics["domains"], measures)
    retained = "general" in overall["measures"]
    return {
        "retention": [scores.retention(overall["methods"], styles, paper["retention"])] if retained else [],
        "ablation": [
            scores.ablation(rows, measure, ABLATION, f"{measure}, our {measure_name(ours)}")
            for measure, ours in measures.items()
            if ours
        ],
    }


def _change_panels(domain: DomainMetrics, reference: str | None, styles: Styles) -> list[str]:
    titles = {"domain_acc": "Domain accuracy", "general": "General score"}
    return [
        scores.changes(domain, reference, styles, measure, title)
        for measure, title in titles.items()
        if reference and measure in domain["measures"]
    ]


def _refinement_panels(measured: Refinement) -> list[str]:
    panels = [refinement.similarities(measured), refinement.lengths(measured)]
    return panels if measured["mean_fusion_score"] is None else [*panels, refinement.judges(measured)]


def method_settings(config: Config) -> dict[str, dict[str, str]]:
    """Per method of the run the settings that tell methods apart, as the training table shows them."""
    rows = {name: config.methods[name] for name in config.run.methods}
    return {
        name: {
            "target": row.target + (" (no cross-entropy)" if not row.sft else " (mixed)" if row.mixing else ""),
            "teacher": (row.teacher or "–").replace("_", " "),
            "KL weight": str(row.distillation.kl_weight) if row.distillation else "–",
            "anchors": row.anchors.set if row.anchors else "–",
            "adapter": f"LoRA r{row.lora.rank}" if row.lora else "OSF" if row.osf else "–",
            "merge": row.merge.kind if row.merge else "–",
        }
        for name, row in rows.items()
    }


def sweep_views(sweeps: Sequence[Sweep], paper: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of every sweep a panel per parameter, domain and method, and what the paper says of that setting."""
    views = []
    for sweep in sweeps:
        rows = sorted(sweep.scores, key=lambda score: (score.parameter, score.domain, score.method))
        groups = groupby(rows, lambda score: (score.parameter, score.domain, score.method))
        parameters = dict.fromkeys(score.parameter for score in rows)
        views.append(
            {
                "name": sweep.name,
                "path": sweep.path,
                "panels": [
                    scores.sweep(list(group), f"{parameter.split('.')[-1]}: {label(method)}, {domain}")
                    for (parameter, domain, method), group in groups
                ],
                "scores": rows,
                "paper": [
                    text for key, text in paper["sweeps"].items() if any(name.endswith(key) for name in parameters)
                ],
            }
        )
    return views


def anchors_view(name: str, anchors: AnchorSet, config: Config) -> dict[str, Any]:
    generator, count = random.Random(config.report.seed), config.report.sample
    methods = [m for m in config.run.methods if (row := config.methods[m].anchors) and row.set == name]
    return {
        "name": name,
        "statistics": anchors.statistics,
        "methods": [label(method) for method in methods],
        "kept": generator.sample(anchors.kept, min(count, len(anchors.kept))),
        "rejected": generator.sample(anchors.rejected, min(count, len(anchors.rejected))),
    }


def _example_rows(domain: DomainStudy, config: Config) -> list[Fused]:
    """Rows to show: one that was fused, one that the filter rejected, one that lost a fact, then any."""
    tested = {row.source for row in domain.test}
    rows = [row for row in domain.fused if row.source in tested] or list(domain.fused)
    random.Random(config.report.seed).shuffle(rows)
    kinds = (
        lambda row: row_outcome(row) == "fused",
        lambda row: not row.passed,
        lambda row: row.passed and bool(row.lost),
        lambda row: True,
    )
    selected: list[Fused] = []
    while len(selected) < min(config.report.examples, len(rows)):
        for kind in kinds:
            shown = {row.source for row in selected}
            # another source where there is one
            left = sorted((row for row in rows if row not in selected and kind(row)), key=lambda r: r.source in shown)
            if left and len(selected) < config.report.examples:
                selected.append(left[0])
    return selected


def _sample_view(row: Fused) -> dict[str, Any]:
    """A row of the browsable sample: the target is marked against the rewrite, and that against the reference."""
    return {
        "row": row,
        "outcome": row_outcome(row),
        "rewritten": mark_changes(row.answer, row.rewritten),
        "fused": mark_changes(row.rewritten if row.passed else row.answer, row.fused),
        "best": next(
            (candidate for candidate in row.candidates if candidate.text == row.fused and candidate.scores), None
        ),
    }


def _example_view(row: Fused, domain: DomainStudy, config: Config) -> dict[str, Any]:
    """A row, a held-out question about the same source, and the answers to it: (method, text, right, complete)."""
    test = next((test for test in domain.test if test.source == row.source), None)
    answers = []
    if test:
        for method, items in {BASE: domain.base, **{name: runs[0].items for name, runs in domain.runs.items()}}.items():
            item = next(item for item in items if item.task == DOMAIN_TASK and item.id == test.id)
            answers.append((method, item.answer, item.metrics["acc"] == 1.0, item.metrics["complete"] == 1.0))
    return {"row": row, "test": test, "answers": answers, "seed": config.run.seeds[0]}
