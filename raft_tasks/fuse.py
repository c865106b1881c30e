"""Tasks of the stage `fuse`: Eq. 4 on a chunk of rows, and the answers that each method learns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from raft_tasks import params
from raft_tasks.generation.backend import Backend
from raft_tasks.generation.calls import Calls
from raft_tasks.generation.fusing import fuse
from raft_tasks.generation.judges import build_panel
from raft_tasks.schemas import Filtered, Fused, TrainingPair


@task(cache_policy=NO_CACHE)
def fuse_chunk(
    rows: list[Filtered],
    settings: params.Fuse,
    models: dict[str, params.Model | params.Endpoint],
    identities: dict[str, dict[str, Any]],
    calls: Calls,
) -> list[Fused]:
    """The rows with their fused answers; `models` and `identities` are those of every role, by name."""
    base = models["base"]
    assert isinstance(base, params.Model)
    judges: dict[str, Backend] = {
        judge.model: calls.backend("judge", models[judge.model], identities[judge.model]) for judge in settings.models
    }
    panel = build_panel(
        settings.judges,
        encoder=calls.encoder("judge", settings.encoder, settings.revision),
        base=calls.local_backend("judge", base, identities["base"]),
        backends=judges,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    backend = calls.backend("fuse", models[settings.model], identities[settings.model])
    return fuse(rows, backend, panel, settings, judges)


def failure(row: Fused) -> str | None:
    """Why a row that was to be fused has no fusion at all, if so; its rewrite is then the only candidate."""
    drawn = [candidate.failure for candidate in row.candidates if candidate.round]
    return drawn[0] if drawn and all(drawn) else None


def training_pairs(rows: Iterable[Fused], method: params.Method) -> Iterator[TrainingPair]:
    """What `method` learns of each row: the reference y_i, the filtered rewrite ybar_i or the fused answer y^_i."""
    answer = {"raw": lambda row: row.answer, "rewritten": lambda row: row.chosen, "fused": lambda row: row.fused}
    for row in rows:
        yield TrainingPair(id=row.id, question=row.question, answer=answer[method.answers](row))
