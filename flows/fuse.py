"""Stage `fuse` (Eq. 4): reference and rewrite become one answer; then what each method learns is written down."""

from prefect import flow

from flows import paths
from flows.stage import Progress, chunks, main
from raft_tasks.artifacts import atomic_folder, read_json, read_rows, write_rows
from raft_tasks.fuse import fuse_chunk, training_pairs
from raft_tasks.generation.backend import build_backend
from raft_tasks.generation.encoding import SentenceEncoder
from raft_tasks.generation.judges import build_panel
from raft_tasks.generation.templates import template_text
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.params import load_params
from raft_tasks.schemas import Filtered, Fused


@flow
def fuse(domain: str) -> None:
    params = load_params()
    settings = params.fuse
    rows = read_rows(paths.filtered(domain), Filtered)
    models = [read_json(paths.model_identity(role)) for role in (settings.model, "base")]
    base = TransformersBackend(params.base, models[1])
    backend = base if settings.model == "base" else build_backend(params.models[settings.model], models[0])
    encoder = SentenceEncoder(settings.encoder, settings.revision)
    panel = build_panel(settings.judges, encoder=encoder, backend=base, batch_size=settings.batch_size)
    prompts = {name: template_text(name) for name in (settings.template, "teacher.jinja")}
    progress = Progress(f"fuse@{domain}", len(rows), "rows")
    done: list[Fused] = []
    for chunk in chunks(rows, settings.chunk_rows):
        done += [Fused.model_validate(row) for row in fuse_chunk(chunk, settings, prompts, models, backend, panel)]
        progress(len(done))
    write_rows(paths.fused(domain), done)
    with atomic_folder(paths.training(domain)) as folder:
        for name in params.run.methods:
            write_rows(folder / f"{name}.jsonl", training_pairs(done, params.methods[name]))


if __name__ == "__main__":
    main(fuse, str)
