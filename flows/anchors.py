"""Stage `anchors`: general user turns that the base generates, with its own answers: one set for all domains."""

from prefect import flow

from flows import paths
from flows.rows import WITHOUT_LIMIT, open_pool, through
from flows.stage import main
from raft_tasks.anchors import answer_chunk, generate_chunk, held_out_texts, identity_of, measured_texts, write_set
from raft_tasks.artifacts import atomic_folder, read_rows, write_json
from raft_tasks.generation.anchor_cleaning import Cleaning
from raft_tasks.generation.encoding import shared_encoder
from raft_tasks.params import load_params
from raft_tasks.schemas import GeneratedAnchor, UserTurn


@flow
def anchors() -> None:
    params = load_params()
    methods = {name: params.methods[name] for name in params.run.methods}
    sets = sorted({method.anchors.set for method in methods.values() if method.anchors})
    encoder = shared_encoder(params.semantic_filter.encoder, params.semantic_filter.revision)
    held_out = held_out_texts(paths.HELD_OUT, params.benchmark, paths.BENCHMARK_TASKS) if sets else []
    with atomic_folder(paths.ANCHORS) as folder:
        for name in sets:
            settings = params.anchors[name]
            pool = open_pool("anchors", WITHOUT_LIMIT, params, {"base", settings.model})
            turns = read_rows(paths.user_turns(settings.prompts), UserTurn) if settings.prompts else []
            rows: list[GeneratedAnchor] = []
            for work, inputs, kind in (
                (generate_chunk, range(settings.count), "generated"),
                (answer_chunk, turns, "given"),
            ):
                rows += through(
                    work,
                    inputs,
                    settings,
                    label="anchors",
                    total=len(inputs),
                    chunk_rows=settings.chunk_rows,
                    chunks=params.resources.chunks,
                    pool=pool,
                    unit=f"{kind} turns of {name}",
                )
            measured = measured_texts(settings, params.benchmark, paths.BENCHMARK_TASKS)
            cleaning = Cleaning(settings, held_out, measured, encoder=encoder)
            statistics = write_set(rows, cleaning, params.base, folder / "sets" / name)
            print(f"anchors: {statistics.kept} of {statistics.invented} turns of {name} kept", flush=True)
            if statistics.warning:
                print(f"anchors: WARNING, {name}: {statistics.warning}", flush=True)
        for name, method in methods.items():
            write_json(folder / "methods" / f"{name}.json", identity_of(folder / "sets", method))


if __name__ == "__main__":
    main(anchors)
