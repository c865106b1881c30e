"""Data refinement in numbers: counts, lengths, judges, and a sample of rows with their changes marked."""

import random
import re
from collections import Counter
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any, Literal

import numpy as np

from raft_tasks.config import Config
from raft_tasks.reporting.metrics import JudgeScores, Lengths, Refinement
from raft_tasks.reporting.study import DomainStudy
from raft_tasks.reporting.wording import shorten
from raft_tasks.schemas import Comparison, Fused

BIN = 0.05  # of the similarity histogram
LENGTH_BINS = 20
SHOWN_CHARACTERS = 1500  # of a text in the sample
TOKEN = re.compile(r"\w+|\s+|[^\w\s]")
OUTCOMES = {  # of a row, as the page says it; the keys are Fused.fallback, Fused.unfused and two successes
    "similarity": "reference answer: the rewrite's similarity is below the threshold",
    "unfinished": "reference answer: the rewrite was cut off",
    "framing": "reference answer: the rewrite repeats the prompt, or opens like many others",
    "empty": "reference answer: the rewrite is empty",
    "failed": "reference answer: the model returned no rewrite",
    "fidelity": "reference answer: the rewrite lost a fact (veto)",
    "fused": "fused answer",
    "rewrite": "rewrite: no fused candidate scored higher",
    "quorum": "reference answer: too few judges scored any candidate",
    "fidelity of all candidates": "reference answer: every candidate lost a fact (veto)",
}

Span = tuple[Literal["same", "gone", "new"], str]


def measure_refinement(domain: DomainStudy, config: Config) -> Refinement:
    """Every number of the report's part on refinement."""
    rows = domain.fused
    passed = [row for row in rows if row.passed]
    scored = [row.score for row in passed if row.score is not None]
    lowest = np.floor(min(row.similarity for row in rows) / BIN) * BIN
    edges = np.round(np.arange(min(0.0, lowest), 1 + BIN, BIN), 2)
    outcomes = Counter(row_outcome(row) for row in rows)
    return {
        "rows_in": domain.splits["rows"],
        "rows_rejected": len(domain.rejects),
        "rows_left_out": domain.splits["left_out"],
        "rejects": domain.splits["rejected_by_rule"],
        "flags": domain.splits["flagged_by_rule"],
        "questions": domain.questions,
        "rows_train": len(rows),
        "rows_test": len(domain.test),
        "rewrites_unfinished": sum(not row.finished for row in rows),
        "rewrites_passed": len(passed),
        "share_passed": len(passed) / len(rows),
        "passed_with_lost_facts": sum(bool(row.lost) for row in passed),
        "tau": config.semantic_filter.tau,
        "mean_similarity": float(np.mean([row.similarity for row in rows])),
        "similarity_edges": [float(edge) for edge in edges],
        "similarity_counts": np.histogram([row.similarity for row in rows], bins=edges)[0].tolist(),
        "fused_changed": outcomes["fused"],
        "share_fused_changed": outcomes["fused"] / len(passed) if passed else None,
        "mean_fusion_score": float(np.mean(scored)) if scored else None,
        "outcomes": {name: outcomes[name] for name in OUTCOMES if outcomes[name]},
        "lengths": _lengths(rows),
        "judges": _judges(rows, domain.judging["agreement"]["judges"]),
        "agreement": domain.judging["agreement"],
        "calibration": domain.judging["calibration"],
        "comparisons": _comparisons([pair for row in rows for pair in row.comparisons]),
    }


def row_outcome(row: Fused) -> str:
    """Which of OUTCOMES a row came to."""
    if row.fallback:
        return row.fallback
    if row.unfused == "fidelity":
        return "fidelity of all candidates"
    return row.unfused or ("rewrite" if row.fused == row.rewritten else "fused")


def sample_rows(rows: list[Fused], count: int, seed: int) -> list[Fused]:
    """Up to `count` rows, drawn with `seed`: of every outcome in turn, so that rare ones are seen too."""
    order = random.Random(seed).sample(rows, len(rows))
    by_outcome = {name: [row for row in order if row_outcome(row) == name] for name in OUTCOMES}
    selected: list[Fused] = []
    while len(selected) < min(count, len(rows)):
        for group in by_outcome.values():
            if group and len(selected) < count:
                selected.append(group.pop(0))
    return selected


def mark_changes(old: str, new: str) -> list[Span]:
    """`new` word by word, with what it has beyond `old`, and what of `old` is gone, in reading order."""
    before, after = (TOKEN.findall(shorten(text, SHOWN_CHARACTERS)) for text in (old, new))
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


def _lengths(rows: list[Fused]) -> Lengths:
    """Words per reference answer and per target: means, and counts in the same bins."""
    words = {
        name: np.array([len(text.split()) for text in texts])
        for name, texts in (("reference", [row.answer for row in rows]), ("target", [row.fused for row in rows]))
    }
    longest = max(int(np.quantile(counts, 0.99)) for counts in words.values()) + 1
    edges = np.unique(np.linspace(0, longest, min(LENGTH_BINS, longest) + 1).round())
    return {
        "mean": {name: float(counts.mean()) for name, counts in words.items()},
        "edges": edges.tolist(),
        "counts": {
            name: np.histogram(np.minimum(counts, longest), edges)[0].tolist() for name, counts in words.items()
        },
    }


def _judges(rows: list[Fused], totals: dict[str, Any]) -> dict[str, JudgeScores]:
    """Per judge: mean score of the rewrites and of the selected answers, beside its totals over all candidates."""
    judges: dict[str, JudgeScores] = {}
    for name, total in totals.items():
        scored = [(candidate, row) for row in rows for candidate in row.candidates if name in candidate.scores]
        rewrites = [candidate.scores[name] for candidate, _ in scored if candidate.round == 0]
        chosen = {row.id: candidate.scores[name] for candidate, row in reversed(scored) if candidate.text == row.fused}
        judges[name] = {
            "scored": total["scored"],
            "abstained": total["abstained"],
            "mean": total["mean"],
            "accepted": total["accepted"],
            "rewrites": float(np.mean(rewrites)) if rewrites else None,
            "chosen": float(np.mean(list(chosen.values()))) if chosen else None,
        }
    return judges


def _comparisons(comparisons: list[Comparison]) -> dict[str, dict[str, Any]]:
    """Per judge: pairs compared, without a usable answer, and of the others the share that the order did not change."""
    judges = {}
    for name in dict.fromkeys(pair.judge for pair in comparisons):
        pairs = [pair for pair in comparisons if pair.judge == name]
        usable = [pair for pair in pairs if pair.better and pair.better_swapped]
        consistent = sum(pair.better == pair.better_swapped for pair in usable)
        judges[name] = {
            "pairs": len(pairs),
            "unusable": len(pairs) - len(usable),
            "consistent": consistent / len(usable) if usable else None,
        }
    return judges
