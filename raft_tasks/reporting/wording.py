"""Numbers, names and verdicts in words: what page, Markdown and terminal say about a result, read off the metrics."""

from collections.abc import Mapping

from raft_tasks.evaluation.statistics import Verdict
from raft_tasks.reporting.metrics import Change, DomainMetrics, Interval, Metrics, OverallMetrics

ACRONYMS = {
    "sft", "sdft", "raft", "fapm", "dft", "eaft", "kl", "ce", "ema", "lora", "talr", "asft", "mlp", "dg", "osf",
}  # fmt: skip
MEASURE_NAMES = {
    "domain_acc": "domain",
    "domain_complete": "domain, complete",
    "domain_judged": "domain, judged",
    "general": "general",
}
SHOWN_CHARACTERS = 300  # of a question or an answer
OPPOSITE: dict[Verdict, Verdict] = {
    "higher": "lower",
    "lower": "higher",
    "no clear difference": "no clear difference",
}


def label(method: str) -> str:
    """A method's name for readers: fused_sft -> fused SFT."""
    words = (word.upper() if word in ACRONYMS else word for word in method.split("_"))
    return " ".join(words).replace("mixsd", "MixSD")


def measure_name(measure: str) -> str:
    return MEASURE_NAMES.get(measure, measure.replace("domain_", "domain, ").replace("_", " "))


def percent(estimate: Interval | None, signed: bool = False) -> tuple[str, str]:
    """An estimate and its interval in percent (or points), as two strings; a dash where there is none."""
    if estimate is None:
        return "–", ""
    low, high = estimate["low"], estimate["high"]
    interval = "" if low is None or high is None else f"{points(low, signed)} to {points(high, signed)}"
    return points(estimate["estimate"], signed), interval


def points(share: float, signed: bool = False) -> str:
    """A share as percent with one decimal; a real minus sign, and never a negative zero."""
    shown = round(100 * share, 1) + 0.0
    return f"{shown:{'+' if signed and shown else ''}.1f}".replace("-", "\N{MINUS SIGN}")


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def shorten(text: str, characters: int = SHOWN_CHARACTERS) -> str:
    return text if len(text) <= characters else f"{text[:characters]} […]"


def headline(metrics: Metrics, scored: DomainMetrics | OverallMetrics) -> str:
    """One sentence that the paired intervals support: RAFT against plain SFT.

    Args:
        scored: a domain's part of `metrics`, or `metrics["overall"]`.
    """
    candidate, reference = metrics["candidate"], metrics["reference"]
    if not candidate or not reference:
        return "This run has no comparison of RAFT with plain SFT: it did not train both."
    change = scored["methods"][candidate]["against_reference"]
    return compare_in_words(candidate, reference, {measure: row["verdict"] for measure, row in change.items()})


def second_headline(metrics: Metrics, scored: DomainMetrics | OverallMetrics) -> str | None:
    """The same of the anchored method against RAFT; None where one of them was not trained."""
    candidate, anchored = metrics["candidate"], metrics["anchored"]
    if not candidate or not anchored or anchored == candidate:
        return None
    change = scored["methods"][anchored]["candidate_against_it"]
    return compare_in_words(anchored, candidate, {measure: OPPOSITE[row["verdict"]] for measure, row in change.items()})


def compare_in_words(method: str, other: str, verdicts: Mapping[str, Verdict]) -> str:
    subject, opponent = label(method), label(other)
    subject = subject[0].upper() + subject[1:]
    domain = {
        "higher": f"{subject} learned more of the domain than {opponent}",
        "lower": f"{subject} learned less of the domain than {opponent}",
        "no clear difference": f"{subject} shows no clear difference from {opponent} in the domain",
    }[verdicts["domain_acc"]]
    if "general" not in verdicts:
        return f"{domain}."
    general = {
        "higher": "kept more of what the model could do before",
        "lower": "kept less of what the model could do before",
        "no clear difference": "shows no clear difference in general ability",
    }[verdicts["general"]]
    opposed = {verdicts["domain_acc"], verdicts["general"]} == {"higher", "lower"}
    return f"{domain}, {'but' if opposed else 'and'} {general}."


def describe_change(change: Change) -> str:
    value, interval = percent(change, signed=True)
    direction = "not clearly different" if change["verdict"] == "no clear difference" else change["verdict"]
    return f"{direction} ({value} points{', ' + interval if interval else ''})"


def describe_changes(subject: str, changes: Mapping[str, Change], measures: list[str]) -> str:
    parts = [f"{MEASURE_NAMES[measure]} score {describe_change(changes[measure])}" for measure in measures]
    return f"{subject}: {'; '.join(parts)}."


def sentences(metrics: Metrics, scored: DomainMetrics | OverallMetrics) -> list[str]:
    """The numbers behind the headlines: RAFT against plain SFT, the same target without a teacher, and anchors."""
    candidate, reference, anchored = metrics["candidate"], metrics["reference"], metrics["anchored"]
    if not candidate:
        return []
    notes = {reference: ""} if reference else {}
    notes |= dict.fromkeys(metrics["same_target_without_teacher"], " (same targets, no teacher)")
    if anchored and anchored != candidate:
        notes[anchored] = " (regularised towards the base on anchors)"
    measures = [measure for measure in ("domain_acc", "general") if measure in scored["measures"]]
    return [
        describe_changes(
            f"{label(candidate)} against {label(other)}{note}",
            scored["methods"][other]["candidate_against_it"],
            measures,
        )
        for other, note in notes.items()
    ]
