"""Tasks of the stage `judge`: a panel of models votes on answers that the benchmarks have kept."""

from __future__ import annotations

from collections.abc import Sequence

from raft_tasks import config
from raft_tasks.evaluation.harness import DOMAIN_TASK
from raft_tasks.evaluation.verdicts import majority
from raft_tasks.generation.cached_backend import ModelPool
from raft_tasks.generation.structured import Unusable
from raft_tasks.generation.voting import Case, Vote, vote
from raft_tasks.schemas import ItemResult, Judged, Labelled

Answer = tuple[str, ItemResult]  # whose it is


def judge_chunk(rows: Sequence[Answer], settings: config.Judge, pool: ModelPool) -> list[Judged]:
    """The votes and the verdict on each answer."""
    cases = [(item.task, item.question, item.reference, item.answer) for _, item in rows]
    judged = []
    for (model, item), by_judge in zip(rows, _vote(cases, settings, pool), strict=True):
        votes = {name: answer for name, answer in by_judge.items() if isinstance(answer, Vote)}
        verdicts = {name: answer.right for name, answer in votes.items()}
        judged.append(
            Judged(
                model=model,
                task=item.task,
                id=item.id,
                votes=verdicts,
                reasons={name: answer.reason for name, answer in votes.items()},
                abstained={name: str(answer) for name, answer in by_judge.items() if isinstance(answer, Unusable)},
                right=majority(verdicts, settings.quorum),
            )
        )
    return judged


def judge_labels(rows: list[Labelled], settings: config.Judge, pool: ModelPool) -> list[dict[str, bool]]:
    """The votes on texts that people have scored, asked as about the domain's own items."""
    cases = [(DOMAIN_TASK, row.question, row.reference, row.candidate) for row in rows]
    return [
        {name: answer.right for name, answer in by_judge.items() if isinstance(answer, Vote)}
        for by_judge in _vote(cases, settings, pool)
    ]


def failure(row: Judged) -> str | None:
    """Why an answer has no verdict, if so."""
    return None if row.right is not None else "; ".join(f"{name}: {why}" for name, why in row.abstained.items())


def _vote(cases: list[Case], settings: config.Judge, pool: ModelPool) -> list[dict[str, Vote | Unusable]]:
    return vote(cases, {judge.model: pool.backend("judge", judge.model) for judge in settings.judges}, settings)
