"""Tasks of the stage `fuse`: Eq. 4 on a chunk of rows, and the answers that each method learns."""

from __future__ import annotations

from typing import Any

from raft_tasks import params
from raft_tasks.caching import cached_task
from raft_tasks.generation import encoding, fidelity, fusing, judges, templates, transformers_backend
from raft_tasks.generation.backend import Backend
from raft_tasks.generation.judges import Judge
from raft_tasks.schemas import Filtered, Fused, TrainingPair


@cached_task(fusing, judges, fidelity, encoding, templates, transformers_backend, ignore=("backend", "panel"))
def fuse_chunk(
    rows: list[Filtered],
    settings: params.Fuse,
    prompts: dict[str, str],
    models: list[dict[str, Any]],
    backend: Backend,
    panel: dict[str, Judge],
) -> list[dict]:
    """The rows with their fused answers, as JSON-like rows; `prompts` (their texts) and `models` identify the call."""
    return [row.model_dump() for row in fusing.fuse(rows, backend, panel, settings)]


def training_pairs(rows: list[Fused], method: params.Method) -> list[TrainingPair]:
    """What `method` learns of each row: the reference y_i, the filtered rewrite ybar_i or the fused answer y^_i."""
    answer = {"raw": lambda row: row.answer, "rewritten": lambda row: row.chosen, "fused": lambda row: row.fused}
    return [TrainingPair(id=row.id, question=row.question, answer=answer[method.answers](row)) for row in rows]
