"""Task of the stage `semantic_filter`: Eqs. 2-3 on a chunk of rows."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from raft_tasks import params
from raft_tasks.generation.calls import Calls
from raft_tasks.generation.semantic_filter import semantic_filter
from raft_tasks.schemas import Filtered, Rewritten


@task(cache_policy=NO_CACHE)
def filter_chunk(rows: list[Rewritten], settings: params.SemanticFilter, calls: Calls) -> list[Filtered]:
    """The rows with their similarity, s_i = cos(phi(y_i), phi(y~_i)), which is remembered, and what it decides."""
    encoder = calls.encoder("semantic_filter", settings.encoder, settings.revision)
    similarities = encoder.similarities([(row.answer, row.rewritten) for row in rows], settings.batch_size)
    return semantic_filter(rows, similarities, settings.tau, settings.fidelity_veto)
