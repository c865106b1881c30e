"""From the artifacts to the numbers of metrics.json (metrics.py has its schema)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from raft_tasks.config import Config, Method
from raft_tasks.config.data import OTHER_METRICS
from raft_tasks.errors import InputError
from raft_tasks.evaluation.degradation import degradation, detectable_drop, holm
from raft_tasks.evaluation.gate import DOMAIN_TASKS
from raft_tasks.evaluation.harness import DOMAIN_TASK
from raft_tasks.evaluation.outcomes import THOUGHT_METRICS
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
from raft_tasks.evaluation.verdicts import METRIC, main_metric
from raft_tasks.reporting.frontier import frontier_points
from raft_tasks.reporting.metrics import (
    Degradation,
    DomainMetrics,
    FlipTest,
    Merge,
    MethodMetrics,
    Metrics,
    OverallMetrics,
    Training,
    less_is_better,
)  # fmt: skip
from raft_tasks.reporting.refinement import measure_refinement
from raft_tasks.reporting.study import BASE, Answered, DomainStudy, Study, Trained, judged_alike
from raft_tasks.reporting.sweeps import Sweep
from raft_tasks.schemas import ItemResult, thinking_name

DOMAIN = "domain_"  # how the names of the domain's measures begin: domain_acc, domain_complete, ...

Items = Sequence[ItemResult]  # of one model
Part = tuple[str, str]  # task, metric
Measures = Mapping[str, Sequence[Part]]  # a measure is the plain average of its parts


@dataclass(frozen=True)
class Roles:
    """The methods that the report compares by name; None, or empty, where the run has none of the kind."""

    reference: str | None = None  # plain SFT
    candidate: str | None = None  # RAFT
    same_target_without_teacher: tuple[str, ...] = ()  # what RAFT's teacher is measured against
    anchored: str | None = None  # regularised towards the base on anchors


def roles(config: Config) -> Roles:
    """The run's roles, read off the methods' settings; where several fit, the first."""
    rows = {name: config.methods[name] for name in config.run.methods}
    reference = (name for name, row in rows.items() if row.target == "reference" and row.teacher is None)
    candidates = (n for n, row in rows.items() if row.target == "fused" and row.teacher == "answer_conditioned")
    candidate = next(candidates, None)
    same_target = (
        name
        for name, row in rows.items()
        if candidate and row.target == rows[candidate].target and row.teacher is None and not row.anchors
    )
    anchored = (name for name, row in rows.items() if row.anchors)
    return Roles(next(reference, None), candidate, tuple(same_target), next(anchored, None))


def measure(study: Study) -> Metrics:
    """Every number of the report."""
    report, chosen = study.config.report, roles(study.config)
    bootstrap = Bootstrap(report.confidence, report.bootstrap_samples, report.seed)
    return {
        "confidence": report.confidence,
        "seeds": study.config.run.seeds,
        "model": study.model,
        "reference": chosen.reference,
        "candidate": chosen.candidate,
        "same_target_without_teacher": list(chosen.same_target_without_teacher),
        "anchored": chosen.anchored,
        "overall": _measure_overall(study, chosen, bootstrap),
        "domains": {name: _measure_domain(name, study, chosen, bootstrap) for name in study.domains},
        "anchors": {name: anchors.statistics for name, anchors in study.anchors.items()},
    }


def _measure_domain(name: str, study: Study, chosen: Roles, bootstrap: Bootstrap) -> DomainMetrics:
    domain = study.domains[name]
    metrics = measure_models(name, domain, study.config.benchmark.tasks, chosen, bootstrap, study.sweeps)
    for method, runs in domain.runs.items():
        row = metrics["methods"][method]
        row["training"] = _training(runs, study.config.methods[method])
        row["merge"] = _merges(domain, method)
        row["analysis"] = _mean_over_seeds([run.analysis for run in runs])
    metrics["refinement"] = measure_refinement(domain, study.config)
    return metrics


def measure_models(
    name: str,
    domain: Answered,
    tasks: Sequence[str],
    chosen: Roles,
    bootstrap: Bootstrap,
    sweeps: Sequence[Sweep] = (),
) -> DomainMetrics:
    """One domain's measures, and every method's scores, changes and tests."""
    measures = measures_of(domain.base, tasks)
    outcomes = _outcomes_by_method(name, domain, measures)
    by_measure = {
        method: {key: [of_method[part] for part in parts] for key, parts in measures.items()}
        for method, of_method in outcomes.items()
    }
    methods = _compare(by_measure, chosen, bootstrap)
    parts = single_parts(measures)
    for method, seeds, _ in _models(domain):
        row, after = methods[method], outcomes[method]
        row["per_seed"] = [
            {"seed": seed}
            | {
                key: float(np.mean([part.values[i].mean() for part in scored]))
                for key, scored in by_measure[method].items()
            }
            for i, seed in enumerate(seeds)
        ]
        if method != BASE:
            row["degradation"] = _degradation(domain.base, after, outcomes[BASE], parts, bootstrap.confidence)
        if chosen.reference and method not in (chosen.reference, BASE):
            row["flips_against_reference"] = _flip_tests(after, outcomes[chosen.reference], parts)
    return {
        "measures": {key: [list(part) for part in parts] for key, parts in measures.items()},
        "methods": methods,
        "frontier": frontier_points(methods, sweeps, name) if "general" in measures else [],
    }


def _measure_overall(study: Study, chosen: Roles, bootstrap: Bootstrap) -> OverallMetrics:
    """The plain average of all domains, compared as each of them is.

    Each domain has its own domain items. The general items are the same in every domain, answered by that domain's
    model: an item's outcome is its average over the domains, and its models stay together in the bootstrap.
    """
    domains = judged_alike(study.domains)
    every = [measures_of(domain.base, study.config.benchmark.tasks) for domain in domains.values()]
    measures = {key: parts for key, parts in every[0].items() if all(key in other for other in every)}
    by_domain = [_outcomes_by_method(name, domain, measures) for name, domain in domains.items()]
    outcomes = {
        method: {
            key: [domain[method][parts[0]] for domain in by_domain]
            if key.startswith(DOMAIN)
            else [_average([domain[method][part] for domain in by_domain]) for part in parts]
            for key, parts in measures.items()
        }
        for method in by_domain[0]
    }
    methods = _compare(outcomes, chosen, bootstrap)
    only = next(iter(study.domains)) if len(study.domains) == 1 else None
    return {
        "domains": list(study.domains),
        "measures": list(measures),
        "methods": methods,
        "frontier": frontier_points(methods, study.sweeps, only) if "general" in measures else [],
    }


def _average(domains: Sequence[Outcomes]) -> Outcomes:
    if any(domain.sources != domains[0].sources for domain in domains):
        raise InputError(
            "the domains' models were not asked the same general items, so there is no average of them; "
            "`dvc repro` benchmarks all with the present params"
        )
    return Outcomes(np.mean([domain.values for domain in domains], axis=0), domains[0].seeds, domains[0].sources)


def _compare(
    outcomes: Mapping[str, Mapping[str, list[Outcomes]]], chosen: Roles, bootstrap: Bootstrap
) -> dict[str, MethodMetrics]:
    """Scores of every method, and its changes against the others; `outcomes` by method and measure."""
    base, reference, candidate = outcomes[BASE], chosen.reference, chosen.candidate
    general = [key for key in base if not key.startswith(DOMAIN) and not less_is_better(key)]

    def change(method: str, other: str) -> dict[str, Any]:
        estimates = {key: difference(outcomes[method][key], outcomes[other][key], bootstrap) for key in base}
        return {key: {**asdict(value), "verdict": verdict(value)} for key, value in estimates.items()}

    methods: dict[str, MethodMetrics] = {}
    for method, scored in outcomes.items():
        row: MethodMetrics = {"scores": {key: _score(mean(scored[key], bootstrap)) for key in base}}
        if reference and method != reference:
            row["against_reference"] = change(method, reference)
            row["share_of_reference"] = {
                key: _score(ratio(scored[key], outcomes[reference][key], bootstrap)) for key in base
            }
        if candidate and method not in (candidate, BASE):
            row["candidate_against_it"] = change(candidate, method)
        if method != BASE:
            row["against_base"] = change(method, BASE)
            row["retention"] = {key: _score(ratio(scored[key], base[key], bootstrap)) for key in general}
            if reference and method != reference:
                row["recovered_fraction"] = {
                    key: _score(recovered_fraction(scored[key], outcomes[reference][key], base[key], bootstrap))
                    for key in general
                }
        methods[method] = row
    return methods


def _score(estimate: Estimate | None) -> Any:
    """A `Score`; None where there is none."""
    return asdict(estimate) if estimate else None


def _degradation(
    base: Items,
    after: Mapping[Part, Outcomes],
    before: Mapping[Part, Outcomes],
    parts: Sequence[Part],
    confidence: float,
) -> dict[str, Degradation]:
    """Per task: the test of its flipped items, which items they are, and the smallest drop that would show."""
    rows: dict[str, Degradation] = {}
    for part, test in zip(parts, _flip_tests(after, before, parts).values(), strict=True):
        right = before[part].values
        ids = [row.id for row in _rows(base, part)]
        change = after[part].values - right  # [S, N]
        rows[part[0]] = {
            "asked": right.shape[1],
            "right_before": int((right == 1).sum()),
            **test,
            "lost_items": None if test["p"] is None else _count_seeds(ids, change < 0),
            "won_items": None if test["p"] is None else _count_seeds(ids, change > 0),
            "detectable_drop": detectable_drop([after[part]], [before[part]], confidence),
        }
    return rows


def _flip_tests(
    after: Mapping[Part, Outcomes], before: Mapping[Part, Outcomes], parts: Sequence[Part]
) -> dict[str, FlipTest]:
    """Per task: items lost and won, with McNemar's exact test of both; `p_holm` is corrected for these tasks."""
    tests = {part[0]: degradation(after[part], before[part]) for part in parts}
    adjusted = iter(holm([test.p for test in tests.values() if test]))
    rows: dict[str, FlipTest] = {}
    for task, test in tests.items():
        if test is None:
            rows[task] = {"lost": None, "won": None, "p": None, "p_per_seed": None, "p_holm": None}
        else:
            row = cast("FlipTest", {**asdict(test), "p_holm": next(adjusted)})
            rows[task] = {**row, "p_per_seed": list(test.p_per_seed)}
    return rows


def _count_seeds(ids: Sequence[str], flipped: NDArray[np.bool_]) -> dict[str, int]:
    """{id: number of seeds} of the items that `flipped` [S, N] marks."""
    return {name: int(count) for name, count in zip(ids, flipped.sum(axis=0), strict=True) if count}


def _outcomes_by_method(name: str, domain: Answered, measures: Measures) -> dict[str, dict[Part, Outcomes]]:
    parts = {part for parts in measures.values() for part in parts}
    return {
        method: {part: _outcomes(f"{name}: {method}", seeds, models, domain.base, part) for part in parts}
        for method, seeds, models in _models(domain)
    }


def measures_of(base: Items, tasks: Sequence[str]) -> dict[str, list[Part]]:
    """The report's measures, in order, and the (task, metric) pairs that each one averages.

    Tasks that were measured with thinking on, too, have measures of their own; `general` is without them.
    """
    metrics = dict.fromkeys(metric for row in base if row.task == DOMAIN_TASK for metric in row.metrics)
    checks = [metric for metric in metrics if metric not in OTHER_METRICS]
    others = [name for name in (METRIC, *THOUGHT_METRICS) if name in metrics]
    names = ["acc", "complete", *checks[1:], *others]  # acc is the first check
    measures: dict[str, list[Part]] = {f"{DOMAIN}{metric}": [(DOMAIN_TASK, metric)] for metric in names}
    general = [(task, _main_metric(base, task)) for task in tasks]
    if general:
        measures["general"] = general
    thinking_tasks = dict.fromkeys(row.task for row in base if row.task.endswith(thinking_name("")))
    thinking = {
        task: [(task, _main_metric(base, task))] for task in thinking_tasks if task != thinking_name(DOMAIN_TASK)
    }
    if len(thinking) < len(thinking_tasks):
        domain = {metric: [(thinking_name(DOMAIN_TASK), metric)] for metric in ("acc", *THOUGHT_METRICS)}
        thinking = {thinking_name(f"{DOMAIN}{metric}"): part for metric, part in domain.items()} | thinking
    thoughtful = dict.fromkeys(row.task for row in base if THOUGHT_METRICS[0] in row.metrics)
    written = [task for task in thoughtful if task not in DOMAIN_TASKS]
    for name in [f"general_{metric}" for metric in THOUGHT_METRICS] if written else []:
        parts = [(task, name.removeprefix("general_")) for task in written]
        thinking[thinking_name(name) if thinking_tasks else name] = parts
    return measures | {part[0]: [part] for part in general} | thinking


def single_parts(measures: Measures | Mapping[str, list[list[str]]]) -> list[Part]:
    """The (task, metric) pairs of items that are right or wrong: the domain's accuracy, and every general task's."""
    return [(task, metric) for task, metric in [measures["domain_acc"][0], *measures.get("general", [])]]


def _main_metric(base: Items, task: str) -> str:
    rows = [row for row in base if row.task == task]
    if not rows or not rows[0].metrics:
        raise InputError(
            f"benchmark.tasks: {task!r} has no score per item in the base's items.jsonl, which intervals need; "
            "expected a task whose metrics are numbers per item, benchmarked with the present params: `dvc repro`"
        )
    return METRIC if any(METRIC in row.metrics for row in rows) else main_metric(rows[0].metrics)


def _models(domain: Answered) -> Iterator[tuple[str, tuple[int | None, ...], list[Items]]]:
    """(method, seeds, the items of each seed's model), the base first."""
    yield BASE, (None,), [domain.base]
    for method, runs in domain.runs.items():
        yield method, tuple(run.seed for run in runs), [run.items for run in runs]


def _rows(items: Items, part: Part) -> list[ItemResult]:
    """The items of a task; of the judges' metric those that have a verdict."""
    task, metric = part
    return [row for row in items if row.task == task and (metric != METRIC or METRIC in row.metrics)]


def _outcomes(name: str, seeds: tuple[int | None, ...], models: Sequence[Items], base: Items, part: Part) -> Outcomes:
    """One metric of one task [seeds, items], items in the base's order; `name` is the domain and method, for errors."""
    task, metric = part
    base_rows = _rows(base, part)
    values = np.empty((len(models), len(base_rows)))
    for i, (seed, items) in enumerate(zip(seeds, models, strict=True)):
        rows = {row.id: row for row in _rows(items, part)}
        if set(rows) != {row.id for row in base_rows}:
            raise InputError(
                f"{name} (seed {seed}) and the base were not asked the same items of {task!r} "
                f"({len(rows)} and {len(base_rows)}); `dvc repro` benchmarks both with the present params"
            )
        try:
            values[i] = [rows[row.id].metrics[metric] for row in base_rows]
        except KeyError as error:
            raise InputError(f"{name} (seed {seed}): an item of {task!r} has no {error}; `dvc repro`") from error
    return Outcomes(values, seeds, tuple(row.source for row in base_rows))


def _training(runs: Sequence[Trained], method: Method) -> Training:
    distances = [run.summary["distance"]["total"] for run in runs]
    training: Training = {
        "steps": float(np.mean([run.summary["steps"] for run in runs])),
        "seconds": float(np.mean([run.summary["seconds"] for run in runs])),
        "relative_l2": float(np.mean(distances)),
        "relative_l2_per_seed": distances,
    }
    if "thoughts" in runs[0].summary:
        training["thoughts"] = float(np.mean([run.summary["thoughts"] for run in runs]))
        training["unfinished_thoughts"] = float(np.mean([run.summary["unfinished_thoughts"] for run in runs]))
    weights = [weight for run in runs for weight in run.steps.get("lambda", []) if weight is not None]
    if method.distillation and method.distillation.kl_weight == "ema" and weights:
        bound = method.distillation.kl_weight_max * (1 - 1e-6)  # the steps' weights are rounded
        training["kl_weight_at_max"] = float(np.mean([weight >= bound for weight in weights]))
    return training


def _mean_over_seeds(seeds: Sequence[Any]) -> Any:
    """Number by number the mean over seeds of what the analysis measured; None where a seed has none."""
    first = seeds[0]
    if isinstance(first, dict):
        return {name: _mean_over_seeds([seed[name] for seed in seeds]) for name in first}
    if isinstance(first, list):
        return first  # examples: one seed's are enough
    return None if None in seeds else float(np.mean(seeds))


def _merges(domain: DomainStudy, method: str) -> list[Merge]:
    rows: list[Merge] = []
    for run in domain.runs[method]:
        merge = run.merge
        if merge["kind"] is not None:
            scores = {row["coefficient"]: row for row in merge.get("candidates", [])}
            rows.append(
                {
                    "seed": run.seed,
                    "kind": merge["kind"],
                    "coefficient": merge["coefficient"],
                    "relative_l2": merge["distance"]["total"],
                    "bound_met": merge.get("bound_met"),
                    "base": merge.get("base"),
                    "merged": scores.get(merge["coefficient"]),
                    "unmerged": scores.get(1.0),
                }
            )
    return rows
