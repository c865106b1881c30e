"""The gate of a finished pipeline: check the candidate, interpolate a near miss, release what passed.

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
from flows.benchmark import CHAMPION, suite_of
from flows.judge import judge_more
from flows.stage import Progress
from raft_tasks.artifacts import iter_rows, read_rows, write_json, write_rows
from raft_tasks.benchmark import benchmark_model, merge_model
from raft_tasks.config import Config, Interpolate, Model, load_config
from raft_tasks.errors import InputError, OperationalError
from raft_tasks.evaluation.gate import Measured, Verdict, check_candidate
from raft_tasks.evaluation.verdicts import add_verdicts
from raft_tasks.gate import fidelity_rate, measure, release, size_and_latency
from raft_tasks.registry import champion, released
from raft_tasks.reporting.origin import data_versions
from raft_tasks.schemas import Fused, ItemResult, Judged

POLL_SECONDS = 5  # between two looks for a person's answer


def gate_candidate(config: Config, domain: str) -> Verdict:
    """The verdict on the candidate that params name; one that passed lies at releases/<domain>, under DVC.

    The verdict is also written to releases/<domain>.json.

    Raises:
        InputError: if the pipeline has not run.
    """
    verdict, model = find_verdict(config, domain)
    if verdict.promoted and config.gate.approval is not None:
        verdict = request_approval(verdict, config.gate.approval.timeout_hours)
    if verdict.promoted:
        card = (model / "README.md").read_text(encoding="utf-8")
        release(model, f"{card}\n{_release_notes(verdict)}", released(domain))
    write_verdict(verdict)
    return verdict


class Approval(RunInput):
    """What the run's page asks a person."""

    approve: bool
    name: str


class ApprovalTimeout(OperationalError):
    """Nobody said whether a candidate may go into production."""


def request_approval(verdict: Verdict, hours: float) -> Verdict:
    """Pause the run until a person has answered on its page.

    Raises:
        ApprovalTimeout: after `hours`. Prefect fails a run that waited too long, so nothing may be pushed then.
    """
    form = Approval.with_initial_data(description=verdict.markdown())
    key = f"approve-{verdict.domain}"
    try:
        answer = pause_flow_run(wait_for_input=form, timeout=int(hours * 3600), poll_interval=POLL_SECONDS, key=key)
    except FlowPauseTimeout as error:
        raise ApprovalTimeout(
            f"nobody approved {verdict.candidate} for {verdict.domain} within {hours:g} hours; nothing was changed, "
            "and the next run asks again"
        ) from error
    return verdict if answer.approve else replace(verdict, refused_by=answer.name)


def find_verdict(config: Config, domain: str) -> tuple[Verdict, Path]:
    """The verdict, and the folder of the model that it is about.

    A near miss is interpolated first as `gate.recover` says, and is benchmarked and checked again.
    """
    candidate = config.retrain.candidate
    trained = paths.trained(domain, candidate.method, candidate.seed)
    benchmark = paths.benchmark(domain, candidate.method, candidate.seed)
    votes = read_rows(paths.judged(domain) / "votes.jsonl", Judged) if domain in config.run.judged else None
    verdict = _check(config, domain, trained, benchmark / "items.jsonl", votes)
    if not verdict.near_miss or config.gate.recover is None:
        return verdict, trained
    trained, items, coefficient = _interpolate(config, config.gate.recover, domain, trained)
    if votes is not None:
        votes = judge_more(f"gate@{domain}", benchmark.name, read_rows(items, ItemResult), votes, config)
    return replace(_check(config, domain, trained, items, votes), coefficient=coefficient), trained


def write_verdict(verdict: Verdict) -> None:
    """releases/<domain>.json: what git keeps of every check."""
    write_json(
        released(verdict.domain).with_suffix(".json"),
        {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "candidate": verdict.candidate,
            "champion": verdict.champion,
            "promoted": verdict.promoted,
            "coefficient": verdict.coefficient,
            "reason": verdict.reason,
            "checks": verdict.rows(),
        },
    )


def _check(config: Config, domain: str, trained: Path, items: Path, votes: list[Judged] | None) -> Verdict:
    """The verdict on the model in `trained`, whose outcomes are `items`; `votes`: a panel's, of a judged domain."""
    production, candidate = champion(Path(), domain), config.retrain.candidate
    folder = paths.benchmark(domain, candidate.method, candidate.seed)
    folders = {folder.name: folder, "base": paths.benchmark(domain, None, None)}
    if production is not None:
        folders[str(production)] = paths.benchmark(domain, CHAMPION, None)
    files = {name: items if name == folder.name else place / "items.jsonl" for name, place in folders.items()}
    missing = [str(path) for path in files.values() if not path.exists()]
    if missing:
        raise InputError(
            f"the gate needs the outcomes of the benchmarks, {missing} are not there; run the pipeline first"
        )
    rows = {name: read_rows(path, ItemResult) for name, path in files.items()}
    if votes is not None:
        rows = {name: add_verdicts(rows[name], place.name, votes) for name, place in folders.items()}
    measured = {name: measure(name, of_model) for name, of_model in rows.items()}
    models = {folder.name: _model(config, trained), "base": config.base}
    questions = [row.question for row in suite_of(config, domain, "test").rows][: config.gate.latency_items]
    for name, (size, seconds) in size_and_latency(models, questions, config.benchmark.max_new_tokens).items():
        measured[name] = replace(measured[name], bytes=size, seconds=seconds)
    fidelity = fidelity_rate(iter_rows(paths.fused(domain, config.run.rows), Fused))
    opponent: Measured | None = None if production is None else measured[str(production)]
    return check_candidate(config.gate, domain, measured[folder.name], measured["base"], opponent, fidelity)


def _interpolate(config: Config, after: Interpolate, domain: str, trained: Path) -> tuple[Path, Path, float]:
    """The interpolated model, its outcomes on the benchmarks, and how much of the change it keeps."""
    folder, label = paths.near_miss(domain), f"gate@{domain}"
    validation = suite_of(config, domain, "validation")
    merged = merge_model(trained, config.base, after, validation, folder, Progress(label, 0, "models"))
    suite = suite_of(config, domain, "test")
    _, items = benchmark_model(_model(config, folder / "model"), suite, Progress(label, 0, "items"))
    write_rows(folder / "items.jsonl", items)
    return folder / "model", folder / "items.jsonl", float(merged["coefficient"])


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
    print(find_verdict(config, domain)[0].markdown(), flush=True)
