"""Stage `fuse` (Eq. 4): reference and rewrite become one answer; then what each method learns is written down."""

from contextlib import closing
from itertools import chain

from prefect import flow

from flows import paths
from flows.rows import few_failed, new_calls, through
from flows.stage import main
from raft_tasks.artifacts import atomic_folder, count_rows, iter_rows, read_json, read_rows, write_json, write_rows
from raft_tasks.fuse import failure, fuse_chunk, judge_chunk, judging, replay_pairs, training_pairs
from raft_tasks.params import load_params
from raft_tasks.schemas import Filtered, Fused, Labelled


@flow
def fuse(domain: str) -> None:
    params = load_params()
    settings = params.fuse
    filtered = paths.filtered(domain, params.resources.rows)
    total, label = count_rows(filtered), f"fuse@{domain}"
    roles = {settings.model, "base", *(judge.model for judge in settings.models)}
    models = {role: params.models[role] for role in roles}
    identities = {role: read_json(paths.model_identity(role)) for role in roles}
    calls = new_calls("fuse", settings.budget)
    rows = through(
        fuse_chunk,
        iter_rows(filtered, Filtered),
        settings,
        models,
        identities,
        label=label,
        total=total,
        chunk_rows=settings.chunk_rows,
        chunks=params.resources.chunks,
        calls=calls,
    )
    with closing(rows) as fused:
        kept = few_failed(label, fused, total, settings.max_failed, failure)
        write_rows(paths.fused(domain, params.resources.rows), kept)
    labels = read_rows(paths.labels(settings.calibration), Labelled) if settings.calibration else []
    judged = judge_chunk(labels, settings, models, identities, calls) if labels else []
    found = judging(iter_rows(paths.fused(domain, params.resources.rows), Fused), settings, labels, judged)
    write_json(paths.judging(domain), found)
    for name, own in found["agreement"]["judges"].items():
        if own["abstained"]:
            print(
                f"{label}: judge {name} abstained from {own['abstained']} of {found['agreement']['texts']}", flush=True
            )
    with atomic_folder(paths.training(domain)) as folder:
        for name in params.run.methods:
            method = params.methods[name]
            pairs, again = (
                training_pairs(iter_rows(paths.fused(domain, params.resources.rows), Fused), method) for _ in range(2)
            )
            replayed = replay_pairs(method.replay, again) if method.replay else ()
            write_rows(folder / f"{name}.{params.resources.rows}", chain(pairs, replayed))


if __name__ == "__main__":
    main(fuse, str)
