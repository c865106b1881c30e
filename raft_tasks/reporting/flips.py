"""Items that training flipped: right before and wrong after, or the other way round."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from raft_tasks.evaluation.harness import DOMAIN_TASK
from raft_tasks.evaluation.outcomes import is_generated
from raft_tasks.reporting.study import BASE, Answered
from raft_tasks.reporting.wording import shorten
from raft_tasks.schemas import ItemResult

Direction = Literal["lost", "won"]


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
            base = {row.id: row for row in domain.base if row.task == task and metric in row.metrics}
            flipped: dict[str, list[ItemResult]] = {}
            for run in runs:
                for row in run.items:  # items without the judges' verdict lack it for every model
                    if row.task == task and row.id in base and _right(row, metric) != _right(base[row.id], metric):
                        flipped.setdefault(row.id, []).append(row)
            for name, rows in sorted(flipped.items(), key=lambda entry: (-len(entry[1]), entry[0])):
                direction: Direction = "lost" if _right(base[name], metric) else "won"
                question = rows[0].prompt.removeprefix(prefix).removesuffix(suffix)
                texts = (shorten(text) for text in (question, base[name].answer, rows[0].answer))
                flips.append(Flip(method, task, name, direction, len(rows), *texts))
    return flips


def select_flips(flips: Sequence[Flip], count: int) -> list[Flip]:
    """At most `count`: of every method, direction and task in turn, the first ones."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for position, flip in enumerate(flips):
        groups.setdefault((flip.method, flip.direction, flip.task), []).append(position)
    in_turn = [position for turn in zip_longest(*groups.values()) for position in turn if position is not None]
    return [flips[position] for position in sorted(in_turn[:count])]


@dataclass(frozen=True)
class AnsweredQuestion:
    """One general question with the answers of several models: (method, text, right)."""

    task: str
    question: str
    answers: list[tuple[str, str, bool]]


def telling_questions(
    domain: Answered, parts: Sequence[tuple[str, str]], methods: Sequence[str], count: int
) -> list[AnsweredQuestion]:
    """General questions that the base answers correctly, from all tasks in turn, those that tell `methods` apart first.

    First those that some methods answer correctly and some not; of each method the answer under its first seed.

    Args:
        parts: (task, metric) of the general tasks; those without generated answers have no questions.
    """
    prefix, suffix = _around_question(domain)
    by_task = []
    for task, metric in parts:
        models = [domain.base, *(domain.runs[method][0].items for method in methods)]
        answers = [{row.id: row for row in items if row.task == task} for items in models]
        questions = []
        for name, row in answers[0].items():
            rows = [answer[name] for answer in answers]
            if metric not in row.metrics or not is_generated(row.answer) or not _right(row, metric):
                continue
            right = [_right(other, metric) for other in rows]
            shown = [(m, shorten(r.answer), ok) for m, r, ok in zip([BASE, *methods], rows, right, strict=True)]
            text = row.question or row.prompt.removeprefix(prefix).removesuffix(suffix)
            # SFT wrong and RAFT right comes first: right[1:] is False before True
            rank = (all(right), not any(right[1:]), right[1:2], len(row.prompt), name)
            questions.append((rank, AnsweredQuestion(task, shorten(text), shown)))
        by_task.append([question for _, question in sorted(questions, key=lambda entry: entry[0])])
    return [question for turn in zip_longest(*by_task) for question in turn if question is not None][:count]


def _right(row: ItemResult, metric: str) -> bool:
    return row.metrics[metric] == 1.0


def _around_question(domain: Answered) -> tuple[str, str]:
    """The chat template's text before and after the user's words, taken from the first held-out question."""
    questions = {row.id: row.question for row in domain.test}
    row = next(row for row in domain.base if row.task == DOMAIN_TASK)
    prefix, question, suffix = row.prompt.partition(questions[row.id])
    return (prefix, suffix) if question else ("", "")
