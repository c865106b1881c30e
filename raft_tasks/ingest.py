"""Task of the stage `ingest`: files -> validated, split examples and rejects."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from raft_tasks import params
from raft_tasks.schemas import Example, Reject
from raft_tasks.sources.examples import ingest_rows


@task(cache_policy=NO_CACHE)
def ingest_domain(name: str, domain: params.Domain, ingest: params.Ingest) -> tuple[list[Example], list[Reject]]:
    """Every row of the domain's files, as an example or as a reject. Reading is cheaper than a cache."""
    return ingest_rows(name, domain, ingest)
