"""Stage `rewrite` (Eq. 1): the base model words every training answer in its own way."""

from prefect import flow

from flows import paths
from flows.stage import Progress, chunks, main
from raft_tasks.artifacts import read_json, read_rows, write_rows
from raft_tasks.generation.backend import build_backend
from raft_tasks.generation.templates import template_text
from raft_tasks.params import load_params
from raft_tasks.rewrite import rewrite_chunk
from raft_tasks.schemas import Example, Rewritten


@flow
def rewrite(domain: str) -> None:
    params = load_params()
    settings = params.rewrite
    rows = read_rows(paths.examples(domain) / "train.jsonl", Example)
    identity = read_json(paths.model_identity(settings.model))
    backend = build_backend(params.models[settings.model], identity)
    progress = Progress(f"rewrite@{domain}", len(rows), "rows")
    done: list[Rewritten] = []
    for chunk in chunks(rows, settings.chunk_rows):
        result = rewrite_chunk(chunk, settings, template_text(settings.template), identity, backend)
        done += [Rewritten.model_validate(row) for row in result]
        progress(len(done))
    write_rows(paths.rewritten(domain), done)


if __name__ == "__main__":
    main(rewrite, str)
