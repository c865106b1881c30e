"""Stage `semantic_filter` (Eqs. 2-3): a rewrite that drifted from its reference falls back to the reference."""

from prefect import flow

from flows import paths
from flows.rows import RowRun
from raft_tasks.artifacts import count_rows, iter_rows, write_rows
from raft_tasks.config import DomainFilter, load_config
from raft_tasks.generation.cached_backend import ModelPool
from raft_tasks.generation.framing import drop_framing, find_framing
from raft_tasks.generation.semantic_filter import semantic_filter as filter_rows
from raft_tasks.generation.templates import template_text
from raft_tasks.schemas import Filtered, Rewritten


def filter_chunk(rows: list[Rewritten], settings: DomainFilter, pool: ModelPool) -> list[Filtered]:
    """The rows with their similarity, s_i = cos(phi(y_i), phi(y~_i)), which is cached, and what it decides."""
    encoder = pool.encoder("semantic_filter", settings.encoder, settings.revision)
    similarities = encoder.similarities([(row.statement, row.rewritten) for row in rows], settings.batch_size)
    return filter_rows(rows, similarities, settings.tau, settings.fidelity_veto, settings.checks)


@flow
def semantic_filter(domain: str) -> None:
    config = load_config()
    settings = DomainFilter(**dict(config.semantic_filter), checks=config.domains[domain].checks)
    rewritten = paths.rewritten(domain, config.run.rows)
    rows, run = iter_rows(rewritten, Rewritten), RowRun(f"semantic_filter@{domain}", settings, config)
    framing = find_framing(iter_rows(rewritten, Rewritten), template_text(config.rewrite.template))
    with run.map(filter_chunk, rows, count_rows(rewritten)) as filtered:
        write_rows(paths.filtered(domain, config.run.rows), (drop_framing(row, framing) for row in filtered))
