"""Stage `rewrite` (Eq. 1): the base model words every training answer in its own way."""

from contextlib import closing

from prefect import flow

from flows import paths
from flows.rows import ProgressReporter, enforce_failure_rate, map_chunks, open_pool
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
    settings = config.rewrite
    examples = paths.split(domain, "train", config.run.rows)
    total, label = count_rows(examples), f"rewrite@{domain}"
    pool = open_pool("rewrite", settings.budget, config, {settings.model})
    progress = ProgressReporter(label, total, pool.calls)
    rows = map_chunks(rewrite_chunk, iter_rows(examples, Example), settings, pool, config.resources.chunks, progress)
    with closing(rows) as rewritten:
        kept = enforce_failure_rate(label, rewritten, total, settings.max_failed, lambda row: row.failure)
        write_rows(paths.rewritten(domain, config.run.rows), kept)
