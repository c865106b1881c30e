"""Task of the stage `judge`: a panel of models votes on answers that the benchmarks have kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from raft_tasks import params
from raft_tasks.evaluation.harness import DOMAIN_TASK
from raft_tasks.evaluation.verdicts import majority
from raft_tasks.generation.backend import Backend
from raft_tasks.generation.calls import Calls
from raft_tasks.generation.structured import Unusable
from raft_tasks.generation.voting import vote
from raft_tasks.schemas import ItemResult, Judged, Labelled

Answer = tuple[str, ItemResult]  # whose it is


@task(cache_policy=NO_CACHE)
def judge_chunk(
    rows: Sequence[Answer],
    settings: params.Judge,
    models: dict[str, params.Model | params.Endpoint],
    identities: dict[str, dict[str, Any]],
    calls: Calls,
) -> list[Judged]:
    """The votes and the verdict on each answer; `models` and `identities` are those of every judge, by name."""
    backends = _backends(settings, models, identities, calls)
    cases = [(item.task, item.question, item.reference, item.answer) for _, item in rows]
    judged = []
    for (model, item), said in zip(rows, vote(cases, backends, settings), strict=True):
        votes = {name: one.right for name, one in said.items() if not isinstance(one, Unusable)}
        judged.append(
            Judged(
                model=model,
                task=item.task,
                id=item.id,
                votes=votes,
                reasons={name: one.reason for name, one in said.items() if not isinstance(one, Unusable)},
                abstained={name: str(one) for name, one in said.items() if isinstance(one, Unusable)},
                right=majority(votes, settings.quorum),
            )
        )
    return judged


@task(cache_policy=NO_CACHE)
def judge_labels(
    rows: list[Labelled],
    settings: params.Judge,
    models: dict[str, params.Model | params.Endpoint],
    identities: dict[str, dict[str, Any]],
    calls: Calls,
) -> list[dict[str, bool]]:
    """The votes on texts that people have scored, asked as about the domain's own items."""
    cases = [(DOMAIN_TASK, row.question, row.reference, row.candidate) for row in rows]
    return [
        {name: one.right for name, one in said.items() if not isinstance(one, Unusable)}
        for said in vote(cases, _backends(settings, models, identities, calls), settings)
    ]


def failure(row: Judged) -> str | None:
    """Why an answer has no verdict, if so."""
    return None if row.right is not None else "; ".join(f"{name}: {why}" for name, why in row.abstained.items())


def _backends(
    settings: params.Judge,
    models: dict[str, params.Model | params.Endpoint],
    identities: dict[str, dict[str, Any]],
    calls: Calls,
) -> dict[str, Backend]:
    return {
        judge.model: calls.backend("judge", models[judge.model], identities[judge.model]) for judge in settings.judges
    }
