"""Stage `semantic_filter` (Eqs. 2-3): a rewrite that drifted from its reference falls back to the reference."""

from prefect import flow

from flows import paths
from flows.stage import Progress, chunks, main
from raft_tasks.artifacts import read_rows, write_rows
from raft_tasks.generation.encoding import SentenceEncoder
from raft_tasks.generation.semantic_filter import semantic_filter as apply_filter
from raft_tasks.params import load_params
from raft_tasks.schemas import Rewritten
from raft_tasks.semantic_filter import similarity_chunk


@flow
def semantic_filter(domain: str) -> None:
    settings = load_params().semantic_filter
    rows = read_rows(paths.rewritten(domain), Rewritten)
    encoder = SentenceEncoder(settings.encoder, settings.revision)
    progress = Progress(f"semantic_filter@{domain}", len(rows), "rows")
    similarities: list[float] = []
    for chunk in chunks(rows, settings.chunk_rows):
        pairs = [(row.answer, row.rewritten) for row in chunk]
        similarities += similarity_chunk(pairs, settings.encoder, settings.revision, encoder, settings.batch_size)
        progress(len(similarities))
    write_rows(paths.filtered(domain), apply_filter(rows, similarities, settings.tau, settings.fidelity_veto))


if __name__ == "__main__":
    main(semantic_filter, str)
