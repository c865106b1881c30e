"""From judges' votes to a score: the majority's verdict on every answer of every model of a domain."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from raft_tasks.evaluation.agreement import Scores, compare_with_people, panel_agreement
from raft_tasks.schemas import ItemResult, Judged, Labelled

METRIC = "judged"  # the verdict's name among an item's metrics
YES = 0.5  # votes are 0 and 1; people's scores count as a yes from the middle of their scale
PEOPLE = 10.0  # their scale


def main_metric(metrics: Iterable[str]) -> str:
    """What a task is measured by: the judges' verdict, else accuracy (normalised by length first), else its first."""
    names = list(metrics)
    return next((metric for metric in (METRIC, "acc_norm", "acc") if metric in names), names[0])


def majority(votes: Mapping[str, bool], quorum: int) -> bool | None:
    """Whether more than half of the votes say yes, so that a tie is a no; None with fewer votes than `quorum`."""
    return None if len(votes) < quorum else 2 * sum(votes.values()) > len(votes)


def drop_undecided(rows: Iterable[Judged]) -> list[Judged]:
    """The rows; an item that is undecided for one model counts for none, so that all are measured on the same items."""
    rows = list(rows)
    undecided = {(row.task, row.id) for row in rows if row.right is None}
    return [row.model_copy(update={"right": None}) if (row.task, row.id) in undecided else row for row in rows]


def add_verdicts(items: list[ItemResult], model: str, rows: Iterable[Judged]) -> list[ItemResult]:
    """A model's items, the judged ones with the metric "judged" first; an undecided item has none.

    Raises:
        ValueError: the rows are of other answers.
    """
    verdicts = {(row.task, row.id): row.right for row in rows if row.model == model}
    result: list[ItemResult] = []
    for item in items:
        right = verdicts.pop((item.task, item.id), None)
        metrics = item.metrics if right is None else {METRIC: float(right), **item.metrics}
        result.append(item.model_copy(update={"metrics": metrics}))
    if verdicts:
        raise ValueError(f"{model}: judged, but not among its items: {sorted(verdicts)[:3]}")
    return result


def summary(
    rows: list[Judged],
    judges: list[str],
    quorum: int,
    labels: list[Labelled],
    votes_on_labels: list[dict[str, bool]],
) -> dict[str, Any]:
    """JSON-ready: scores by model and task, undecided items and agreement by task, judges and verdict beside people.

    Args:
        rows: as `drop_undecided` returns them.
        votes_on_labels: the judges' votes on the texts of `labels`, without those that abstained.
    """
    by_task: dict[str, dict[str, list[Judged]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_task[row.task][row.model].append(row)
    scores: dict[str, dict[str, dict[str, float | int | None]]] = defaultdict(dict)
    undecided, agreement = {}, {}
    for task, by_model in by_task.items():
        for model, of_model in by_model.items():
            right = [row.right for row in of_model if row.right is not None]
            scores[model][task] = {METRIC: sum(right) / len(right) if right else None, "n": len(right)}
        all_rows = [row for of_model in by_model.values() for row in of_model]
        undecided[task] = len({row.id for row in all_rows if row.right is None})
        agreement[task] = panel_agreement(_scores([row.votes for row in all_rows], judges), YES)
    verdicts = [majority(votes, quorum) for votes in votes_on_labels]
    said = [None if verdict is None else float(verdict) for verdict in verdicts]
    beside = {**_scores(votes_on_labels, judges), "verdict of the panel": said}
    people = [row.score / PEOPLE for row in labels]
    return {
        "scores": scores,
        "undecided": undecided,
        "agreement": agreement,
        "calibration": compare_with_people(beside, people, YES) if labels else None,
    }


def _scores(votes: list[dict[str, bool]], judges: list[str]) -> dict[str, Scores]:
    return {name: [float(vote[name]) if name in vote else None for vote in votes] for name in judges}
