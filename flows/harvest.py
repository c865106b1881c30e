"""Stage `harvest`: documents of the hub, chosen by their metadata -> documents/<domain>/harvested.parquet."""

from prefect import flow

from flows import paths
from raft_tasks.artifacts import atomic_file, write_shard
from raft_tasks.config import load_config
from raft_tasks.harvest import harvest_documents
from raft_tasks.schemas import Harvested


@flow
def harvest(domain: str) -> None:
    documents = harvest_documents(domain, load_config().harvest[domain])
    with atomic_file(paths.harvested(domain)) as path:
        write_shard(path, [row.model_dump_json() for row in documents], Harvested)
    print(f"harvest@{domain}: {len(documents)} documents", flush=True)
