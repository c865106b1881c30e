"""Stage `anchors`: general user turns that the base invents, with its own answers: one set for all domains."""

from prefect import flow

from flows import paths
from flows.rows import WITHOUT_LIMIT, new_calls, through
from flows.stage import main
from raft_tasks.anchors import answer_chunk, held_out_texts, identity_of, invent_chunk, measured_texts, write_set
from raft_tasks.artifacts import atomic_folder, read_json, read_rows, write_json
from raft_tasks.generation.encoding import shared_encoder
from raft_tasks.params import load_params
from raft_tasks.schemas import Invented, UserTurn


@flow
def anchors() -> None:
    params = load_params()
    methods = {name: params.methods[name] for name in params.run.methods}
    sets = sorted({method.anchors.set for method in methods.values() if method.anchors})
    roles = {"base", *(params.anchors[name].model for name in sets)}
    models = {role: params.models[role] for role in roles}
    identities = {role: read_json(paths.model_identity(role)) for role in roles}
    encoder = shared_encoder(params.semantic_filter.encoder, params.semantic_filter.revision)
    held_out = held_out_texts(paths.HELD_OUT, params.benchmark, paths.BENCHMARK_TASKS) if sets else []
    with atomic_folder(paths.ANCHORS) as folder:
        for name in sets:
            settings, calls = params.anchors[name], new_calls("anchors", WITHOUT_LIMIT)
            own = read_rows(paths.user_turns(settings.prompts), UserTurn) if settings.prompts else []
            drawn: list[Invented] = []
            for work, rows, what in ((invent_chunk, range(settings.count), "invented"), (answer_chunk, own, "own")):
                drawn += through(
                    work,
                    rows,
                    settings,
                    models,
                    identities,
                    label="anchors",
                    total=len(rows),
                    chunk_rows=settings.chunk_rows,
                    chunks=params.resources.chunks,
                    calls=calls,
                    unit=f"{what} turns of {name}",
                )
            measured = measured_texts(settings, params.benchmark, paths.BENCHMARK_TASKS)
            place = folder / "sets" / name
            statistics = write_set(drawn, held_out, settings, params.base, measured, encoder, place)
            print(f"anchors: {statistics.kept} of {statistics.invented} turns of {name} kept", flush=True)
            if statistics.warning:
                print(f"anchors: WARNING, {name}: {statistics.warning}", flush=True)
        for name, method in methods.items():
            write_json(folder / "methods" / f"{name}.json", identity_of(folder / "sets", method))


if __name__ == "__main__":
    main(anchors)
