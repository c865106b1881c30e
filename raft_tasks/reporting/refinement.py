"""What refinement did to a domain's rows: counts, lengths, judges, and a sample of rows with their changes marked."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any, Literal

import numpy as np

from raft_tasks.config import Config
from raft_tasks.reporting.study import DomainStudy
from raft_tasks.schemas import Comparison, Fused

BIN = 0.05  # of the similarity histogram
LENGTH_BINS = 20
SHOWN_CHARACTERS = 1500  # of a text in the sample
TOKEN = re.compile(r"\w+|\s+|[^\w\s]")
OUTCOMES = {  # of a row, in the words of the page; the keys are Fused.fallback, Fused.unfused and two good ends
    "similarity": "reference: the rewrite's similarity is below the threshold",
    "unfinished": "reference: the rewrite was cut off",
    "empty": "reference: the rewrite is empty",
    "failed": "reference: the model gave no rewrite",
    "fidelity": "reference: the rewrite lost a fact (veto)",
    "fused": "fused answer",
    "rewrite": "rewrite, which no fusion surpassed",
    "quorum": "reference: too few judges scored any candidate",
    "fidelity of all candidates": "reference: every candidate lost a fact (veto)",
}

Span = tuple[Literal["same", "gone", "new"], str]


def measure_refinement(domain: DomainStudy, config: Config) -> dict[str, Any]:
    """Every number of the report's part on refinement, JSON-ready."""
    rows = domain.fused
    passed = [row for row in rows if row.passed]
    scored = [row.score for row in passed if row.score is not None]
    edges = np.round(np.arange(min(0.0, _lowest(rows)), 1 + BIN, BIN), 2)
    outcomes = Counter(outcome(row) for row in rows)
    return {
        "rows_in": sum(domain.splits.get(split, 0) for split in ("train", "validation", "test")) + len(domain.rejects),
        "rows_rejected": len(domain.rejects),
        "rejects": domain.splits["rejected_by_rule"],
        "flags": domain.splits["flagged_by_rule"],
        "questions": domain.questions,
        "rows_train": len(rows),
        "rows_test": len(domain.test),
        "rewrites_unfinished": sum(not row.finished for row in rows),
        "rewrites_passed": len(passed),
        "share_passed": len(passed) / len(rows),
        "passed_that_lost_something": sum(bool(row.lost) for row in passed),
        "tau": config.semantic_filter.tau,
        "mean_similarity": float(np.mean([row.similarity for row in rows])),
        "similarity_edges": [float(edge) for edge in edges],
        "similarity_counts": np.histogram([row.similarity for row in rows], bins=edges)[0].tolist(),
        "fused_changed": sum(row.fused != row.rewritten for row in passed),
        "share_fused_changed": sum(row.fused != row.rewritten for row in passed) / len(passed) if passed else None,
        "mean_fusion_score": float(np.mean(scored)) if scored else None,
        "outcomes": {name: outcomes[name] for name in OUTCOMES if outcomes[name]},
        "lengths": _lengths(rows),
        "judges": _judges(rows, domain.judging["agreement"]["judges"]),
        "agreement": domain.judging["agreement"],
        "calibration": domain.judging["calibration"],
        "comparisons": _comparisons([one for row in rows for one in row.comparisons]),
    }


def outcome(row: Fused) -> str:
    """Which of OUTCOMES a row came to."""
    if row.fallback:
        return row.fallback
    if row.unfused == "fidelity":
        return "fidelity of all candidates"
    return row.unfused or ("rewrite" if row.fused == row.rewritten else "fused")


def sample(rows: list[Fused], count: int, seed: int) -> list[Fused]:
    """Up to `count` rows, drawn with `seed`: of every outcome in turn, so that rare ones are seen too."""
    order = random.Random(seed).sample(rows, len(rows))
    by_outcome = {name: [row for row in order if outcome(row) == name] for name in OUTCOMES}
    chosen: list[Fused] = []
    while len(chosen) < min(count, len(rows)):
        for own in by_outcome.values():
            if own and len(chosen) < count:
                chosen.append(own.pop(0))
    return chosen


def marked(old: str, new: str) -> list[Span]:
    """`new` word by word, with what it has beyond `old`, and what of `old` is gone, in reading order."""
    before, after = TOKEN.findall(_shown(old)), TOKEN.findall(_shown(new))
    return list(_merged(_spans(before, after)))


def _spans(before: list[str], after: list[str]) -> Iterator[Span]:
    for kind, i, j, k, m in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            yield "same", "".join(after[k:m])
        else:
            yield "gone", "".join(before[i:j])
            yield "new", "".join(after[k:m])


def _merged(spans: Iterator[Span]) -> Iterator[Span]:
    """Neighbouring changes as one, blanks between them included: a reader sees phrases, not confetti."""
    gone = new = ""
    for kind, text in spans:
        if kind == "gone":
            gone += text
        elif kind == "new":
            new += text
        elif (gone or new) and text.isspace():
            gone, new = gone + text, new + text
        else:
            yield from (span for span in (("gone", gone), ("new", new)) if span[1])
            gone = new = ""
            yield "same", text
    yield from (span for span in (("gone", gone), ("new", new)) if span[1])


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} […]"


def _lengths(rows: list[Fused]) -> dict[str, Any]:
    """Words of the reference answers and of the learned ones: means, and both counted in the same bins."""
    words = {
        name: np.array([len(text.split()) for text in texts])
        for name, texts in (("reference", [row.answer for row in rows]), ("learned", [row.fused for row in rows]))
    }
    most = max(int(np.quantile(own, 0.99)) for own in words.values()) + 1
    edges = np.unique(np.linspace(0, most, min(LENGTH_BINS, most) + 1).round())
    return {
        "mean": {name: float(own.mean()) for name, own in words.items()},
        "edges": edges.tolist(),
        "counts": {name: np.histogram(np.minimum(own, most), edges)[0].tolist() for name, own in words.items()},
    }


def _judges(rows: list[Fused], totals: dict[str, Any]) -> dict[str, Any]:
    """Per judge: mean score of the rewrites and of the chosen answers, beside its totals over all candidates."""
    found = {}
    for name, own in totals.items():
        drawn = [(candidate, row) for row in rows for candidate in row.candidates if name in candidate.scores]
        rewrites = [candidate.scores[name] for candidate, _ in drawn if candidate.round == 0]
        first = {row.id: candidate.scores[name] for candidate, row in reversed(drawn) if candidate.text == row.fused}
        found[name] = {
            **own,
            "rewrites": float(np.mean(rewrites)) if rewrites else None,
            "chosen": float(np.mean(list(first.values()))) if first else None,
        }
    return found


def _comparisons(comparisons: list[Comparison]) -> dict[str, Any]:
    """Per judge: pairs compared, without a usable answer, and of the others the share that the order did not change."""
    found = {}
    for name in dict.fromkeys(one.judge for one in comparisons):
        own = [one for one in comparisons if one.judge == name]
        usable = [one for one in own if one.better and one.better_swapped]
        steady = sum(one.better == one.better_swapped for one in usable)
        found[name] = {
            "pairs": len(own),
            "unusable": len(own) - len(usable),
            "steady": steady / len(usable) if usable else None,
        }
    return found


def _lowest(rows: list[Fused]) -> float:
    return float(np.floor(min(row.similarity for row in rows) / BIN) * BIN)
