"""The gate of a finished pipeline: judge the candidate, try recovery on a near miss, release what passed.

`raft gate DOMAIN` only prints the verdict.
"""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput

from flows import paths
from flows.judge import judge_more
from flows.stage import Progress
from raft_tasks.artifacts import iter_rows, read_rows, write_json, write_rows
from raft_tasks.benchmark import benchmark_model
from raft_tasks.config import Config, Interpolate, Model, load_config
from raft_tasks.errors import InputError, OperationalError
from raft_tasks.evaluation.gate import Measured, Verdict, judge
from raft_tasks.evaluation.verdicts import with_verdicts
from raft_tasks.gate import fidelity_rate, measured, recover_candidate, release, size_and_latency
from raft_tasks.registry import champion, released
from raft_tasks.report import data_versions
from raft_tasks.schemas import Example, Fused, ItemResult, Judged

POLL_SECONDS = 5  # between two looks for a person's answer


def judge_candidate(config: Config, domain: str) -> Verdict:
    """The verdict on the candidate that params name; one that passed lies at releases/<domain>, under DVC.

    The verdict is also written to releases/<domain>.json.

    Raises:
        InputError: if the pipeline has not run.
    """
    verdict, model = judged(config, domain)
    if verdict.promoted and config.gate.approval is not None:
        verdict = asked(verdict, config.gate.approval.timeout_hours)
    if verdict.promoted:
        card = (model / "README.md").read_text(encoding="utf-8")
        release(model, f"{card}\n{_release_notes(verdict)}", released(domain))
    write_verdict(verdict)
    return verdict


class Approval(RunInput):
    """What the run's page asks a person."""

    approve: bool
    name: str


class Unanswered(OperationalError):
    """Nobody said whether a candidate may go into production."""


def asked(verdict: Verdict, hours: float) -> Verdict:
    """Pause the run until a person has answered on its page.

    Raises:
        Unanswered: after `hours`. The server lets no run that waited too long end well, so nothing may be pushed then.
    """
    form = Approval.with_initial_data(description=verdict.markdown())
    key = f"approve-{verdict.domain}"
    try:
        answer = pause_flow_run(wait_for_input=form, timeout=int(hours * 3600), poll_interval=POLL_SECONDS, key=key)
    except FlowPauseTimeout as error:
        raise Unanswered(
            f"nobody approved {verdict.candidate} for {verdict.domain} within {hours:g} hours; nothing was changed, "
            "and the next run asks again"
        ) from error
    return verdict if answer.approve else verdict.refused(answer.name)


def judged(config: Config, domain: str) -> tuple[Verdict, Path]:
    """The verdict, and the folder of the model that it is about.

    A near miss goes through `gate.recover` first, and is benchmarked and judged again.
    """
    wanted = config.retrain.candidate
    trained = paths.trained(domain, wanted.method, wanted.seed)
    benchmark = paths.benchmark(domain, wanted.method, wanted.seed)
    votes = read_rows(paths.judged(domain) / "votes.jsonl", Judged) if domain in config.run.judged else None
    verdict = _judge(config, domain, trained, benchmark / "items.jsonl", votes)
    if not verdict.near_miss or config.gate.recover is None:
        return verdict, trained
    trained, items, coefficient = _recover(config, config.gate.recover, domain, trained)
    if votes is not None:
        votes = judge_more(f"gate@{domain}", benchmark.name, read_rows(items, ItemResult), votes, config)
    return replace(_judge(config, domain, trained, items, votes), recovered=coefficient), trained


def write_verdict(verdict: Verdict) -> None:
    """releases/<domain>.json: what git keeps of every judgement."""
    write_json(
        released(verdict.domain).with_suffix(".json"),
        {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "candidate": verdict.candidate,
            "champion": verdict.champion,
            "promoted": verdict.promoted,
            "recovered": verdict.recovered,
            "reason": verdict.reason,
            "checks": verdict.rows(),
        },
    )


def _judge(config: Config, domain: str, trained: Path, items: Path, votes: list[Judged] | None) -> Verdict:
    """The verdict on the model in `trained`, whose outcomes are `items`; `votes`: a panel's, of a judged domain."""
    production, wanted = champion(Path(), domain), config.retrain.candidate
    candidate, base, best = (
        paths.benchmark(domain, *one) for one in ((wanted.method, wanted.seed), (None, None), ("champion", None))
    )
    name = candidate.name
    folders = {name: candidate, "base": base} | ({} if production is None else {str(production): best})
    files = {model: items if model == name else folder / "items.jsonl" for model, folder in folders.items()}
    missing = [str(path) for path in files.values() if not path.exists()]
    if missing:
        raise InputError(
            f"the gate needs the outcomes of the benchmarks, {missing} are not there; run the pipeline first"
        )
    rows = {model: read_rows(path, ItemResult) for model, path in files.items()}
    if votes is not None:
        rows = {model: with_verdicts(rows[model], folder.name, votes) for model, folder in folders.items()}
    found = {model: measured(model, own) for model, own in rows.items()}
    models = {name: _model(config, trained), "base": config.base}
    test = read_rows(paths.split(domain, "test", config.run.rows), Example)
    questions = [row.question for row in test][: config.gate.latency_items]
    for model, (size, seconds) in size_and_latency(models, questions, config.benchmark.max_new_tokens).items():
        found[model] = replace(found[model], bytes=size, seconds=seconds)
    fidelity = fidelity_rate(iter_rows(paths.fused(domain, config.run.rows), Fused))
    opponent: Measured | None = None if production is None else found[str(production)]
    return judge(config.gate, domain, found[name], found["base"], opponent, fidelity)


def _recover(config: Config, after: Interpolate, domain: str, trained: Path) -> tuple[Path, Path, float]:
    """The interpolated model, its outcomes on the benchmarks, and how much of the change it keeps."""
    folder = paths.near_miss(domain)
    coefficient = recover_candidate(
        trained,
        config.base,
        after,
        domain,
        read_rows(paths.split(domain, "validation", config.run.rows), Example),
        config.benchmark,
        paths.BENCHMARK_TASKS,
        folder,
        Progress(f"gate@{domain}", 0, "models"),
    )
    test = read_rows(paths.split(domain, "test", config.run.rows), Example)
    model = _model(config, folder / "model")
    _, items = benchmark_model(model, domain, test, config.benchmark, paths.BENCHMARK_TASKS)
    write_rows(folder / "items.jsonl", items)
    return folder / "model", folder / "items.jsonl", coefficient


def _model(config: Config, folder: Path) -> Model:
    return config.base.model_copy(update={"path": str(folder), "revision": None})


def _release_notes(verdict: Verdict) -> str:
    """The model card's section on how it came into production."""
    data = [f"- `{path}`: {version}" for path, version in data_versions(paths.LOCK).items()]
    return "\n".join(["## Release", "", verdict.markdown(), "", "Data:", "", *data, ""])


@flow
def gate(domain: str) -> None:
    config = load_config()
    if domain not in config.run.domains:
        raise InputError(f"got domain {domain!r}, expected one of run.domains: {config.run.domains}")
    print(judged(config, domain)[0].markdown(), flush=True)
