"""Stage `semantic_filter` (Eqs. 2-3): a rewrite that drifted from its reference falls back to the reference."""

from contextlib import closing

from prefect import flow

from flows import paths
from flows.rows import WITHOUT_LIMIT, new_calls, through
from flows.stage import main
from raft_tasks.artifacts import count_rows, iter_rows, write_rows
from raft_tasks.params import load_params
from raft_tasks.schemas import Rewritten
from raft_tasks.semantic_filter import filter_chunk


@flow
def semantic_filter(domain: str) -> None:
    params = load_params()
    settings = params.semantic_filter
    rewritten = paths.rewritten(domain, params.resources.rows)
    rows = through(
        filter_chunk,
        iter_rows(rewritten, Rewritten),
        settings,
        label=f"semantic_filter@{domain}",
        total=count_rows(rewritten),
        chunk_rows=settings.chunk_rows,
        chunks=params.resources.chunks,
        calls=new_calls("semantic_filter", WITHOUT_LIMIT),
    )
    with closing(rows) as filtered:
        write_rows(paths.filtered(domain, params.resources.rows), filtered)


if __name__ == "__main__":
    main(semantic_filter, str)
