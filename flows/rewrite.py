"""Stage `rewrite` (Eq. 1): the base model words every training answer in its own way."""

from contextlib import closing

from prefect import flow

from flows import paths
from flows.rows import few_failed, new_calls, through
from flows.stage import main
from raft_tasks.artifacts import count_rows, iter_rows, read_json, write_rows
from raft_tasks.params import load_params
from raft_tasks.rewrite import rewrite_chunk
from raft_tasks.schemas import Example


@flow
def rewrite(domain: str) -> None:
    params = load_params()
    settings = params.rewrite
    examples = paths.split(domain, "train", params.resources.rows)
    total, label = count_rows(examples), f"rewrite@{domain}"
    rows = through(
        rewrite_chunk,
        iter_rows(examples, Example),
        settings,
        params.models[settings.model],
        read_json(paths.model_identity(settings.model)),
        label=label,
        total=total,
        chunk_rows=settings.chunk_rows,
        chunks=params.resources.chunks,
        calls=new_calls("rewrite", settings.budget),
    )
    with closing(rows) as rewritten:
        kept = few_failed(label, rewritten, total, settings.max_failed, lambda row: row.failure)
        write_rows(paths.rewritten(domain, params.resources.rows), kept)


if __name__ == "__main__":
    main(rewrite, str)
