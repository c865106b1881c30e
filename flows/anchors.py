"""Stage `anchors`: general user turns that the base generates, with its own answers: one set for all domains."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows import paths
from flows.rows import RowRun
from raft_tasks.artifacts import atomic_folder, digest, digest_path, read_json, read_rows, write_json, write_rows
from raft_tasks.config import AnchorSet, Benchmark, Config, Curve, Method, Model, load_config
from raft_tasks.errors import InputError
from raft_tasks.generation.anchor_cleaning import Cleaning, clean_anchors
from raft_tasks.generation.anchors import anchor_id, answer_turns, generate_anchors
from raft_tasks.generation.cached_backend import CachedBackend, ModelPool
from raft_tasks.generation.encoding import shared_encoder
from raft_tasks.generation.served_base import ServedBase
from raft_tasks.schemas import AnchorStatistics, GeneratedAnchor, HeldOut, UserTurn

REJECTS, STATISTICS = "rejects.jsonl", "statistics.json"  # of a set's folder, beside what trainings read
MADE = "made.json"  # the sets' key and content


def generate_chunk(numbers: list[int], settings: AnchorSet, pool: ModelPool) -> list[GeneratedAnchor]:
    """The anchors of these numbers, as drawn."""
    return generate_anchors(numbers, _base(settings, pool), settings)


def answer_chunk(turns: list[UserTurn], settings: AnchorSet, pool: ModelPool) -> list[GeneratedAnchor]:
    """The user's own turns with the base's answers."""
    return answer_turns(turns, _base(settings, pool), settings)


def _base(settings: AnchorSet, pool: ModelPool) -> CachedBackend | ServedBase:
    """The base, here or behind a server."""
    base = pool.backend("anchors", "base")
    if isinstance(pool.models[settings.model], Model):
        return base
    return ServedBase(pool.backend("anchors", settings.model), base)


@task(cache_policy=NO_CACHE)  # its files are DVC's
def write_set(rows: Sequence[GeneratedAnchor], cleaning: Cleaning, model: Model, folder: Path) -> AnchorStatistics:
    """Clean the set and write it to `folder`, together with the base's top K at the positions of its answers."""
    import torch

    from raft_tasks.model_loading import load_context_length, load_model
    from raft_tasks.training.anchor_logits import is_encodable, write_anchors
    from raft_tasks.training.conversations import Encoder

    settings = cleaning.settings
    base, tokenizer = load_model(model, getattr(torch, model.dtype))
    encoder = Encoder(tokenizer, load_context_length(model), system=model.system, thinking=model.thinking)
    encodable = partial(is_encodable, encoder=encoder)
    kept, rejected, statistics = clean_anchors(rows, replace(cleaning, is_encodable=encodable))
    folder.mkdir(parents=True)
    if torch.cuda.is_available():
        base = base.to(torch.device("cuda"))  # type: ignore[arg-type]  # it is so documented
    write_anchors(folder, kept, base, encoder, settings.top_k, settings.batch_size)
    write_rows(folder / REJECTS, rejected)
    write_json(folder / STATISTICS, statistics.model_dump())
    return statistics


def read_turns(settings: AnchorSet) -> list[UserTurn]:
    """The user's own turns of a set.

    Raises:
        InputError: two of them have one id, or one has a generated anchor's.
    """
    if settings.prompts is None:
        return []
    path = paths.user_turns(settings.prompts)
    turns = read_rows(path, UserTurn)
    taken = {anchor_id(number) for number in range(settings.count)}
    for number, turn in enumerate(turns, start=1):
        if turn.id in taken:
            raise InputError(
                f"{path}:{number}: id {turn.id!r} belongs to an earlier row or a generated anchor; expected another one"
            )
        taken.add(turn.id)
    return turns


def held_out_texts(questions: Path, benchmark: Benchmark, tasks_folder: Path) -> list[str]:
    """What no anchor may come near: the domains' validation and test questions, the items of the benchmarks."""
    from raft_tasks.evaluation.harness import load_items

    questions_of_domains = [
        row.question for path in sorted(questions.glob("*.jsonl")) for row in read_rows(path, HeldOut)
    ]
    items = load_items(benchmark.tasks, tasks_folder, benchmark.data)
    return [*questions_of_domains, *(question for _, question, _ in items)]


def measured_texts(settings: AnchorSet, benchmark: Benchmark, tasks_folder: Path) -> list[str]:
    """What the anchors of a set must not tell beyond that: questions and answers of the tasks of `without`."""
    from raft_tasks.evaluation.harness import load_items

    if settings.without is None:
        return []
    items = list(load_items(settings.without.tasks, tasks_folder, benchmark.data))
    return [*(question for _, question, _ in items), *(answer for _, _, answer in items)]


def identity_of(sets: Path, method: Method, curve: Curve | None) -> dict[str, str] | None:
    """Which anchors a method's training depends on, by content: those of its loss, those of the forgetting curve."""
    identity = {f"curve: {name}": digest_path(sets / name) for name in (curve.sets if curve else ())}
    if method.anchors is not None:
        identity |= {"set": method.anchors.set, "sha256": digest_path(sets / method.anchors.set)}
    return identity or None


def make_sets(config: Config, folder: Path) -> None:
    """Write every set that the run needs to `folder`/<its name>."""
    turns_of = {name: read_turns(config.anchors[name]) for name in config.anchor_sets}
    encoder = shared_encoder(config.semantic_filter.encoder, config.semantic_filter.revision)
    held_out = held_out_texts(paths.HELD_OUT, config.benchmark, paths.BENCHMARK_TASKS) if config.anchor_sets else []
    for name in config.anchor_sets:
        settings = config.anchors[name]
        run = RowRun("anchors", settings, config, {"base", settings.model})
        rows: list[GeneratedAnchor] = []
        for work, inputs, kind in (
            (generate_chunk, range(settings.count), "generated"),
            (answer_chunk, turns_of[name], "given"),
        ):
            with run.map(work, inputs, len(inputs), f"{kind} turns of {name}") as anchors_of:
                rows += anchors_of
        measured = measured_texts(settings, config.benchmark, paths.BENCHMARK_TASKS)
        cleaning = Cleaning(settings, held_out, measured, encoder=encoder)
        statistics = write_set(rows, cleaning, config.base, folder / name)
        print(f"anchors: {statistics.kept} of {statistics.generated} turns of {name} kept", flush=True)
        if statistics.warning:
            print(f"anchors: WARNING, {name}: {statistics.warning}", flush=True)


def key_of_sets() -> str | None:
    """What the sets depend on: all that the stage does, but for which method names which set.

    None where DVC does not run the stage: artifacts/resolved may be of older settings then.
    """
    if "DVC_STAGE" not in os.environ:
        return None
    depends = read_json(paths.RESOLVED / "anchors.json")
    return digest([digest_path(paths.HELD_OUT), {key: depends[key] for key in depends if key != "methods"}])


@flow
def anchors() -> None:
    config = load_config()
    before, key = paths.ANCHORS, key_of_sets()
    with atomic_folder(paths.ANCHORS) as folder:
        sets = folder / "sets"
        sets.mkdir()
        made = before / MADE
        if key and made.exists() and read_json(made) == {"key": key, "sets": digest_path(before / "sets")}:
            shutil.copytree(before / "sets", sets, dirs_exist_ok=True)
            print("anchors: the sets stay, just the methods changed", flush=True)
        else:
            make_sets(config, sets)
        write_json(folder / MADE, {"key": key, "sets": digest_path(sets)})
        for name in config.run.methods:
            write_json(folder / "methods" / f"{name}.json", identity_of(sets, config.methods[name], config.train.curve))
