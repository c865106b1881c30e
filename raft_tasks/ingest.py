"""Task of the stage `ingest`: files -> validated, split examples and rejects."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from raft_tasks import params
from raft_tasks.errors import InputError
from raft_tasks.schemas import Example, Reject
from raft_tasks.sources.examples import ingest_rows

SHOWN = 10  # rejects in the error


@task(cache_policy=NO_CACHE)
def ingest_domain(name: str, domain: params.Domain, ingest: params.Ingest) -> tuple[list[Example], list[Reject]]:
    """Every row of the domain's files, as an example or as a reject. Reading is cheaper than a cache.

    Raises:
        InputError: if more rows are rejected than `ingest.max_rejected` allows; names them by file and line.
    """
    examples, rejects = ingest_rows(name, domain, ingest)
    total = len(examples) + len(rejects)
    if len(rejects) > ingest.max_rejected * total:
        shown = "".join(f"\n  {row.file}:{row.line}: {row.reason}" for row in rejects[:SHOWN])
        more = f"\n  ... and {len(rejects) - SHOWN} more" if len(rejects) > SHOWN else ""
        raise InputError(
            f"{len(rejects)} of {total} rows cannot be used, more than ingest.max_rejected = {ingest.max_rejected:g} "
            f"allows; mend them, or raise it to go on without them:{shown}{more}"
        )
    return examples, rejects
