"""What lm-eval's samples say of each item and task, as rows and totals of this project."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np

from raft_tasks.errors import InputError
from raft_tasks.schemas import ItemResult, TaskScores
from raft_tasks.thoughts import has_thought, split_thought, strip_thoughts

NO_FILTER = "none"  # what lm-eval calls a task's answers that no filter touched
THOUGHT_METRICS = ("thought", "unfinished_thought")  # of an answer that was asked for with thinking on


def item_results(
    name: str, task: str, definition: Any, samples: list[dict[str, Any]], thinking: bool
) -> Iterator[ItemResult]:
    """lm-eval's samples, one per item and filter, as one row per item. What is not a number per item is left out.

    Items that share an id in the task's data are told apart by their numbers, and are of one source.
    """
    by_item: dict[int, list[dict[str, Any]]] = {}
    for sample in samples:
        by_item.setdefault(sample["doc_id"], []).append(sample)
    ids = {number: str(views[0]["doc"].get("id", number)) for number, views in by_item.items()}
    counts = Counter(ids.values())
    for number, views in by_item.items():
        metrics = {
            metric if view["filter"] == NO_FILTER else f"{metric},{view['filter']}": value
            for view in views
            for metric in view["metrics"]
            if (value := number_of(view[metric])) is not None
        }
        if wrong := {metric: value for metric, value in metrics.items() if not math.isfinite(value)}:
            raise InputError(
                f"{task}, item {number}: {wrong}; expected finite numbers. Is the model or the task broken?"
            )
        first, thought = views[0], ""
        if thinking:
            turn = first["resps"][0][0].turn
            is_open = strip_thoughts(turn)[1]
            metrics |= dict(
                zip(THOUGHT_METRICS, (float(has_thought(turn) and not is_open), float(is_open)), strict=True)
            )
            thought = turn if is_open else split_thought(turn)[0]
        label = ids[number] if task == name else f"{task}/{ids[number]}"
        yield ItemResult(
            task=name,
            id=label if counts[ids[number]] == 1 else f"{label}/{number}",
            source=str(first["doc"].get("source") or label),
            metrics=metrics,
            question=question_of(definition, first["doc"]),
            reference=target_of(definition, first["doc"]),
            prompt=str(first["arguments"][0][0]),
            answer=_reply(definition, first, metrics),
            thought=thought,
        )


def number_of(value: Any) -> float | None:
    """A number, of numpy or torch too, as a float; None for anything else."""
    if hasattr(value, "item") and np.ndim(value) == 0:
        value = value.item()
    return float(value) if isinstance(value, Real | Decimal) else None


def question_of(task: Any, doc: dict[str, Any]) -> str:
    """What the task shows of an item; where choices stand before the target (WinoGrande), the right one."""
    text = task.doc_to_text(doc)
    return str(task.doc_to_choice(doc)[text] if isinstance(text, int) and task.config.doc_to_choice else text)


def target_of(task: Any, doc: dict[str, Any]) -> str:
    """The right answer, the text of a choice where the answer is one; empty where rules take its place (IFEval)."""
    target = task.doc_to_target(doc)
    if not isinstance(target, int):
        return str(target)
    return str(task.doc_to_choice(doc)[target]) if task.config.doc_to_choice else ""


def _reply(definition: Any, sample: dict[str, Any], metrics: Mapping[str, float]) -> str:
    """The model's answer: its text, or the likeliest choice, or (LAMBADA) whether greedy decoding gives the target."""
    replies = [reply[0] for reply in sample["resps"]]
    if isinstance(replies[0], str):
        return str(replies[0])
    likelihoods = [float(reply[0]) for reply in replies]  # (log likelihood, greedy)
    if len(replies) == 1:
        return f"target is {'' if replies[0][1] else 'not '}greedy"
    if "acc_norm" in metrics:  # then it decides
        choices = definition.doc_to_choice(sample["doc"])
        likelihoods = [value / max(len(choice), 1) for value, choice in zip(likelihoods, choices, strict=False)]
    return f"choice {likelihoods.index(max(likelihoods))}"


def is_generated(answer: str) -> bool:
    """Whether an item's answer is a text of the model, not what `_reply` says of likelihoods."""
    return re.fullmatch(r"choice \d+|target is (not )?greedy", answer) is None


def task_scores(results: dict[str, Any], name: str, rows: list[ItemResult]) -> TaskScores:
    """lm-eval's own numbers of a task or group; a tag, which has none, gets the means over its items."""
    metrics = {
        metric.removesuffix(f",{NO_FILTER}"): value
        for metric, total in results["results"].get(name, {}).items()
        if "," in metric and "_stderr" not in metric and (value := number_of(total)) is not None
    }
    means = {metric: sum(row.metrics[metric] for row in rows) / len(rows) for metric in rows[0].metrics}
    thoughts = {metric: means[metric] for metric in THOUGHT_METRICS if metric in means}
    return {"n": len(rows), "metrics": {**metrics, **thoughts} if metrics else means}
