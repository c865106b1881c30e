"""Tasks of the stage `question`: pairs from chunks of documents, and what became of all of them."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raft_tasks import config
from raft_tasks.errors import InputError
from raft_tasks.generation.cached_backend import ModelPool
from raft_tasks.generation.questions import count_approvals, make_questions
from raft_tasks.schemas import Chunk, Probe, Questioned, Reject, RejectedPair
from raft_tasks.sources.documents import chunks
from raft_tasks.sources.files import find_documents

LEAST_VOTES = 5  # fewer say nothing of a checker


def read_chunks(folder: Path, settings: config.Question) -> tuple[list[Chunk], list[RejectedPair]]:
    """The chunks of all documents under `folder`, in the order of their names; and the documents that gave none.

    Raises:
        InputError: there is no document, or one is a link that leads out of `folder`.
    """
    pieces: list[Chunk] = []
    unreadable: list[RejectedPair] = []
    files, least, most = find_documents(folder), settings.min_characters, settings.max_characters
    for piece in chunks(files, min_characters=least, max_characters=most):
        if isinstance(piece, Reject):
            unreadable.append(
                RejectedPair(
                    file=piece.file, chunk=None, page=None, start=None, end=None, question="", answer="",
                    reason="unreadable document", details=piece.reason,
                )
            )  # fmt: skip
        else:
            pieces.append(piece)
    return pieces, unreadable


def question_chunk(rows: list[Chunk], settings: config.Question, pool: ModelPool) -> list[Questioned]:
    """What came of each document chunk."""
    checkers = {checker.model: pool.backend("check", checker.model) for checker in settings.checkers}
    return make_questions(rows, pool.backend("question", settings.model), checkers, settings)


def probe_checkers(rows: list[Probe], settings: config.Question, pool: ModelPool) -> dict[str, dict[str, int]]:
    """What each checker said of pairs with a wrong passage."""
    checkers = {checker.model: pool.backend("check", checker.model) for checker in settings.checkers}
    return count_approvals(rows, checkers, settings)


def require_readers(counts: dict[str, dict[str, int]], settings: config.Question) -> None:
    """Raises InputError where a checker approves too many pairs that its passage says nothing about.

    Fewer than `LEAST_VOTES` votes are counted, and refuse nobody.
    """
    fooled = [
        f"{name} approved {count['approved']} of {count['votes']}"
        for name, count in counts.items()
        if count["votes"] >= LEAST_VOTES and count["approved"] / count["votes"] > settings.max_false_approvals
    ]
    if fooled:
        raise InputError(
            f"question.checkers: {'; '.join(fooled)} pairs that were shown with a passage of another place; expected "
            f"at most {settings.max_false_approvals:.0%} (question.max_false_approvals). Its yes says nothing of the "
            "other pairs: name a larger model, or one of another family. What was answered so far is cached"
        )


def summary(pieces: list[Chunk], questioned: Iterable[Questioned], unreadable: list[RejectedPair]) -> dict[str, Any]:
    """Counts of the stage, JSON-ready: documents, chunks, pairs proposed and kept, rejects by reason."""
    questioned = list(questioned)
    rejected = Counter(out.reason for result in questioned for out in result.rejected)
    kept = sum(len(result.pairs) for result in questioned)
    without_pair = rejected["no proposal"]
    return {
        "documents": len({chunk.file for chunk in pieces} | {out.file for out in unreadable}),
        "chunks": len(pieces),
        "chunks_without_pair": sum(not result.pairs for result in questioned),
        "proposed": kept + rejected.total() - without_pair,
        "kept": kept,
        "rejected": dict(sorted((rejected + Counter(out.reason for out in unreadable)).items())),
    }
