"""Task of the stage `ingest`: files and data sets -> checked, clean, split examples, and rejects with reasons."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from raft_tasks import config
from raft_tasks.chat import ChatError, check_chat, check_generation_prompt, end_of_turn, prompt_ids
from raft_tasks.errors import InputError
from raft_tasks.generation.templates import template_text
from raft_tasks.schemas import Example, Reject, Split, TrainingPair, end_with
from raft_tasks.sources.contamination import BenchmarkIndex
from raft_tasks.sources.ingestion import Ingested, RowCheck, ingest_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 10  # rejects in the error


def draw_ids(rows: Iterable[Example], limit: Mapping[Split, int]) -> dict[Split, set[str]]:
    """By split with a limit, the ids of the rows that are used: a larger limit keeps those of a smaller one."""
    kept: dict[Split, list[tuple[int, str]]] = {split: [] for split in limit}
    for row in rows if limit else ():
        if row.split not in limit:
            continue
        order = int.from_bytes(hashlib.sha256(row.id.encode()).digest()[:8])
        heapq.heappush(kept[row.split], (-order, row.id))
        if len(kept[row.split]) > limit[row.split]:
            heapq.heappop(kept[row.split])
    return {split: {name for _, name in rows} for split, rows in kept.items()}


def learning_check(config: config.Config) -> RowCheck:
    """Why `distill` would refuse a training row for a method of `run.methods`, or `benchmark` a held-out one, if so.

    Raises:
        InputError: the base's tokenizer is missing or broken, its chat template cannot be trained on, or its weights
            are quantised.
    """
    from raft_tasks.model_loading import check_trainable, load_context_length, load_tokenizer
    from raft_tasks.training.conversations import Encoder, teacher_turn

    tokenizer, train = load_tokenizer(config.base), config.train
    check_trainable(config.base)
    limit = min(train.max_length, load_context_length(config.base))
    check_chat(tokenizer, config.base.system, config.base.thinking)
    if config.base.thinking != "off":  # room for what the base will think before the answer
        limit -= config.base.thought_tokens
    end = end_of_turn(tokenizer)
    encoders: dict[Any, Encoder] = {}
    for method in (config.methods[name] for name in config.run.methods):
        seen = method.distillation  # by the teacher
        kind = (seen.teacher, seen.template, seen.rollout_max_new_tokens) if seen else (None, "", 0)
        turn = teacher_turn(method, template_text(kind[1]) if seen else "")
        encoders.setdefault(kind, Encoder(tokenizer, limit, turn, kind[2], config.base.system, train.too_long))

    asking = asking_check(config, tokenizer)

    def check(example: Example) -> str | None:
        if example.split != "train":
            return asking(example)
        pair = TrainingPair(id=example.id, question=example.question, answer=example.answer, history=example.history)
        problems = (problem for encoder in encoders.values() for problem in encoder.encode(pair, end)[1])
        return next(problems, None)

    return check


def asking_check(config: config.Config, tokenizer: PreTrainedTokenizerBase) -> RowCheck:
    """Why the base could not be asked a held-out question: the chat template refuses it, or it is too long."""
    from raft_tasks.model_loading import load_context_length

    base, context = config.base, load_context_length(config.base)
    modes = sorted({base.thinking == "on", base.thinking != "off"})  # both: with and without thinking

    def check(example: Example) -> str | None:
        try:
            for thinking in modes:
                if example.history:
                    check_generation_prompt(tokenizer, base.system, example.history, thinking)
                room = context - config.benchmark.max_new_tokens - thinking * base.thought_tokens
                asked = end_with(example.history, example.question)
                length = len(prompt_ids(tokenizer, base.system, asked, thinking))
                if length > room:
                    return (
                        f"the held-out prompt has {length} tokens, but of the {context} that the base reads {room} are "
                        "left beside benchmark.max_new_tokens and, where it thinks, models.base.thought_tokens"
                    )
        except ChatError as error:
            return str(error)
        return None

    return check


@task(cache_policy=NO_CACHE)
def ingest_domain(name: str, config: config.Config, tasks_folder: Path, work: Path) -> Ingested:
    """Every row of the domain's files and data set, as an example or as a reject. Reading is cheaper than a cache.

    Args:
        tasks_folder: of our own lm-eval tasks; with `domain.hygiene.contamination` no row may repeat an item.
        work: an empty folder for rows that wait; close the result before it is removed.

    Raises:
        InputError: if more rows are rejected than `ingest.max_rejected` allows; names them by file and line.
    """
    domain, ingest, benchmark = config.domains[name], config.ingest, config.benchmark
    index = None
    if domain.hygiene.contamination is not None:
        from raft_tasks.evaluation.harness import load_items  # lm-eval takes seconds: only where it is asked for

        items = load_items(benchmark.tasks, tasks_folder, benchmark.data)
        index = BenchmarkIndex(((item, question) for item, question, _ in items), domain.hygiene.contamination)
    ingested = ingest_rows(name, domain, ingest, Path(), work, index, learning_check(config))
    total = len(ingested.state)
    rejected = total - sum(ingested.sizes().values())
    shares = {"rows": (rejected, total), "rows of the files": (ingested.refused, ingested.read)}
    beyond = [f"{lost} of {read} {rows}" for rows, (lost, read) in shares.items() if lost > ingest.max_rejected * read]
    if beyond:
        rejects = (row for row in ingested if isinstance(row, Reject))
        shown = "".join(f"\n  {row.file}:{row.line}: {row.reason}" for row in islice(rejects, SHOWN))
        ingested.close()
        more = f"\n  ... and {rejected - SHOWN} more" if rejected > SHOWN else ""
        raise InputError(
            f"{beyond[0]} cannot be used, more than ingest.max_rejected = {ingest.max_rejected:g} "
            f"allows; mend them, or raise it to go on without them:{shown}{more}"
        )
    return ingested
