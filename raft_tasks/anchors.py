"""Tasks of the stage `anchors`: general user turns that the base invents and answers, and what it says there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from raft_tasks import params
from raft_tasks.artifacts import digest_path, read_rows, write_json, write_rows
from raft_tasks.generation.anchors import ServedBase, answer, clean_anchors, invent
from raft_tasks.generation.calls import Calls, RememberedLocalBackend
from raft_tasks.generation.encoding import SentenceEncoder
from raft_tasks.schemas import AnchorStatistics, HeldOut, Invented, UserTurn

REJECTS, STATISTICS = "rejects.jsonl", "statistics.json"  # of a set's folder, beside what trainings read


@task(cache_policy=NO_CACHE)
def invent_chunk(
    numbers: list[int],
    settings: params.Anchors,
    models: dict[str, params.AnyModel],
    identities: dict[str, dict[str, Any]],
    calls: Calls,
) -> list[Invented]:
    """The anchors of these numbers, as drawn."""
    return invent(numbers, _speaker(settings, models, identities, calls), settings)


@task(cache_policy=NO_CACHE)
def answer_chunk(
    turns: list[UserTurn],
    settings: params.Anchors,
    models: dict[str, params.AnyModel],
    identities: dict[str, dict[str, Any]],
    calls: Calls,
) -> list[Invented]:
    """The user's own turns with the base's answers."""
    prompts = [(turn.id, turn.prompt) for turn in turns]
    return answer(prompts, _speaker(settings, models, identities, calls), settings)


def _speaker(
    settings: params.Anchors,
    models: dict[str, params.AnyModel],
    identities: dict[str, dict[str, Any]],
    calls: Calls,
) -> RememberedLocalBackend | ServedBase:
    """The base, here or behind a server."""
    base, chosen = models["base"], models[settings.model]
    assert isinstance(base, params.Model)
    local = calls.local_backend("anchors", base, identities["base"])
    if isinstance(chosen, params.Model):
        return local
    return ServedBase(calls.endpoint("anchors", chosen, identities[settings.model]), local)


@task(cache_policy=NO_CACHE)
def write_set(
    invented: Sequence[Invented],
    held_out: Iterable[str],
    settings: params.Anchors,
    model: params.Model,
    measured: Iterable[str],
    encoder: SentenceEncoder,
    folder: Path,
) -> AnchorStatistics:
    """Clean the set and write it to `folder`, together with the base's top K at the positions of its answers."""
    import torch

    from raft_tasks.training.anchoring import is_encodable, write_anchors
    from raft_tasks.training.weights import load_model

    base, tokenizer = load_model(model, getattr(torch, model.dtype))
    limit = base.config.get_text_config().max_position_embeddings
    encodable = partial(is_encodable, tokenizer=tokenizer, max_length=limit, system=model.system)
    kept, rejected, statistics = clean_anchors(invented, held_out, settings, encoder, encodable, measured)
    folder.mkdir(parents=True)
    if torch.cuda.is_available():
        base = base.to(torch.device("cuda"))  # type: ignore[arg-type]  # it is so documented
    write_anchors(folder, kept, base, tokenizer, model.system, settings.top_k, settings.batch_size)
    write_rows(folder / REJECTS, rejected)
    write_json(folder / STATISTICS, statistics.model_dump())
    return statistics


def held_out_texts(questions: Path, benchmark: params.Benchmark, tasks_folder: Path) -> list[str]:
    """What no anchor may come near: the domains' validation and test questions, the items of the benchmarks."""
    from raft_tasks.evaluation.harness import item_texts

    own = [row.question for path in sorted(questions.glob("*.jsonl")) for row in read_rows(path, HeldOut)]
    return [*own, *(text for _, text in item_texts(benchmark.tasks, tasks_folder, benchmark.data))]


def measured_texts(settings: params.Anchors, benchmark: params.Benchmark, tasks_folder: Path) -> list[str]:
    """What the anchors of a set must not tell beyond that: questions and answers of the tasks of `without`."""
    from raft_tasks.evaluation.harness import item_targets, item_texts

    if settings.without is None:
        return []
    tasks = settings.without.tasks
    return [text for of in (item_texts, item_targets) for _, text in of(tasks, tasks_folder, benchmark.data)]


def identity_of(sets: Path, method: params.Method) -> dict[str, str] | None:
    """Which anchors hold a method, by content: what its training depends on. None where there are none."""
    if method.anchors is None:
        return None
    return {"set": method.anchors.set, "sha256": digest_path(sets / method.anchors.set)}
