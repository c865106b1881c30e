"""Tasks of the stage `question`: pairs from chunks of documents, and what became of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from raft_tasks import params
from raft_tasks.errors import InputError
from raft_tasks.generation.backend import Backend
from raft_tasks.generation.calls import Calls
from raft_tasks.generation.questions import make_questions
from raft_tasks.schemas import Chunk, Questioned, Reject, RejectedPair
from raft_tasks.sources.documents import chunks
from raft_tasks.sources.files import check_inside


def chunked(folder: Path, settings: params.Question) -> tuple[list[Chunk], list[RejectedPair]]:
    """The chunks of all documents under `folder`, in the order of their names; and the documents that gave none.

    Raises:
        InputError: there is no document, or one is a link that leads out of `folder`.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    if not files:
        raise InputError(f"{folder} holds no documents; put files there, or take the domain out of run.documents")
    for path in files:
        check_inside(path, folder)
    found: list[Chunk] = []
    unreadable: list[RejectedPair] = []
    for one in chunks(files, min_characters=settings.min_characters, max_characters=settings.max_characters):
        if isinstance(one, Reject):
            unreadable.append(_unreadable(one))
        else:
            found.append(one)
    return found, unreadable


@task(cache_policy=NO_CACHE)
def question_chunk(
    rows: list[Chunk],
    settings: params.Question,
    models: dict[str, params.Model | params.Endpoint],
    identities: dict[str, dict[str, Any]],
    calls: Calls,
) -> list[Questioned]:
    """What came of each document chunk; `models` and `identities` are those of every role, by name."""
    maker = calls.backend("question", models[settings.model], identities[settings.model])
    checkers: dict[str, Backend] = {
        checker.model: calls.backend("check", models[checker.model], identities[checker.model])
        for checker in settings.checkers
    }
    return make_questions(rows, maker, checkers, settings)


def summary(found: list[Chunk], questioned: Iterable[Questioned], unreadable: list[RejectedPair]) -> dict[str, Any]:
    """Counts of the stage, JSON-ready: documents, chunks, pairs proposed and kept, rejects by reason."""
    questioned = list(questioned)
    rejected = Counter(out.reason for one in questioned for out in one.rejected)
    kept = sum(len(one.pairs) for one in questioned)
    without_pair = rejected["no proposal"]
    return {
        "documents": len({chunk.file for chunk in found} | {out.file for out in unreadable}),
        "chunks": len(found),
        "chunks_without_pair": sum(not one.pairs for one in questioned),
        "proposed": kept + rejected.total() - without_pair,
        "kept": kept,
        "rejected": dict(sorted((rejected + Counter(out.reason for out in unreadable)).items())),
    }


def _unreadable(reject: Reject) -> RejectedPair:
    return RejectedPair(
        file=reject.file,
        chunk=None,
        page=None,
        start=None,
        end=None,
        question="",
        answer="",
        reason="unreadable document",
        details=reject.reason,
    )
