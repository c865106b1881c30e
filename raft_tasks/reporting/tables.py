"""From the artifacts to the numbers: what metrics.json holds, and the table in the terminal.

Per domain and method there are `measures`: "domain_acc", "domain_complete" (every detail said too), "general" (plain
average of the general tasks) and each general task by its name. Shares are in [0, 1]; only what is shown is in percent.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raft_tasks.config import Config
from raft_tasks.errors import InputError
from raft_tasks.evaluation.degradation import degradation, detectable_drop, holm
from raft_tasks.evaluation.harness import DOMAIN_TASK
from raft_tasks.evaluation.statistics import (
    Bootstrap,
    Estimate,
    Outcomes,
    difference,
    mean,
    ratio,
    recovered_fraction,
    verdict,
)
from raft_tasks.evaluation.verdicts import METRIC
from raft_tasks.reporting.frontier import frontier_points
from raft_tasks.reporting.refinement import measure_refinement
from raft_tasks.reporting.study import BASE, Answered, Benchmarked, DomainStudy, Study
from raft_tasks.schemas import ItemResult

DOMAIN_MEASURES = {"domain_acc": "acc", "domain_complete": "complete", "domain_judged": "judged"}
ACRONYMS = {"sft", "sdft", "raft", "fapm", "dft", "eaft", "kl", "ce", "ema"}

Part = tuple[str, str]  # task, metric


def measure(study: Study) -> dict[str, Any]:
    """Every number of the report, JSON-ready; the shape is that of the code below, read top down."""
    config = study.config
    report = config.report
    bootstrap = Bootstrap(report.confidence, report.bootstrap_samples, report.seed)
    return {
        "confidence": report.confidence,
        "seeds": config.run.seeds,
        "model": study.model,
        "reference": reference_method(config),
        "candidate": candidate_method(config),
        "same_answers_without_teacher": same_answers_without_teacher(config),
        "anchored": anchored_method(config),
        "overall": _measure_overall(study, bootstrap),
        "domains": {name: _measure_domain(name, domain, study, bootstrap) for name, domain in study.domains.items()},
        "anchors": {name: anchors.statistics for name, anchors in study.anchors.items()},
    }


def reference_method(config: Config) -> str | None:
    """Plain fine-tuning, which every change is counted against: reference answers, no teacher."""
    rows = ((name, config.methods[name]) for name in config.run.methods)
    return next((name for name, row in rows if row.target == "reference" and row.teacher is None), None)


def candidate_method(config: Config) -> str | None:
    """RAFT itself, which the headline is about: fused answers and a teacher that sees them."""
    rows = ((name, config.methods[name]) for name in config.run.methods)
    return next((n for n, row in rows if row.target == "fused" and row.teacher == "answer_conditioned"), None)


def same_answers_without_teacher(config: Config) -> list[str]:
    """Methods that learn what the candidate learns, and nothing beside: what its second stage is measured by."""
    candidate = candidate_method(config)
    rows = {name: config.methods[name] for name in config.run.methods}
    return [
        name
        for name, row in rows.items()
        if candidate and row.target == rows[candidate].target and row.teacher is None and not row.anchors
    ]


def anchored_method(config: Config) -> str | None:
    """The run's first method that is held to anchors."""
    return next((name for name in config.run.methods if config.methods[name].anchors), None)


def _measure_domain(name: str, domain: DomainStudy, study: Study, bootstrap: Bootstrap) -> dict[str, Any]:
    config = study.config
    found = measure_models(
        name, domain, config.benchmark.tasks, reference_method(config), candidate_method(config), bootstrap
    )
    methods = found["methods"]
    for method in domain.runs:
        methods[method]["training"] = _training(domain, method)
        methods[method]["recovery"] = _recovery(domain, method)
        methods[method]["analysis"] = _means([run.analysis for run in domain.runs[method]])
    return {
        **found,
        "frontier": frontier_points(methods, study.sweeps, name) if "general" in found["measures"] else [],
        "refinement": measure_refinement(domain, config),
    }


def measure_models(
    name: str,
    domain: Answered,
    tasks: list[str],
    reference: str | None,
    candidate: str | None,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """The measures of one domain, and every method's scores, changes and tests."""
    measures = measures_of(domain.base, tasks)
    asked = _asked(name, domain, measures)
    outcomes = {method: _by_measure(parts, measures) for method, parts in asked.items()}
    methods = _compare(outcomes, reference, candidate, bootstrap)
    for method, seeds, _ in _models(domain):
        methods[method]["per_seed"] = [
            {"seed": seed, **{one: _seed_score(asked[method], measures[one], row) for one in measures}}
            for row, seed in enumerate(seeds)
        ]
        if method != BASE:
            methods[method]["degradation"] = _degradation(
                domain.base, asked[method], asked[BASE], single_parts(measures), bootstrap.confidence
            )
        if reference and method not in (reference, BASE):
            methods[method]["flips_against_reference"] = _tested(
                asked[method], asked[reference], single_parts(measures)
            )
    return {"measures": {one: [list(part) for part in parts] for one, parts in measures.items()}, "methods": methods}


def _measure_overall(study: Study, bootstrap: Bootstrap) -> dict[str, Any]:
    """The plain average of all domains, compared as each of them is.

    The domains' own items are different ones. The general items are the same in every domain, asked of that domain's
    model: an item's outcome is its average over the domains, and its models go together in the bootstrap.
    """
    config = study.config
    measures = measures_of(next(iter(study.domains.values())).base, config.benchmark.tasks)
    asked = [_asked(name, domain, measures) for name, domain in study.domains.items()]
    found: dict[str, dict[str, list[Outcomes]]] = {}
    for method in asked[0]:
        found[method] = {
            one: [own[method][parts[0]] for own in asked]
            if one in DOMAIN_MEASURES
            else [_averaged([own[method][part] for own in asked]) for part in parts]
            for one, parts in measures.items()
        }
    methods = _compare(found, reference_method(config), candidate_method(config), bootstrap)
    (only,) = list(study.domains) if len(study.domains) == 1 else [None]
    return {
        "domains": list(study.domains),
        "measures": list(measures),
        "methods": methods,
        "frontier": frontier_points(methods, study.sweeps, only) if "general" in measures else [],
    }


def _averaged(domains: list[Outcomes]) -> Outcomes:
    if any(domain.sources != domains[0].sources for domain in domains):
        raise InputError(
            "the domains' models were not asked the same general items, so there is no average of them; "
            "`dvc repro` benchmarks all with the present params"
        )
    return Outcomes(np.mean([domain.values for domain in domains], axis=0), domains[0].seeds, domains[0].sources)


def _compare(
    outcomes: dict[str, dict[str, list[Outcomes]]],
    reference: str | None,
    candidate: str | None,
    bootstrap: Bootstrap,
) -> dict[str, dict[str, Any]]:
    """Scores of every method, and its changes against the others; `outcomes` by method and measure."""
    measures = list(outcomes[BASE])

    def change(method: str, other: str) -> dict[str, Any]:
        found = {one: difference(outcomes[method][one], outcomes[other][one], bootstrap) for one in measures}
        return {one: {**asdict(estimate), "verdict": verdict(estimate)} for one, estimate in found.items()}

    def share(method: str, other: str, one: str) -> dict[str, Any] | None:
        found = ratio(outcomes[method][one], outcomes[other][one], bootstrap)
        return asdict(found) if found else None

    def undone(method: str, other: str, one: str) -> dict[str, Any] | None:
        found = recovered_fraction(outcomes[method][one], outcomes[other][one], outcomes[BASE][one], bootstrap)
        return asdict(found) if found else None

    methods: dict[str, dict[str, Any]] = {}
    for method in outcomes:
        methods[method] = {"scores": {one: asdict(mean(outcomes[method][one], bootstrap)) for one in measures}}
        if reference and method != reference:
            methods[method]["against_reference"] = change(method, reference)
            methods[method]["share_of_reference"] = {one: share(method, reference, one) for one in measures}
        if candidate and method not in (candidate, BASE):
            methods[method]["candidate_against_it"] = change(candidate, method)
        if method != BASE:
            methods[method]["against_base"] = change(method, BASE)
            kept = [one for one in measures if one not in DOMAIN_MEASURES]
            methods[method]["retention"] = {one: share(method, BASE, one) for one in kept}
            if reference and method != reference:
                methods[method]["recovered_fraction"] = {one: undone(method, reference, one) for one in kept}
    return methods


def _degradation(
    base: Benchmarked,
    after: dict[Part, Outcomes],
    before: dict[Part, Outcomes],
    parts: list[Part],
    confidence: float,
) -> dict[str, dict[str, Any]]:
    """Per task: what `_tested` gives, the items themselves, and the smallest drop that they would show.

    "lost_items" and "won_items" name them: {id: under how many seeds}.
    """
    found: dict[str, dict[str, Any]] = {}
    tests = _tested(after, before, parts)
    for part in parts:
        right, tested = before[part].values, tests[part[0]]
        ids = [row.id for row in _rows(base.items, part)]
        change = after[part].values - right  # [S, N]
        found[part[0]] = {
            "asked": right.shape[1],
            "right_before": int((right == 1).sum()),
            **tested,
            "lost_items": None if tested["p"] is None else _counted(ids, change < 0),
            "won_items": None if tested["p"] is None else _counted(ids, change > 0),
            "detectable_drop": detectable_drop([after[part]], [before[part]], confidence),
        }
    return found


def _tested(after: dict[Part, Outcomes], before: dict[Part, Outcomes], parts: list[Part]) -> dict[str, dict[str, Any]]:
    """Per task: items lost and won, with the exact test of both; `p_holm` is corrected for these tasks.

    A task whose items are neither right nor wrong has no test.
    """
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        tested = degradation(after[part], before[part])
        known = asdict(tested) if tested else {"lost": None, "won": None, "p": None, "p_per_seed": None}
        found[part[0]] = {**known, "p_holm": None}
    having = [row for row in found.values() if row["p"] is not None]
    for row, adjusted in zip(having, holm([row["p"] for row in having]), strict=True):
        row["p_holm"], row["p_per_seed"] = adjusted, list(row["p_per_seed"])
    return found


def _counted(ids: list[str], flipped: NDArray[np.bool_]) -> dict[str, int]:
    """{id: under how many seeds} of the items that `flipped` [S, N] marks."""
    return {name: int(count) for name, count in zip(ids, flipped.sum(axis=0), strict=True) if count}


def _asked(name: str, domain: Answered, measures: dict[str, list[Part]]) -> dict[str, dict[Part, Outcomes]]:
    """The outcomes of every model, by method, then by task and metric."""
    return {
        method: {part: _outcomes(name, method, seeds, models, domain.base, part) for part in _parts(measures)}
        for method, seeds, models in _models(domain)
    }


def _by_measure(outcomes: dict[Part, Outcomes], measures: dict[str, list[Part]]) -> dict[str, list[Outcomes]]:
    return {one: [outcomes[part] for part in parts] for one, parts in measures.items()}


def _seed_score(outcomes: dict[Part, Outcomes], parts: list[Part], row: int) -> float:
    return float(np.mean([outcomes[part].values[row].mean() for part in parts]))


def measures_of(base: Benchmarked, tasks: list[str]) -> dict[str, list[Part]]:
    """The report's measures, in order, and the (task, metric) pairs that each one averages."""
    given = {metric for row in base.items if row.task == DOMAIN_TASK for metric in row.metrics}
    measures: dict[str, list[Part]] = {
        one: [(DOMAIN_TASK, metric)] for one, metric in DOMAIN_MEASURES.items() if metric in given or metric != METRIC
    }
    general = [(task, _main_metric(base, task)) for task in tasks]
    if general:
        measures["general"] = general
    return measures | {part[0]: [part] for part in general}


def single_parts(measures: dict[str, list[Part]]) -> list[Part]:
    """The (task, metric) pairs of items that are right or wrong: the domain's accuracy, and every general task's."""
    return [measures["domain_acc"][0], *measures.get("general", [])]


def _main_metric(base: Benchmarked, task: str) -> str:
    """The panel's verdict where it was asked, accuracy where the task has one, else its first metric per item."""
    rows = [row for row in base.items if row.task == task]
    if not rows or not rows[0].metrics:
        raise InputError(
            f"benchmark.tasks: {task!r} has no score per item in the base's items.jsonl, which intervals need; "
            "expected a task whose metrics are numbers per item, benchmarked with the present params: `dvc repro`"
        )
    if any(METRIC in row.metrics for row in rows):
        return METRIC
    return "acc" if "acc" in rows[0].metrics else next(iter(rows[0].metrics))


def _models(domain: Answered) -> list[tuple[str, tuple[int | None, ...], list[Benchmarked]]]:
    trained: list[tuple[str, tuple[int | None, ...], list[Benchmarked]]] = [
        (method, tuple(run.seed for run in runs), list(runs)) for method, runs in domain.runs.items()
    ]
    return [(BASE, (None,), [domain.base]), *trained]


def _parts(measures: dict[str, list[Part]]) -> set[Part]:
    return {part for parts in measures.values() for part in parts}


def _rows(items: list[ItemResult], part: Part) -> list[ItemResult]:
    """The items of a task; of the panel's metric those that have a verdict."""
    task, metric = part
    return [row for row in items if row.task == task and (metric != METRIC or METRIC in row.metrics)]


def _outcomes(
    domain: str, method: str, seeds: tuple[int | None, ...], models: list[Benchmarked], base: Benchmarked, part: Part
) -> Outcomes:
    """One metric of one task [seeds, items], items in the base's order."""
    task, metric = part
    asked = _rows(base.items, part)
    values = np.empty((len(models), len(asked)))
    for number, (seed, model) in enumerate(zip(seeds, models, strict=True)):
        found = {row.id: row for row in _rows(model.items, part)}
        if set(found) != {row.id for row in asked}:
            raise InputError(
                f"{domain}: {method} (seed {seed}) and the base were not asked the same items of {task!r} "
                f"({len(found)} and {len(asked)}); `dvc repro` benchmarks both with the present params"
            )
        try:
            values[number] = [found[row.id].metrics[metric] for row in asked]
        except KeyError as error:
            raise InputError(
                f"{domain}: {method} (seed {seed}): an item of {task!r} has no {error}; `dvc repro`"
            ) from error
    return Outcomes(values, seeds, tuple(row.source for row in asked))


def _training(domain: DomainStudy, method: str) -> dict[str, Any]:
    summaries = [run.summary for run in domain.runs[method]]
    return {
        "steps": summaries[0]["steps"],
        "seconds": float(np.mean([summary["seconds"] for summary in summaries])),
        "relative_l2": float(np.mean([summary["distance"]["total"] for summary in summaries])),
        "relative_l2_per_seed": [summary["distance"]["total"] for summary in summaries],
    }


def _means(seeds: list[Any]) -> Any:
    """What the analysis found, number by number the mean over seeds; None where a seed has none."""
    first = seeds[0]
    if isinstance(first, dict):
        return {name: _means([seed[name] for seed in seeds]) for name in first}
    if isinstance(first, list):
        return first  # examples: one seed's are enough
    return None if None in seeds else float(np.mean(seeds))


def _recovery(domain: DomainStudy, method: str) -> list[dict[str, Any]]:
    """Per seed, what was taken back after training; empty where nothing is. Scores are on validation items."""
    rows = []
    for run in domain.runs[method]:
        found = run.recovery
        if found["kind"] is None:
            continue
        scored = {one["coefficient"]: one for one in found.get("candidates", [])}
        rows.append(
            {
                "seed": run.seed,
                "kind": found["kind"],
                "coefficient": found["coefficient"],
                "relative_l2": found["distance"]["total"],
                "bound_met": found.get("bound_met"),
                "base": found.get("base"),
                "chosen": scored.get(found["coefficient"]),
                "whole": scored.get(1.0),
            }
        )
    return rows


def percent(estimate: dict[str, Any] | Estimate | None, signed: bool = False) -> tuple[str, str]:
    """An estimate and its interval in percent (or points), as two strings; a dash where there is none."""
    if estimate is None:
        return "–", ""
    found = estimate if isinstance(estimate, dict) else asdict(estimate)
    interval = "" if found["low"] is None else f"{points(found['low'], signed)} to {points(found['high'], signed)}"
    return points(found["estimate"], signed), interval


def points(share: float, signed: bool = False) -> str:
    """A share as percent with one decimal; a real minus sign, and never a negative zero."""
    shown = round(100 * share, 1) + 0.0
    return f"{shown:{'+' if signed and shown else ''}.1f}".replace("-", "\N{MINUS SIGN}")


def label(method: str) -> str:
    """A method's name for readers: fused_sft -> fused SFT."""
    return " ".join(word.upper() if word in ACRONYMS else word for word in method.split("_"))


def print_table(metrics: dict[str, Any]) -> None:
    """Print one table per domain, at most 100 columns wide."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = min(100, console.width) if console.is_terminal else 100
    reference = metrics["reference"]
    for domain, found in metrics["domains"].items():
        general = "general" in found["measures"]
        table = Table(
            title=f"{domain}: percent, with {100 * metrics['confidence']:g} % intervals",
            title_justify="left",
            box=SIMPLE_HEAD,
        )
        table.add_column("method", no_wrap=True)
        table.add_column("domain", no_wrap=True)
        if reference:
            table.add_column(f"against {label(reference)}")
        if general:
            table.add_column("general")
            if reference:
                table.add_column(f"against {label(reference)}")
            table.add_column("retention")
        table.add_column("moved", justify="right")
        table.add_column("train s", justify="right")
        for method, row in found["methods"].items():
            change = row.get("against_reference", {})
            cells = [percent(row["scores"]["domain_acc"])]
            if reference:
                cells.append(percent(change.get("domain_acc"), signed=True))
            if general:
                cells.append(percent(row["scores"]["general"]))
                if reference:
                    cells.append(percent(change.get("general"), signed=True))
                cells.append(percent(row.get("retention", {}).get("general")))
            training = row.get("training")
            moved = (f"{training['relative_l2']:.4f}", f"{training['seconds']:.0f}") if training else ("–", "–")
            table.add_row(
                label(method), *(f"[bold]{value}[/]\n[dim]{interval}[/]" for value, interval in cells), *moved
            )
        console.print(table)
