"""Answer fusion (Eq. 4): rounds of candidates, scored by a panel of judges, the best one is learned."""

from collections import Counter
from collections.abc import Mapping, Sequence

from raft_tasks.checks import NO_CHECKS, Checks
from raft_tasks.config import Fuse
from raft_tasks.errors import InputError
from raft_tasks.generation.backend import Backend, Completion
from raft_tasks.generation.fidelity import lost_from
from raft_tasks.generation.judges import Judge, Judgement, Preference, compare
from raft_tasks.generation.templates import render
from raft_tasks.sampling import SamplingParams
from raft_tasks.schemas import Candidate, Comparison, Exclusion, Filtered, Fused, Unfused, end_with
from raft_tasks.seeds import derive_seed

KEEPS_FAILING = 5  # abstentions, and more than half of the judgements asked for: the judge is out

Draws = list[tuple[Filtered, Completion]]


def fuse(
    rows: list[Filtered],
    backend: Backend,
    panel: Mapping[str, Judge],
    settings: Fuse,
    backends: Mapping[str, Backend] | None = None,
    checks: Checks = NO_CHECKS,
) -> list[Fused]:
    """Fuse reference and rewrite of every row that passed the filter; the others keep their reference answer, unscored.

    Candidate 0 is the rewrite itself (round 0). Each round draws `candidates` fusions for every row still open; a row
    closes once its best mean score is `stop_at` or more. So fusion is tried at least once, even where the rewrite
    already reaches it. The highest mean wins; among equals the one that the panel's models prefer where
    `settings.tie_break` says so, else the earliest. A row without a candidate that may win keeps its reference answer.

    Args:
        backends: of the judges that are models, by name; needed for `settings.tie_break`.
        checks: of the domain; where it has some, they say what a candidate has lost, for `settings.fidelity_veto`.

    Raises:
        InputError: fewer than `settings.quorum` judges are left that do not keep failing.
    """
    open_rows = [row for row in rows if row.passed]
    candidates: dict[str, list[Candidate]] = {row.id: [] for row in open_rows}
    draws = [(row, Completion(row.rewritten, finished=True, tokens=0)) for row in open_rows]
    active = dict(panel)  # without judges that keep failing: asking them again would cost time and bring nothing
    for number in range(settings.rounds + 1):
        if number:
            draws = _draw(open_rows, number, backend, settings)
        for row, candidate in _judge(draws, number, active, settings, checks):
            candidates[row.id].append(candidate)
        everything = [candidate for of_row in candidates.values() for candidate in of_row]
        failing = _failing_judges(everything, list(panel), settings.quorum)
        active = {name: judge for name, judge in panel.items() if name not in failing}
        if number:
            open_rows = [row for row in open_rows if _best_mean(candidates[row.id]) < settings.stop_at]
        if not open_rows:
            break
    comparisons = _break_ties(rows, candidates, backends or {}, settings)
    return [_choose(row, candidates.get(row.id, []), comparisons.get(row.id, [])) for row in rows]


def _draw(rows: list[Filtered], number: int, backend: Backend, settings: Fuse) -> Draws:
    """`candidates` fusions of every row; each has its own seed, so more of them leave the first ones as they are."""
    slots = [(row, slot) for row in rows for slot in range(settings.candidates)]
    completions = backend.generate(
        [
            end_with(
                row.history,
                render(settings.template, question=row.question, answer=row.statement, rewritten=row.chosen),
            )
            for row, _ in slots
        ],
        SamplingParams(settings.temperature, settings.top_p, settings.max_new_tokens, settings.batch_size),
        [derive_seed(settings.seed, "fuse", row.id, number, slot) for row, slot in slots],
    )
    return [(row, completion) for (row, _), completion in zip(slots, completions, strict=True)]


def _judge(
    draws: Draws, number: int, panel: Mapping[str, Judge], settings: Fuse, checks: Checks
) -> list[tuple[Filtered, Candidate]]:
    """Candidates with their scores, in order. One that is empty or was cut is not judged: no scores, mean 0."""
    cases = [(row.in_context, row.statement, completion.text.strip()) for row, completion in draws]
    # A sharp model draws the same text again and again: each one is judged once.
    judgements: dict[tuple[str, str, str], dict[str, Judgement]] = {
        case: {} for case, (_, completion) in zip(cases, draws, strict=True) if case[2] and completion.finished
    }
    if judgements:
        questions, references, candidates = zip(*judgements, strict=True)
        for name, judge in panel.items():
            for by_judge, judgement in zip(judgements.values(), judge(questions, references, candidates), strict=True):
                by_judge[name] = judgement
    return [
        (row, _candidate(number, row, completion, judgements.get(case, {}), settings, checks))
        for case, (row, completion) in zip(cases, draws, strict=True)
    ]


def _candidate(
    number: int,
    row: Filtered,
    completion: Completion,
    judgements: Mapping[str, Judgement],
    settings: Fuse,
    checks: Checks,
) -> Candidate:
    text = completion.text.strip()
    failure = str(completion.failure) if completion.failure else None
    if failure or not text or not completion.finished:
        excluded: Exclusion = "failed" if failure else "unfinished" if text else "empty"
        return Candidate(round=number, text=text, scores={}, mean=0.0, excluded=excluded, failure=failure)
    scores = {name: judgement.score for name, judgement in judgements.items() if judgement.score is not None}
    vetoed = settings.fidelity_veto and bool(lost_from(row, text, checks))
    return Candidate(
        round=number,
        text=text,
        scores=scores,
        mean=round(sum(scores.values()) / len(scores), 4) if scores else 0.0,
        reasons={name: by.reason for name, by in judgements.items() if by.score is not None and by.reason},
        abstained={name: by.reason or "" for name, by in judgements.items() if by.score is None},
        excluded="quorum" if len(scores) < settings.quorum else "fidelity" if vetoed else None,
    )


def _failing_judges(candidates: Sequence[Candidate], names: list[str], quorum: int) -> list[str]:
    """The judges that keep failing.

    Raises:
        InputError: fewer than `quorum` are left.
    """
    failed = Counter(name for candidate in candidates for name in candidate.abstained)
    asked = Counter(name for candidate in candidates for name in (*candidate.scores, *candidate.abstained))
    failing = [name for name in names if failed[name] >= KEEPS_FAILING and 2 * failed[name] > asked[name]]
    if len(names) - len(failing) < quorum:
        details = ""
        for name in failing:
            last = next(row.abstained[name] for row in reversed(candidates) if name in row.abstained)
            details += f"\n  {name}: {failed[name]} of {asked[name]} judgements failed, the last one with: {last:.300}"
        raise InputError(
            f"{len(failing)} of {len(names)} judges keep failing, and fuse.quorum asks for {quorum}; mend or replace "
            f"them in fuse.judges, or lower fuse.quorum:{details}"
        )
    return failing


def _best_positions(candidates: list[Candidate]) -> list[int]:
    """The positions of the candidates with the highest mean of those that are not excluded, in order."""
    allowed = [position for position, candidate in enumerate(candidates) if candidate.excluded is None]
    best = max((candidates[position].mean for position in allowed), default=None)
    return [position for position in allowed if candidates[position].mean == best]


def _best_mean(candidates: list[Candidate]) -> float:
    return max((candidate.mean for candidate in candidates if candidate.excluded is None), default=-1.0)


def _break_ties(
    rows: list[Filtered], candidates: Mapping[str, list[Candidate]], backends: Mapping[str, Backend], settings: Fuse
) -> dict[str, list[Comparison]]:
    """For each row whose first two candidates of the highest mean differ in their texts: what every model prefers."""
    if settings.tie_break is None:
        return {}
    ties: list[tuple[Filtered, int, int]] = []
    for row in rows:
        of_row = candidates.get(row.id, [])
        top = _best_positions(of_row)
        other = next((position for position in top if of_row[position].text != of_row[top[0]].text), None)
        if other is not None:
            ties.append((row, top[0], other))
    pairs = [
        (row.in_context, row.statement, candidates[row.id][first].text, candidates[row.id][second].text)
        for row, first, second in ties
    ]
    comparisons: dict[str, list[Comparison]] = {row.id: [] for row, _, _ in ties}
    for judge in settings.models if pairs else []:
        asking = judge.model_copy(update={"template": settings.tie_break})
        preferences = compare(backends[judge.model], asking, pairs, batch_size=settings.batch_size, seed=settings.seed)
        for (row, first, second), both in zip(ties, preferences, strict=True):
            better, swapped = (answer.better if isinstance(answer, Preference) else None for answer in both)
            reasons = [answer.reason if isinstance(answer, Preference) else str(answer) for answer in both]
            comparisons[row.id].append(
                Comparison(
                    judge=judge.model, first=first, second=second, better=better, better_swapped=swapped,
                    reasons=reasons,
                )
            )  # fmt: skip
    return comparisons


def _choose(row: Filtered, candidates: list[Candidate], comparisons: list[Comparison]) -> Fused:
    top = _best_positions(candidates)
    if not top:
        excluded = {candidate.excluded for candidate in candidates}
        unfused: Unfused = "filter" if not candidates else "quorum" if "quorum" in excluded else "fidelity"
        return Fused(**dict(row), fused=row.answer, score=None, candidates=candidates, unfused=unfused)
    # Both orders of every model count alike; a draw leaves the earlier one.
    votes = Counter(vote for by_judge in comparisons for vote in (by_judge.better, by_judge.better_swapped))
    best = candidates[comparisons[0].second if votes["second"] > votes["first"] else top[0]]
    return Fused(**dict(row), fused=best.text, score=best.mean, candidates=candidates, comparisons=comparisons)
