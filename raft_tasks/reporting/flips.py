"""Items that training flipped: right before and wrong after, or the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from raft_tasks.evaluation.harness import DOMAIN_TASK
from raft_tasks.reporting.study import Answered
from raft_tasks.schemas import ItemResult

Direction = Literal["lost", "won"]
SHOWN_CHARACTERS = 300  # of a question or an answer


@dataclass(frozen=True)
class Flip:
    """One item under one method, with the answers of the base and of the trained model."""

    method: str
    task: str
    id: str
    direction: Direction  # lost: right -> wrong; won: wrong -> right
    seeds: int  # number of seeds that flipped it
    question: str
    before: str
    after: str  # of the first of those seeds


def find_flips(domain: Answered, parts: Sequence[tuple[str, str]]) -> list[Flip]:
    """Every flipped item of every method, by method and task; those that more seeds flipped come first.

    Args:
        parts: (task, metric): an item is right where the metric is 1.
    """
    prefix, suffix = _around_question(domain)
    flips = []
    for method, runs in domain.runs.items():
        for task, metric in parts:
            base = {row.id: row for row in domain.base.items if row.task == task and metric in row.metrics}
            flipped: dict[str, list[ItemResult]] = {}
            for run in runs:
                for row in run.items:  # items without the judges' verdict lack it for every model
                    if row.task == task and row.id in base and _right(row, metric) != _right(base[row.id], metric):
                        flipped.setdefault(row.id, []).append(row)
            for name, rows in sorted(flipped.items(), key=lambda entry: (-len(entry[1]), entry[0])):
                direction: Direction = "lost" if _right(base[name], metric) else "won"
                question = rows[0].prompt.removeprefix(prefix).removesuffix(suffix)
                texts = (_shorten(text) for text in (question, base[name].answer, rows[0].answer))
                flips.append(Flip(method, task, name, direction, len(rows), *texts))
    return flips


def select_flips(flips: Sequence[Flip], count: int) -> list[Flip]:
    """At most `count`: of every method, direction and task in turn, the first ones."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for position, flip in enumerate(flips):
        groups.setdefault((flip.method, flip.direction, flip.task), []).append(position)
    in_turn = [position for turn in zip_longest(*groups.values()) for position in turn if position is not None]
    return [flips[position] for position in sorted(in_turn[:count])]


def _right(row: ItemResult, metric: str) -> bool:
    return row.metrics[metric] == 1.0


def _around_question(domain: Answered) -> tuple[str, str]:
    """The chat template's text before and after the user's words, taken from the first held-out question."""
    questions = {row.id: row.question for row in domain.test}
    row = next(row for row in domain.base.items if row.task == DOMAIN_TASK)
    prefix, question, suffix = row.prompt.partition(questions[row.id])
    return (prefix, suffix) if question else ("", "")


def _shorten(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} […]"
