"""Task of the stage `harvest`: the hub's documents of a domain, chosen by their metadata, as rows of a Parquet file."""

from collections.abc import Iterator
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from raft_tasks import config
from raft_tasks.errors import InputError
from raft_tasks.schemas import Harvested, Reject
from raft_tasks.sources.hub import place, records

LEAST = 200  # characters; a document with fewer holds nothing to ask


@task(cache_policy=NO_CACHE)
def harvest_documents(domain: str, sources: list[config.Harvest]) -> list[Harvested]:
    """The documents of every data set in turn, each cut to `max_characters`; `hub.limit` counts those that are kept.

    Raises:
        InputError: a data set cannot be read, or has no document of the kind that `hub.where` describes.
    """
    found: list[Harvested] = []
    for source in sources:
        new = list(_documents(source))
        if not new:
            raise InputError(
                f"params.yaml: harvest.{domain}: {place(source.hub)} has no text of {LEAST} characters or more where "
                f"{source.hub.where}; correct `where`"
            )
        found += new
    return found


def _documents(source: config.Harvest) -> Iterator[Harvested]:
    kept = 0
    every = source.hub.model_copy(update={"limit": None})
    for number, record in records(every, [source.text], Path()):
        text = None if isinstance(record, Reject) else record.get(source.text)
        if kept == source.hub.limit:
            return
        if isinstance(text, str) and len(text.strip()) >= LEAST:
            kept += 1
            yield Harvested(origin=f"{place(source.hub)}#{number}", text=text[: source.max_characters])
