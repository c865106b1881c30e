"""The gate: may a candidate go into production? Every rule is a line of one table: value, limit, evidence, result.

    domain            no worse than the model in production by more than a margin: the interval of the paired difference
                      lies above -margin. Without one in production: better than the base, the interval lies above 0.
                      An interval that reaches 0 from below -margin shows neither harm nor its absence: unproven.
                      So do fewer sources than the sign test needs: all alike, they would not be significant.
                      And unless a gain is shown, so do sources that may miss a loss of the margin even if all agree
    general           no task worse than the base beyond a margin: its interval does not lie below -margin as a whole.
                      The tasks share the error rate (Bonferroni; some task fails exactly if Holm's method finds one)
    general average   the same of the plain average of the tasks
    domain (thinking) of a model that is served in both modes: while it thinks, no worse than the model in production,
                      or the base, by more than the domain's margin. Its general tasks count in either mode
    thoughts          of answers with thinking on: those with a finished thought are not fewer than the base's, beyond
                      the general margin
    fidelity, leaks, size, latency    limits on what was measured
    prompting         the candidate's folder alone prompts and stops as its training did (evaluation/prompting.py)

The evaluator's own noise: where the candidate was measured twice, the second time with another batch size, number
format or seed, a rule has a floor: the end, farther from 0, of the interval of the difference between the two. What is
nearer to 0 than the floor is neither gain nor loss, and a margin below the floor cannot be judged: unknown, unproven.

Answers that a panel has judged count as it says: of general tasks always, of the domain where `domain_metric` says so.
Intervals are those of `statistics.difference`: over the items, clustered by source; a single source has none. A rule
without evidence does not pass: unknown, unproven.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import numpy as np

from raft_tasks.config import PromotionGate
from raft_tasks.evaluation.harness import DOMAIN_TASK
from raft_tasks.evaluation.outcomes import THOUGHT_METRICS
from raft_tasks.evaluation.statistics import Bootstrap, Estimate, Outcomes, difference
from raft_tasks.evaluation.verdicts import main_metric
from raft_tasks.schemas import ItemResult, thinking_name

Result = Literal["pass", "unproven", "near miss", "fail"]
UNKNOWN = "unknown"  # a rule's value where there is no evidence
NAMED = 5  # sources that the evidence names
DOMAIN_TASKS = (DOMAIN_TASK, thinking_name(DOMAIN_TASK))  # the second of models that are served in both modes


@dataclass(frozen=True)
class Measured:
    """One model's measurements: every item's outcome by task, its size, and how long it takes to answer."""

    name: str
    items: Mapping[str, Sequence[ItemResult]]
    bytes: int | None = None  # of its weights
    seconds: float | None = None  # of an answer, on the same machine and questions as the others
    leaks: float | None = None  # share of its domain answers that mention a reference
    prompting: Mapping[str, str | None] | None = None  # what prompting.py finds in its folder


@dataclass(frozen=True)
class Check:
    """One rule."""

    rule: str
    candidate: str  # its value
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
    coefficient: float | None = None  # of the interpolation towards the base, where a near miss went through one
    refused_by: str | None = None  # the person who said no

    @property
    def promoted(self) -> bool:
        return self.refused_by is None and all(check.result == "pass" for check in self.checks)

    @property
    def near_miss(self) -> bool:
        """Whether the only fault is a general loss that interpolating towards the base may mend."""
        return {check.result for check in self.checks} <= {"pass", "near miss"} and not self.promoted

    @property
    def harmful(self) -> bool:
        """Whether a rule is broken or a person said no; not where only proof is missing."""
        return self.refused_by is not None or any(check.result in ("near miss", "fail") for check in self.checks)

    @property
    def undecidable(self) -> bool:
        """Whether nothing is wrong but that some rules have no evidence."""
        failed = [check for check in self.checks if check.result != "pass"]
        return self.refused_by is None and bool(failed) and all(check.candidate == UNKNOWN for check in failed)

    @property
    def reason(self) -> str:
        """One line."""
        against = self.champion or "the base"
        name = self.candidate
        if self.coefficient is not None:
            name += f", interpolated to {self.coefficient:g} of its change"
        if self.promoted:
            return f"{name} passes every rule against {against}"
        if self.refused_by is not None:
            return f"{name} passes every rule, and is refused by {self.refused_by}"
        broken = [
            f"{check.rule}: {check.candidate}, {check.limit} ({check.evidence})"
            for check in self.checks
            if check.result != "pass"
        ]
        return f"{name} is {'refused' if self.harmful else 'not shown to be good enough'}: " + "; ".join(broken)

    def rows(self) -> list[dict[str, str]]:
        """The table, a row each."""
        return [asdict(check) for check in self.checks]

    def markdown(self) -> str:
        return "\n".join([f"{'Promoted' if self.promoted else 'Kept'}: {self.reason}.", "", self.table()])

    def table(self) -> str:
        lines = ["| rule | candidate | limit | evidence | result |", "|---|---|---|---|---|"]
        lines += [
            f"| {' | '.join(text.replace('|', '/') for text in asdict(check).values())} |" for check in self.checks
        ]
        return "\n".join(lines)


def check_candidate(
    rules: PromotionGate,
    domain: str,
    candidate: Measured,
    base: Measured,
    champion: Measured | None,
    fidelity: float | None,
    repeat: Measured | None = None,
) -> Verdict:
    """Check a candidate against the rules.

    Args:
        candidate, base, champion: measured on the same items; `champion` is None where nothing is in production.
        fidelity: share of the refined training answers that keep every fact of their reference.
        repeat: the candidate measured a second time, in another way; None: the noise counts as 0.
    """
    general = [task for task in base.items if task not in DOMAIN_TASKS]
    of_each = 1 - (1 - rules.confidence) / max(len(general), 1)
    thoughtful = [task for task, rows in base.items.items() if any(THOUGHT_METRICS[0] in row.metrics for row in rows)]
    comparison = _Comparison(rules, candidate, base, repeat)
    checks = [
        *(comparison.domain(task, champion) for task in DOMAIN_TASKS if task in base.items),
        *(comparison.general([task], of_each) for task in general),
        *([comparison.general(general, rules.confidence)] if len(general) > 1 else []),
        *([comparison.thoughts(thoughtful)] if thoughtful else []),
        *([] if rules.min_fidelity is None else [_fidelity(rules.min_fidelity, fidelity)]),
        comparison.leaks(),
        _prompting(candidate),
        _ratio("size", "bytes of weights", candidate.bytes, base.bytes, rules.max_size_ratio),
        _ratio("latency", "seconds an answer", candidate.seconds, base.seconds, rules.max_latency_ratio),
    ]
    return Verdict(domain, candidate.name, champion.name if champion else None, tuple(checks))


class _Change(NamedTuple):
    """A paired difference, and how far it may lie from itself when it is measured again."""

    estimate: float
    low: float
    high: float
    floor: float
    sources: int
    text: str


@dataclass(frozen=True)
class _Comparison:
    """The rules on what is measured of a candidate and of other models; the noise is 0 without a `repeat`."""

    rules: PromotionGate
    candidate: Measured
    base: Measured
    repeat: Measured | None

    def domain(self, task: str, champion: Measured | None) -> Check:
        rules, other = self.rules, champion or self.base
        gains = champion is None and task == DOMAIN_TASK  # there is nothing yet that knows the domain
        margin = 0.0 if gains else -rules.domain_margin
        above = "more than 0 points" if gains else f"at least {_points(margin)}"
        limit = f"{above} against {other.name}, with {rules.confidence:.0%} confidence"
        change = self.change([task], other, rules.confidence)
        if isinstance(change, str):
            return _unknown(task, limit, change)
        least = math.ceil(math.log2(2 / (1 - rules.confidence)) - 1e-9)  # 2 (1/2)^least <= 1 - confidence
        if change.sources < least:
            return _unknown(task, limit, _few_sources(change.sources, least))
        if not gains and change.floor > rules.domain_margin and change.high >= -change.floor:
            return _below_noise(task, limit, rules.domain_margin, change.floor)
        result: Result = "unproven" if change.high >= -change.floor else "fail"
        if change.low > change.floor if gains else change.low >= margin:
            result = "pass"
        evidence = self.flips(task, other) + self.noise(change.floor)
        missed = 1 - (1 - rules.confidence) ** (1 / change.sources)  # where few items flip, the interval is too narrow
        if result == "pass" and change.low <= 0 and missed > rules.domain_margin:
            result = "unproven"
            evidence += f"; {change.sources} sources may miss a loss of {100 * missed:.2f} points even if all agree"
        return Check(task, change.text, limit, evidence, result)

    def general(self, tasks: list[str], confidence: float) -> Check:
        rule, margin = f"general: {tasks[0]}" if len(tasks) == 1 else "general average", self.rules.general_margin
        limit = f"not significantly below {_points(-margin)} against {self.base.name} ({confidence:.2%} interval)"
        change = self.change(tasks, self.base, confidence)
        if isinstance(change, str):
            return _unknown(rule, limit, change)
        result: Result = "pass"
        if change.high < -max(margin, change.floor):
            result = "fail" if _exceeds(-change.estimate, margin + self.rules.near_miss) else "near miss"
        elif change.floor > margin:
            return _below_noise(rule, limit, margin, change.floor)
        evidence = self.flips(tasks[0], self.base) if len(tasks) == 1 else f"{len(tasks)} tasks"
        return Check(rule, change.text, limit, evidence + self.noise(change.floor), result)

    def thoughts(self, tasks: list[str]) -> Check:
        """Of the tasks that were answered with thinking on."""
        (finished, unfinished), margin = THOUGHT_METRICS, self.rules.general_margin
        limit = f"not significantly below {_points(-margin)} against {self.base.name}"
        change = self.change(tasks, self.base, self.rules.confidence, finished)
        if isinstance(change, str):
            return _unknown("thoughts", limit, change)
        lost = change.high < -max(margin, change.floor)
        if change.floor > margin and not lost:
            return _below_noise("thoughts", limit, margin, change.floor)
        shares = [
            f"{model.name} {_mean(model, tasks, finished):.1%}, unfinished {_mean(model, tasks, unfinished):.1%}"
            for model in (self.candidate, self.base)
        ]
        evidence = f"answers with a finished thought: {'; '.join(shares)}{self.noise(change.floor)}"
        return Check("thoughts", change.text, limit, evidence, "fail" if lost else "pass")

    def leaks(self) -> Check:
        margin, leaks, of_base = self.rules.max_leaks, self.candidate.leaks, self.base.leaks
        limit = f"at most {_points(margin)} above {self.base.name}"
        repeated = leaks if self.repeat is None else self.repeat.leaks
        if leaks is None or of_base is None or repeated is None:
            return _unknown("leaks", limit, "no answers were given")
        floor = abs(repeated - leaks)
        beyond = _exceeds(leaks - of_base, max(margin, floor))
        if _exceeds(floor, margin) and not beyond:
            return _below_noise("leaks", limit, margin, floor)
        evidence = f"domain answers that mention a reference; {self.base.name} {of_base:.1%}{self.noise(floor)}"
        return Check("leaks", f"{leaks:.1%}", limit, evidence, "fail" if beyond else "pass")

    def change(self, tasks: list[str], other: Measured, confidence: float, metric: str | None = None) -> _Change | str:
        """The tasks' average, candidate against `other`, or why there is none."""
        change = self.difference(tasks, self.candidate, other, confidence, metric)
        noise = None
        if self.repeat is not None:
            noise = self.difference(tasks, self.repeat, self.candidate, self.rules.confidence, metric)
        if isinstance(change, str) or isinstance(noise, str):
            return change if isinstance(change, str) else str(noise)
        if change.low is None or change.high is None:
            alone = [task for task in tasks if len({row.source for row in self.candidate.items[task]}) == 1]
            return (
                f"all items of {', '.join(alone or tasks)} have one source, so there is no interval: "
                "give the items different sources"
            )
        ends = (noise.estimate, noise.low, noise.high) if noise else (0.0,)
        floor = max(abs(end) for end in ends if end is not None)
        text = f"{100 * change.estimate:+.1f} points ({100 * change.low:+.1f} to {100 * change.high:+.1f})"
        return _Change(change.estimate, change.low, change.high, floor, change.n_sources, text)

    def difference(
        self, tasks: list[str], model: Measured, other: Measured, confidence: float, metric: str | None
    ) -> Estimate | str:
        """The paired difference of the tasks' average by `metric`, else by what decides, or why there is none."""
        ours: list[Outcomes] = []
        theirs: list[Outcomes] = []
        for task in tasks:
            by = metric or self.metric(task, other)
            rows = [[row for row in side.items.get(task, ()) if by in row.metrics] for side in (model, other)]
            if not all(rows):
                return f"no outcomes of {task} by {by} for {other.name if rows[0] else model.name}"
            if [row.id for row in rows[0]] != [row.id for row in rows[1]]:
                return f"{model.name} and {other.name} have different items of {task}"
            for side, of_model in zip((ours, theirs), rows, strict=True):
                values = np.array([[row.metrics[by] for row in of_model]])
                side.append(Outcomes(values, (None,), tuple(row.source for row in of_model)))
        return difference(ours, theirs, Bootstrap(confidence, self.rules.bootstrap_samples, self.rules.seed))

    def metric(self, task: str, model: Measured) -> str:
        """What decides: of the domain, rules.domain_metric; of a general task, its main metric."""
        if task in DOMAIN_TASKS:
            return self.rules.domain_metric
        metrics = {metric: None for row in model.items.get(task, ()) for metric in row.metrics}
        return main_metric(metrics or ["acc"])

    def flips(self, task: str, other: Measured) -> str:
        """How many items were lost and won, and of which sources the most were lost."""
        metric = self.metric(task, other)
        pairs = [
            (row.source, row.metrics[metric] - before.metrics[metric])
            for row, before in zip(self.candidate.items[task], other.items[task], strict=True)
            if metric in row.metrics and metric in before.metrics
        ]
        lost = Counter(source for source, change in pairs if change < 0)
        won = sum(change > 0 for _, change in pairs)
        sources = ", ".join(f"{source} ({count})" for source, count in lost.most_common(NAMED))
        return f"{lost.total()} of {len(pairs)} items lost, {won} won" + (f"; lost most: {sources}" if lost else "")

    def noise(self, floor: float) -> str:
        return "" if self.repeat is None else f"; noise {100 * floor:.1f} points"


def _exceeds(value: float, limit: float) -> bool:
    """Whether it does by more than floats are off: as floats .07 - .06 > .01."""
    return value - limit > 1e-9


def _unknown(rule: str, limit: str, evidence: str) -> Check:
    return Check(rule, UNKNOWN, limit, evidence, "unproven")


def _few_sources(count: int, least: int) -> str:
    return (
        f"the items have {count} source(s), expected at least {least}: fewer show no difference with this confidence, "
        "even if all agree. Hold more questions out, or give the items different sources"
    )


def _below_noise(rule: str, limit: str, margin: float, floor: float) -> Check:
    evidence = (
        f"the margin of {100 * margin:g} points lies below the evaluator's noise, up to {100 * floor:.1f} points "
        "between two measurements of the candidate: measure more items, or raise the margin"
    )
    return _unknown(rule, limit, evidence)


def _mean(model: Measured, tasks: list[str], metric: str) -> float:
    """The plain average of the tasks' means."""
    return float(np.mean([np.mean([row.metrics[metric] for row in model.items[task]]) for task in tasks]))


def _fidelity(least: float, fidelity: float | None) -> Check:
    limit = f"at least {least:.0%}"
    if fidelity is None:
        return _unknown("fidelity", limit, "no refined rows were given")
    result: Result = "pass" if fidelity >= least else "fail"
    return Check(
        "fidelity", f"{fidelity:.1%}", limit, "refined answers that keep every fact of their reference", result
    )


def _prompting(candidate: Measured) -> Check:
    limit = "the folder alone gives the token ids of training, and its end of turn"
    if candidate.prompting is None:
        return _unknown("prompting", limit, "no prompts were compared")
    differences = [f"{name}: {difference}" for name, difference in candidate.prompting.items() if difference]
    equal = len(candidate.prompting) - len(differences)
    evidence = "; ".join(differences) or ", ".join(candidate.prompting)
    shown = f"{equal} of {len(candidate.prompting)} as in training"
    return Check("prompting", shown, limit, evidence, "fail" if differences else "pass")


def _ratio(rule: str, unit: str, candidate: float | None, base: float | None, limit: float) -> Check:
    shown = f"at most {limit:g} times the base's"
    if not candidate or not base:
        return _unknown(rule, shown, f"{unit} were not measured")
    result: Result = "pass" if candidate / base <= limit else "fail"
    return Check(rule, f"{candidate / base:.2f} times", shown, f"{unit}: {candidate:.6g} against {base:.6g}", result)


def _points(share: float) -> str:
    return f"{100 * share + 0.0:+g} points"  # no -0
