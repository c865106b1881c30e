"""Items that training flipped: right before and wrong after, or the other way round."""

from __future__ import annotations

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
    """One item under one method: what the base said and what a model that disagrees says."""

    method: str
    task: str
    id: str
    direction: Direction  # lost: right -> wrong; won: wrong -> right
    seeds: int  # of the method's, how many flipped it
    question: str
    before: str
    after: str  # of the first of those seeds


def flips(domain: Answered, parts: list[tuple[str, str]]) -> list[Flip]:
    """Every flipped item of every method, by method and task; those that more seeds flipped come first.

    Args:
        parts: (task, metric): an item is right where the metric is 1.
    """
    before, after_ = _around_question(domain)
    found = []
    for method, runs in domain.runs.items():
        for task, metric in parts:
            base = {row.id: row for row in domain.base.items if row.task == task and metric in row.metrics}
            flipped: dict[str, list[ItemResult]] = {}
            for run in runs:
                for row in run.items:  # the panel left some without a verdict, then for every model
                    if row.task == task and row.id in base and _right(row, metric) != _right(base[row.id], metric):
                        flipped.setdefault(row.id, []).append(row)
            found += [
                Flip(
                    method,
                    task,
                    name,
                    "lost" if _right(base[name], metric) else "won",
                    len(rows),
                    _shown(rows[0].prompt.removeprefix(before).removesuffix(after_)),
                    _shown(base[name].answer),
                    _shown(rows[0].answer),
                )
                for name, rows in sorted(flipped.items(), key=lambda entry: (-len(entry[1]), entry[0]))
            ]
    return found


def chosen(all_flips: list[Flip], count: int) -> list[Flip]:
    """At most `count`: of every method, direction and task in turn, the first ones."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for number, flip in enumerate(all_flips):
        groups.setdefault((flip.method, flip.direction, flip.task), []).append(number)
    in_turn = [number for round_ in zip_longest(*groups.values()) for number in round_ if number is not None]
    return [all_flips[number] for number in sorted(in_turn[:count])]


def _right(row: ItemResult, metric: str) -> bool:
    return row.metrics[metric] == 1.0


def _around_question(domain: Answered) -> tuple[str, str]:
    """What the chat template puts before and after a user's words: around the first held-out question."""
    asked = {row.id: row.question for row in domain.test}
    row = next(row for row in domain.base.items if row.task == DOMAIN_TASK)
    before, found, after = row.prompt.partition(asked[row.id])
    return (before, after) if found else ("", "")


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} […]"
