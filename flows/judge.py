"""Stage `judge` (D-Acc, MS-Bench): a panel of models votes on the answers of every benchmarked model of a domain.

The answers were given once, by the stage `benchmark`; other judges ask about the same ones.
"""

from contextlib import closing
from typing import Any

from prefect import flow

from flows import paths
from flows.rows import few_failed, new_calls, through
from flows.stage import main
from raft_tasks.artifacts import read_json, read_rows, write_json, write_rows
from raft_tasks.errors import InputError
from raft_tasks.evaluation.verdicts import settled, summary
from raft_tasks.judge import failure, judge_chunk, judge_labels
from raft_tasks.params import Endpoint, Model, Params, load_params
from raft_tasks.schemas import ItemResult, Judged, Labelled


@flow
def judge(domain: str) -> None:
    params = load_params()
    settings, label = params.judge, f"judge@{domain}"
    folders = [paths.benchmark(domain, None, None)]
    folders += [paths.benchmark(domain, method, seed) for method in params.run.methods for seed in params.run.seeds]
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
    models, identities = panel(params)
    calls = new_calls("judge", settings.budget)
    judged = through(
        judge_chunk,
        answers,
        settings,
        models,
        identities,
        label=label,
        total=len(answers),
        chunk_rows=settings.chunk_rows,
        chunks=params.resources.chunks,
        calls=calls,
        unit="answers",
    )
    with closing(judged) as rows:
        found = settled(few_failed(label, rows, len(answers), settings.max_failed, failure))
    labels = read_rows(paths.labels(settings.calibration), Labelled) if settings.calibration else []
    beside = judge_labels(labels, settings, models, identities, calls) if labels else []
    write_rows(paths.judged(domain) / "votes.jsonl", found)
    write_json(paths.judged(domain) / "summary.json", summary(found, [*models], labels, beside))
    undecided = sum(row.right is None for row in found)
    print(f"{label}: {len(found)} answers judged, {undecided} of them on items without a verdict", flush=True)


def panel(params: Params) -> tuple[dict[str, Model | Endpoint], dict[str, dict[str, Any]]]:
    """The judges, and the identity of each, by name.

    Raises:
        InputError: the stage `models` has not run for one of them.
    """
    roles = [one.model for one in params.judge.judges]
    missing = [str(path) for path in map(paths.model_identity, roles) if not path.exists()]
    if missing:
        raise InputError(f"the identity of a judge is not there: {', '.join(missing)}; `dvc repro models` makes it")
    identities = {role: read_json(paths.model_identity(role)) for role in roles}
    return {role: params.models[role] for role in roles}, identities


def judge_more(label: str, model: str, items: list[ItemResult], votes: list[Judged], params: Params) -> list[Judged]:
    """`votes` with those on a model's answers that the stage does not know, in place of what it says of that model."""
    settings = params.judge
    answers = [(model, item) for item in items if item.task in settings.tasks]
    judged = judge_chunk.fn(answers, settings, *panel(params), new_calls("judge", settings.budget))
    more = few_failed(label, judged, len(answers), settings.max_failed, failure)
    return settled([*(row for row in votes if row.model != model), *more])


if __name__ == "__main__":
    main(judge, str)
