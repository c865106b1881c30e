"""Task of the stage `rewrite`: Eq. 1 on a chunk of rows."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from raft_tasks import params
from raft_tasks.generation.calls import Calls
from raft_tasks.generation.rewriting import rewrite
from raft_tasks.schemas import Example, Rewritten


@task(cache_policy=NO_CACHE)
def rewrite_chunk(
    rows: list[Example],
    settings: params.Rewrite,
    model: params.Model | params.Endpoint,
    identity: dict[str, Any],
    calls: Calls,
) -> list[Rewritten]:
    """The rows with the model's wording."""
    return rewrite(rows, calls.backend("rewrite", model, identity), settings)
