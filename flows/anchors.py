"""Stage `anchors`: general user turns that the base generates, with its own answers: one set for all domains."""

from prefect import flow

from flows import paths
from flows.rows import RowRun
from raft_tasks.anchors import answer_chunk, generate_chunk, held_out_texts, identity_of, measured_texts, write_set
from raft_tasks.artifacts import atomic_folder, read_rows, write_json
from raft_tasks.config import load_config
from raft_tasks.generation.anchor_cleaning import Cleaning
from raft_tasks.generation.encoding import shared_encoder
from raft_tasks.schemas import GeneratedAnchor, UserTurn


@flow
def anchors() -> None:
    config = load_config()
    methods = {name: config.methods[name] for name in config.run.methods}
    sets, curve = config.anchor_sets, config.train.curve
    encoder = shared_encoder(config.semantic_filter.encoder, config.semantic_filter.revision)
    held_out = held_out_texts(paths.HELD_OUT, config.benchmark, paths.BENCHMARK_TASKS) if sets else []
    with atomic_folder(paths.ANCHORS) as folder:
        for name in sets:
            settings = config.anchors[name]
            run = RowRun("anchors", settings, config, {"base", settings.model})
            turns = read_rows(paths.user_turns(settings.prompts), UserTurn) if settings.prompts else []
            rows: list[GeneratedAnchor] = []
            for work, inputs, kind in (
                (generate_chunk, range(settings.count), "generated"),
                (answer_chunk, turns, "given"),
            ):
                with run.map(work, inputs, len(inputs), f"{kind} turns of {name}") as anchors_of:
                    rows += anchors_of
            measured = measured_texts(settings, config.benchmark, paths.BENCHMARK_TASKS)
            cleaning = Cleaning(settings, held_out, measured, encoder=encoder)
            statistics = write_set(rows, cleaning, config.base, folder / "sets" / name)
            print(f"anchors: {statistics.kept} of {statistics.generated} turns of {name} kept", flush=True)
            if statistics.warning:
                print(f"anchors: WARNING, {name}: {statistics.warning}", flush=True)
        for name, method in methods.items():
            write_json(folder / "methods" / f"{name}.json", identity_of(folder / "sets", method, curve))
