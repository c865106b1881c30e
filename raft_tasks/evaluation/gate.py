"""The gate: may a candidate go into production? Every rule is a line of one table, with what was found and why.

    domain            no worse than the model in production by more than a margin: the interval of the paired difference
                      lies above -margin. Without one in production: better than the base, the interval lies above 0.
                      An interval that reaches 0 from below -margin shows neither harm nor its absence: unproven
    general           no task worse than the base beyond a margin: its interval does not lie below -margin as a whole.
                      The tasks share the error rate (Bonferroni; some task fails exactly if Holm's method finds one)
    general average   the same of the plain average of the tasks
    fidelity, leaks, size, latency    limits on what was measured

Answers that a panel has judged count as it says: of general tasks always, of the domain where `domain_metric` says so.
Intervals are those of `statistics.difference`: over the items, clustered by source. A rule without evidence fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

from raft_tasks.config import PromotionGate
from raft_tasks.evaluation.harness import DOMAIN_TASK
from raft_tasks.evaluation.statistics import Bootstrap, Estimate, Outcomes, difference
from raft_tasks.evaluation.verdicts import METRIC
from raft_tasks.schemas import ItemResult

Result = Literal["pass", "unproven", "near miss", "fail"]
MAIN = "acc"  # the metric of a general task that decides, where no panel has judged it; without it, the first one
NAMED = 5  # sources that the evidence names


@dataclass(frozen=True)
class Measured:
    """What is known of one model: every item's outcome by task, its size, and how long it takes to answer."""

    name: str
    items: Mapping[str, Sequence[ItemResult]]
    bytes: int | None = None  # of its weights
    seconds: float | None = None  # of an answer, on the same machine and questions as the others
    leaks: float | None = None  # share of its domain answers that speak of a reference


@dataclass(frozen=True)
class Check:
    """One rule."""

    rule: str
    candidate: str  # what was found
    limit: str
    evidence: str
    result: Result


@dataclass(frozen=True)
class Verdict:
    """The checks of one candidate, and what follows."""

    domain: str
    candidate: str
    champion: str | None
    checks: tuple[Check, ...]
    recovered: float | None = None  # coefficient of the interpolation towards the base that the candidate went through
    refused_by: str | None = None  # the person who said no

    @property
    def promoted(self) -> bool:
        return self.refused_by is None and all(check.result == "pass" for check in self.checks)

    @property
    def near_miss(self) -> bool:
        """Whether all that is wrong is a general loss that recovery may mend."""
        return {check.result for check in self.checks} <= {"pass", "near miss"} and not self.promoted

    @property
    def harmful(self) -> bool:
        """Whether a rule is broken or a person said no; not where proof alone is missing that the domain is as good."""
        return self.refused_by is not None or any(check.result in ("near miss", "fail") for check in self.checks)

    @property
    def reason(self) -> str:
        """One line."""
        against = self.champion or "the base, as no model is in production yet"
        made = self.candidate + (
            "" if self.recovered is None else f", interpolated to {self.recovered:g} of its change"
        )
        if self.promoted:
            return f"{made} passes every rule against {against}"
        if self.refused_by is not None:
            return f"{made} passes every rule, and is refused by {self.refused_by}"
        broken = [
            f"{one.rule}: {one.candidate}, {one.limit} ({one.evidence})" for one in self.checks if one.result != "pass"
        ]
        return f"{made} is {'refused' if self.harmful else 'not shown to be good enough'}: " + "; ".join(broken)

    def rows(self) -> list[dict[str, str]]:
        """The table, a row each."""
        return [asdict(check) for check in self.checks]

    def markdown(self) -> str:
        lines = ["| rule | candidate | limit | evidence | result |", "|---|---|---|---|---|"]
        lines += [
            f"| {' | '.join(text.replace('|', '/') for text in asdict(check).values())} |" for check in self.checks
        ]
        return "\n".join([f"{'Promoted' if self.promoted else 'Kept'}: {self.reason}.", "", *lines])

    def refused(self, by: str) -> Verdict:
        return replace(self, refused_by=by)


def judge(
    rules: PromotionGate,
    domain: str,
    candidate: Measured,
    base: Measured,
    champion: Measured | None,
    fidelity: float | None,
) -> Verdict:
    """Hold a candidate to the rules.

    Args:
        candidate, base, champion: measured on the same items; `champion` is None where nothing is in production.
        fidelity: share of the refined training answers that keep what their reference says.
    """
    general = [task for task in base.items if task != DOMAIN_TASK]
    checks = [
        _domain(rules, candidate, champion, base),
        *(_general(rules, [task], candidate, base, 1 - (1 - rules.confidence) / len(general)) for task in general),
        *([_general(rules, general, candidate, base, rules.confidence)] if len(general) > 1 else []),
        _fidelity(rules, fidelity),
        _leaks(rules, candidate, base),
        _ratio("size", "bytes of weights", candidate.bytes, base.bytes, rules.max_size_ratio),
        _ratio("latency", "seconds an answer", candidate.seconds, base.seconds, rules.max_latency_ratio),
    ]
    return Verdict(domain, candidate.name, champion.name if champion else None, tuple(checks))


def _domain(rules: PromotionGate, candidate: Measured, champion: Measured | None, base: Measured) -> Check:
    other = champion or base
    margin = -rules.domain_margin if champion else 0.0
    limit = f"at least {_points(margin)} against {other.name}, with {rules.confidence:.0%} confidence"
    found = _compared(rules, [DOMAIN_TASK], candidate, other, rules.confidence)
    if isinstance(found, str):
        return Check("domain", "unknown", limit, found, "fail")
    low, high = -1.0 if found.low is None else found.low, 1.0 if found.high is None else found.high
    result: Result = "unproven" if high >= 0 else "fail"
    if low >= margin if champion else low > 0:
        result = "pass"
    evidence = _flips(candidate.items[DOMAIN_TASK], other.items[DOMAIN_TASK], rules.domain_metric)
    return Check("domain", _shown(found), limit, evidence, result)


def _general(rules: PromotionGate, tasks: list[str], candidate: Measured, base: Measured, confidence: float) -> Check:
    name = f"general: {tasks[0]}" if len(tasks) == 1 else "general average"
    limit = f"not significantly below {_points(-rules.general_margin)} against {base.name} ({confidence:.2%} interval)"
    found = _compared(rules, tasks, candidate, base, confidence)
    if isinstance(found, str):
        return Check(name, "unknown", limit, found, "fail")
    high = 1.0 if found.high is None else found.high
    result: Result = "pass"
    if high < -rules.general_margin:
        result = "near miss" if found.estimate >= -rules.general_margin - rules.near_miss else "fail"
    evidence = f"{len(tasks)} tasks"
    if len(tasks) == 1:
        mine, theirs = candidate.items[tasks[0]], base.items[tasks[0]]
        evidence = _flips(mine, theirs, _metric(rules, tasks[0], theirs))
    return Check(name, _shown(found), limit, evidence, result)


def _fidelity(rules: PromotionGate, fidelity: float | None) -> Check:
    limit = f"at least {rules.min_fidelity:.0%}"
    if fidelity is None:
        return Check("fidelity", "unknown", limit, "no refined rows were given", "fail")
    result: Result = "pass" if fidelity >= rules.min_fidelity else "fail"
    return Check("fidelity", f"{fidelity:.1%}", limit, "refined answers that keep what their reference says", result)


def _leaks(rules: PromotionGate, candidate: Measured, base: Measured) -> Check:
    limit = f"at most {_points(rules.max_leaks)} above {base.name}"
    if candidate.leaks is None or base.leaks is None:
        return Check("leaks", "unknown", limit, "no answers were given", "fail")
    result: Result = "pass" if candidate.leaks - base.leaks <= rules.max_leaks else "fail"
    evidence = f"domain answers that speak of a reference; {base.name} {base.leaks:.1%}"
    return Check("leaks", f"{candidate.leaks:.1%}", limit, evidence, result)


def _ratio(rule: str, what: str, own: float | None, base: float | None, limit: float) -> Check:
    shown = f"at most {limit:g} times the base's"
    if not own or not base:
        return Check(rule, "unknown", shown, f"{what} were not measured", "fail")
    result: Result = "pass" if own / base <= limit else "fail"
    return Check(rule, f"{own / base:.2f} times", shown, f"{what}: {own:.6g} against {base:.6g}", result)


def _compared(
    rules: PromotionGate, tasks: list[str], candidate: Measured, other: Measured, confidence: float
) -> Estimate | str:
    """The paired difference of the tasks' average, or why there is none."""
    ours: list[Outcomes] = []
    others: list[Outcomes] = []
    for task in tasks:
        mine, theirs = candidate.items.get(task, ()), other.items.get(task, ())
        metric = _metric(rules, task, theirs)
        mine, theirs = ([row for row in rows if metric in row.metrics] for rows in (mine, theirs))
        if not mine or not theirs:
            return f"no outcomes of {task} by {metric} for {candidate.name if not mine else other.name}"
        if [row.id for row in mine] != [row.id for row in theirs]:
            return f"{candidate.name} and {other.name} were not asked the same items of {task}"
        for side, rows in ((ours, mine), (others, theirs)):
            values = np.array([[row.metrics[metric] for row in rows]])
            side.append(Outcomes(values, (None,), tuple(row.source for row in rows)))
    return difference(ours, others, Bootstrap(confidence, rules.bootstrap_samples, rules.seed))


def _metric(rules: PromotionGate, task: str, rows: Sequence[ItemResult]) -> str:
    """What decides: of the domain, what params say; of a general task, the panel's verdict where there is one."""
    if task == DOMAIN_TASK:
        return rules.domain_metric
    given = {metric: None for row in rows for metric in row.metrics}
    return next((metric for metric in (METRIC, MAIN) if metric in given), next(iter(given), MAIN))


def _flips(mine: Sequence[ItemResult], theirs: Sequence[ItemResult], metric: str) -> str:
    """How many items were lost and won by this metric, and of which sources the most were lost."""
    pairs = [
        (row.source, row.metrics[metric], other.metrics[metric])
        for row, other in zip(mine, theirs, strict=True)
        if metric in row.metrics and metric in other.metrics
    ]
    lost = Counter(source for source, own, other in pairs if own < other)
    won = sum(own > other for _, own, other in pairs)
    named = ", ".join(f"{source} ({count})" for source, count in lost.most_common(NAMED))
    return f"{lost.total()} of {len(pairs)} items lost, {won} won" + (f"; lost most: {named}" if lost else "")


def _points(share: float) -> str:
    return f"{100 * share:+g} points" if share else "more than 0 points"


def _shown(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return f"{100 * found.estimate:+.1f} points, without an interval: one source alone"
    return f"{100 * found.estimate:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
