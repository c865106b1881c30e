"""The semantic filter (Eqs. 2-3): a rewrite that moved away from the reference is not learned from."""

from raft_tasks.checks import NO_CHECKS, Checks
from raft_tasks.generation.fidelity import lost_from
from raft_tasks.schemas import Fallback, Filtered, Rewritten


def semantic_filter(
    rows: list[Rewritten], similarities: list[float], tau: float, fidelity_veto: bool, checks: Checks = NO_CHECKS
) -> list[Filtered]:
    """Decide ybar_i = y~_i if s_i >= tau else y_i, row by row.

    Args:
        similarities: s_i = cos(phi(y_i), phi(y~_i)), one per row, see `SentenceEncoder.similarities`.
        tau: the threshold of Eq. 3. Whatever it is, an empty or unfinished rewrite does not pass.
        fidelity_veto: beyond the paper, a rewrite that has lost anything (see below) does not pass either.
        checks: of the domain; where it has some, they say what a rewrite has lost.

    Beside the paper's decision, each row says which numbers, dates, names and negations of the reference its rewrite
    has lost: cosine hardly sees them.
    """
    filtered = []
    for row, similarity in zip(rows, similarities, strict=True):
        missing = lost_from(row, row.rewritten, checks)
        fallback: Fallback | None = None
        if not row.rewritten:
            fallback = "failed" if row.failure else "empty"
        elif not row.finished:
            fallback = "unfinished"
        elif similarity < tau:
            fallback = "similarity"
        elif fidelity_veto and missing:
            fallback = "fidelity"
        passed = fallback is None
        filtered.append(
            Filtered(
                **dict(row),
                similarity=similarity,
                passed=passed,
                lost=missing,
                chosen=row.rewritten if passed else row.answer,
                fallback=fallback,
            )
        )
    return filtered
