"""Stage `fuse` (Eq. 4): reference and rewrite become one answer; then what each method learns is written down."""

from prefect import flow

from flows import paths
from flows.stage import Progress, chunks, main
from raft_tasks.artifacts import atomic_folder, read_json, read_rows, write_rows
from raft_tasks.fuse import fuse_chunk, fusing_templates, training_pairs
from raft_tasks.generation.backend import Backend, build_backend
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
    roles = dict.fromkeys([settings.model, "base", *(judge.model for judge in settings.models)])
    models = {role: read_json(paths.model_identity(role)) for role in roles}
    base = TransformersBackend(params.base, models["base"])
    backends: dict[str, Backend] = {
        role: base if role == "base" else build_backend(params.models[role], identity)
        for role, identity in models.items()
    }
    panel = build_panel(
        settings.judges,
        encoder=SentenceEncoder(settings.encoder, settings.revision),
        base=base,
        backends=backends,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    prompts = {name: template_text(name) for name in fusing_templates(settings)}
    progress = Progress(f"fuse@{domain}", len(rows), "rows")
    done: list[Fused] = []
    for chunk in chunks(rows, settings.chunk_rows):
        done += [Fused.model_validate(row) for row in fuse_chunk(chunk, settings, prompts, models, backends, panel)]
        progress(len(done))
    write_rows(paths.fused(domain), done)
    with atomic_folder(paths.training(domain)) as folder:
        for name in params.run.methods:
            write_rows(folder / f"{name}.jsonl", training_pairs(done, params.methods[name]))


if __name__ == "__main__":
    main(fuse, str)
