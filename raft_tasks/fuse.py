"""Tasks of the stage `fuse`: Eq. 4 on a chunk of rows, and the answers that each method learns."""

from __future__ import annotations

from typing import Any

from raft_tasks import chat, params
from raft_tasks.caching import cached_task
from raft_tasks.generation import (
    data_blocks,
    encoding,
    fidelity,
    fusing,
    judges,
    structured,
    templates,
    transformers_backend,
)
from raft_tasks.generation.backend import Backend
from raft_tasks.generation.judges import Judge
from raft_tasks.schemas import Filtered, Fused, TrainingPair


def fusing_templates(settings: params.Fuse) -> list[str]:
    """The prompt templates that fusing and judging by these settings uses."""
    asked = [data_blocks.RULE, structured.REPAIR, *(judge.template for judge in settings.models)]
    tie_break = [settings.tie_break] if settings.tie_break else []
    return [settings.template, "teacher.jinja", *(asked if settings.models else []), *tie_break]


@cached_task(
    chat, fusing, judges, fidelity, encoding, structured, data_blocks, templates, transformers_backend,
    ignore=("backends", "panel"),
)  # fmt: skip
def fuse_chunk(
    rows: list[Filtered],
    settings: params.Fuse,
    prompts: dict[str, str],
    models: dict[str, dict[str, Any]],
    backends: dict[str, Backend],
    panel: dict[str, Judge],
) -> list[dict]:
    """The rows with their fused answers, as JSON-like rows; `prompts` (their texts) and `models` identify the call."""
    return [row.model_dump() for row in fusing.fuse(rows, backends[settings.model], panel, settings, backends)]


def training_pairs(rows: list[Fused], method: params.Method) -> list[TrainingPair]:
    """What `method` learns of each row: the reference y_i, the filtered rewrite ybar_i or the fused answer y^_i."""
    answer = {"raw": lambda row: row.answer, "rewritten": lambda row: row.chosen, "fused": lambda row: row.fused}
    return [TrainingPair(id=row.id, question=row.question, answer=answer[method.answers](row)) for row in rows]
