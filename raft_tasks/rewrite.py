"""Task of the stage `rewrite`: Eq. 1 on a chunk of rows."""

from __future__ import annotations

from typing import Any

from raft_tasks import chat, params
from raft_tasks.caching import cached_task
from raft_tasks.generation import rewriting, templates, transformers_backend
from raft_tasks.generation.backend import Backend
from raft_tasks.schemas import Example


@cached_task(chat, rewriting, transformers_backend, templates, ignore=("backend",))
def rewrite_chunk(
    rows: list[Example],
    settings: params.Rewrite,
    template: str,
    model: dict[str, Any],
    backend: Backend,
) -> list[dict]:
    """The rows with the base model's wording, as plain rows; `template` (its text) and `model` identify the call."""
    return [row.model_dump() for row in rewriting.rewrite(rows, backend, settings)]
