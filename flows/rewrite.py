"""Stage `rewrite` (Eq. 1): the base model words every training answer in its own way."""

from prefect import flow

from flows import paths
from flows.rows import RowRun
from raft_tasks.artifacts import count_rows, iter_rows, write_rows
from raft_tasks.config import Rewrite, load_config
from raft_tasks.generation.cached_backend import ModelPool
from raft_tasks.generation.rewriting import rewrite as rewrite_rows
from raft_tasks.schemas import Example, Rewritten


def rewrite_chunk(rows: list[Example], settings: Rewrite, pool: ModelPool) -> list[Rewritten]:
    return rewrite_rows(rows, pool.backend("rewrite", settings.model), settings)


@flow
def rewrite(domain: str) -> None:
    config = load_config()
    examples = paths.split(domain, "train", config.run.rows)
    run = RowRun(f"rewrite@{domain}", config.rewrite, config, {config.rewrite.model})
    rows = iter_rows(examples, Example)
    with run.map(rewrite_chunk, rows, count_rows(examples), failure=lambda row: row.failure) as rewritten:
        write_rows(paths.rewritten(domain, config.run.rows), rewritten)
