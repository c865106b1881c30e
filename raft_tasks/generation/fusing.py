"""Answer fusion (Eq. 4): rounds of candidates, scored by a panel of judges, the best one is learned."""

from __future__ import annotations

from collections.abc import Mapping

from raft_tasks.generation.backend import Backend, Completion, row_seed
from raft_tasks.generation.judges import Judge
from raft_tasks.generation.templates import render
from raft_tasks.params import Fuse
from raft_tasks.schemas import Candidate, Filtered, Fused


def fuse(rows: list[Filtered], backend: Backend, panel: Mapping[str, Judge], settings: Fuse) -> list[Fused]:
    """Fuse reference and rewrite of every row that passed the filter; the others keep their reference answer, unscored.

    Candidate 0 is the rewrite itself (round 0). Each round draws `candidates` fusions for every row still open; a row
    closes once its best mean score is `stop_at` or more. So fusion is tried at least once, even where the rewrite
    already reaches it. The highest mean wins, the earliest of equals.
    """
    open_rows = [row for row in rows if row.passed]
    candidates: dict[str, list[Candidate]] = {row.id: [] for row in open_rows}
    drawn = [(row, Completion(row.rewritten, finished=True, tokens=0)) for row in open_rows]
    for number in range(settings.rounds + 1):
        if number:
            drawn = _draw(open_rows, number, backend, settings)
        for row, candidate in _judged(drawn, number, panel):
            candidates[row.id].append(candidate)
        if number:
            open_rows = [row for row in open_rows if _best(candidates[row.id]).mean < settings.stop_at]
        if not open_rows:
            break
    return [_fused(row, candidates.get(row.id, [])) for row in rows]


def _draw(rows: list[Filtered], number: int, backend: Backend, settings: Fuse) -> list[tuple[Filtered, Completion]]:
    """`candidates` fusions of every row; each has its own seed, so more of them leave the first ones as they are."""
    slots = [(row, slot) for row in rows for slot in range(settings.candidates)]
    completions = backend.generate(
        [render(settings.template, question=row.question, answer=row.answer, rewritten=row.chosen) for row, _ in slots],
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        seeds=[row_seed(settings.seed, "fuse", row.id, number, slot) for row, slot in slots],
    )
    return [(row, completion) for (row, _), completion in zip(slots, completions, strict=True)]


def _judged(
    drawn: list[tuple[Filtered, Completion]], number: int, panel: Mapping[str, Judge]
) -> list[tuple[Filtered, Candidate]]:
    """Candidates with their scores, in order. One that is empty or was cut is not judged: no scores, mean 0."""
    texts = [completion.text.strip() for _, completion in drawn]
    usable = [bool(text) and completion.finished for text, (_, completion) in zip(texts, drawn, strict=True)]
    # A sharp model draws the same text again and again: each one is judged once.
    scores: dict[tuple[str, str, str], dict[str, float]] = {
        (row.question, row.answer, text): {} for text, ok, (row, _) in zip(texts, usable, drawn, strict=True) if ok
    }
    if scores:
        questions, references, candidates = zip(*scores, strict=True)
        for name, judge in panel.items():
            for own, score in zip(scores.values(), judge(questions, references, candidates), strict=True):
                own[name] = score
    judged = []
    for text, ok, (row, _) in zip(texts, usable, drawn, strict=True):
        own = scores[row.question, row.answer, text] if ok else {}
        mean = round(sum(own.values()) / len(own), 4) if own else 0.0
        judged.append((row, Candidate(round=number, text=text, scores=own, mean=mean)))
    return judged


def _best(candidates: list[Candidate]) -> Candidate:
    return max(candidates, key=lambda candidate: candidate.mean)  # max keeps the first of equals


def _fused(row: Filtered, candidates: list[Candidate]) -> Fused:
    if not candidates:
        return Fused(**dict(row), fused=row.answer, score=None, candidates=[])
    best = _best(candidates)
    return Fused(**dict(row), fused=best.text, score=best.mean, candidates=candidates)
