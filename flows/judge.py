"""Stage `judge` (D-Acc, MS-Bench): a panel of models votes on the answers of every benchmarked model of a domain.

The answers were given once, by the stage `benchmark`; other judges ask about the same ones.
"""

from collections.abc import Mapping, Sequence

from prefect import flow

from flows import paths
from flows.rows import RowRun, enforce_failure_rate
from raft_tasks.artifacts import read_rows, write_json, write_rows
from raft_tasks.config import Config, Judge, load_config
from raft_tasks.errors import InputError
from raft_tasks.evaluation.harness import DOMAIN_TASK
from raft_tasks.evaluation.verdicts import add_verdicts, drop_undecided, majority, summary
from raft_tasks.generation.cached_backend import ModelPool
from raft_tasks.generation.structured import Unusable
from raft_tasks.generation.voting import Case, Vote, vote
from raft_tasks.schemas import ItemResult, Judged, Labelled

Answer = tuple[str, ItemResult]  # whose it is


def judge_chunk(rows: Sequence[Answer], settings: Judge, pool: ModelPool) -> list[Judged]:
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


def judge_labels(rows: list[Labelled], settings: Judge, pool: ModelPool) -> list[dict[str, bool]]:
    """The votes on texts that people have scored, asked as about the domain's own items."""
    cases = [(DOMAIN_TASK, row.question, row.reference, row.candidate) for row in rows]
    return [
        {name: answer.right for name, answer in by_judge.items() if isinstance(answer, Vote)}
        for by_judge in _vote(cases, settings, pool)
    ]


def failure(row: Judged) -> str | None:
    """Why an answer has no verdict, if so."""
    return None if row.right is not None else "; ".join(f"{name}: {why}" for name, why in row.abstained.items())


def _vote(cases: list[Case], settings: Judge, pool: ModelPool) -> list[dict[str, Vote | Unusable]]:
    return vote(cases, {judge.model: pool.backend("judge", judge.model) for judge in settings.judges}, settings)


@flow
def judge(domain: str) -> None:
    config = load_config()
    settings, label = config.judge, f"judge@{domain}"
    folders = [paths.benchmark(domain, None, None)]
    folders += [paths.benchmark(domain, method, seed) for method in config.run.methods for seed in config.run.seeds]
    champion = paths.benchmark(domain, "champion", None)  # where there is one
    answers = [
        (folder.name, item)
        for folder in [*folders, *([champion] if champion.is_dir() else [])]
        for item in read_rows(folder / "items.jsonl", ItemResult)
        if item.task in settings.tasks
    ]
    missing = sorted(set(settings.tasks) - {item.task for _, item in answers})
    if missing:
        raise InputError(
            f"params.yaml: judge.tasks: got {missing}, which no model has answered; expected `domain` or tasks of "
            "benchmark.tasks whose answers are texts"
        )
    run = _panel(label, config)
    with run.map(judge_chunk, answers, len(answers), "answers", failure) as judged:
        votes = drop_undecided(judged)
    labels = read_rows(paths.labels(settings.calibration), Labelled) if settings.calibration else []
    on_labels = run.call(judge_labels, labels) if labels else []
    write_rows(paths.judged(domain) / "votes.jsonl", votes)
    counted = summary(votes, [*run.pool.models], settings.quorum, labels, on_labels)
    write_json(paths.judged(domain) / "summary.json", counted)
    undecided = sum(row.right is None for row in votes)
    print(f"{label}: {len(votes)} answers judged, {undecided} of them on items without a verdict", flush=True)


def add_panel_verdicts(
    domain: str, items: Mapping[str, list[ItemResult]], votes: list[Judged], config: Config
) -> tuple[dict[str, list[ItemResult]], list[Judged]]:
    """Every model's items with the panel's verdicts, and all votes: `votes`, and those on models that it lacks."""
    settings, voted = config.judge, {row.model for row in votes}
    for model in [name for name in items if name not in voted]:
        print(f"{model}: {domain}, the panel of judges", flush=True)
        answers = [(model, item) for item in items[model] if item.task in settings.tasks]
        judged = judge_chunk(answers, settings, _panel("judge", config).pool)
        more = enforce_failure_rate(f"{model}, {domain}", judged, len(answers), settings.max_failed, failure)
        votes = drop_undecided([*votes, *more])
    return {model: add_verdicts(rows, model, votes) for model, rows in items.items()}, votes


def _panel(label: str, config: Config) -> RowRun:
    return RowRun(label, config.judge, config, [judge.model for judge in config.judge.judges])
