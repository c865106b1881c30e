"""The scheduled service: new data -> pipeline -> candidate against champion and base -> gate -> promote or keep.

A run works in its own clean checkout of the branch that params name (flows/checkout.py). Its results come back in one
atomic push at the very end, after `dvc push`: the branch and, where a candidate was promoted, its tags. Nothing changes
for anyone before that push, so a killed run leaves the champion in place, and the next run reuses what is finished from
DVC's cache, the response cache and the checkpoints.
"""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import chdir
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

import yaml
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage import PipelineStage
from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows import checkout, new_data, paths
from flows.environment import process_age
from flows.gate import gate_candidate
from flows.past_answers import write_past_answers
from flows.pipeline import overhead, pipeline, serving
from flows.run import stage_graph, stale_stages
from raft_tasks.artifacts import iter_rows, read_yaml
from raft_tasks.config import PAST_ANSWERS, Config, Retrain, load_config
from raft_tasks.errors import InputError, OperationalError
from raft_tasks.evaluation.gate import Verdict
from raft_tasks.generation.response_cache import ResponseCache
from raft_tasks.registry import Version, champion, promote, released
from raft_tasks.schemas import Example

P = ParamSpec("P")
R = TypeVar("R")

OUTCOMES = ("NoNewData", "Promoted", "Kept")  # names of the state in which a run completes
STEPS = ("checkout", "artifacts", "new data", "champions", "pipeline", "gate", "push", "publish")
CHAMPIONS = paths.CHAMPIONS / "domains.yaml"
QUARANTINE = paths.CHAMPIONS / "quarantine.txt"  # new data that the gate rejected: lines of `new_data.fetch`
CHAMPIONS_HEAD = "# The domains with a model in production, written by `raft retrain`; the models: champions/<domain>\n"


@dataclass
class RunLog:
    """What a run says and shows while it goes on: lines, and its progress on the run's page."""

    progress: UUID
    waited: float = 0.0  # seconds, for another run

    def say(self, text: str) -> None:
        print(f"[{process_age():6.1f} s] {text}", flush=True)
        get_run_logger().info(text)

    def enter(self, step: str) -> None:
        done = STEPS.index(step)
        self.say(step)
        update_progress_artifact(self.progress, 100 * done / len(STEPS), f"{step}, step {done + 1} of {len(STEPS)}")


def with_retries(settings: Retrain, function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """Call `function` as a task that is tried again, after the waits of params, where a remote or a source is away."""
    waits: list[float] = list(settings.retry_seconds)
    tried: Any = task(
        name=function.__name__,
        cache_policy=NO_CACHE,
        retries=len(waits),
        retry_delay_seconds=waits,
        retry_condition_fn=lambda _task, _run, state: not isinstance(state.result(raise_on_failure=False), InputError),
    )(function)
    return tried(*arguments, **named)


def pull() -> None:
    """Get every artifact of the checkout's commit from the cache or the DVC remote; DVC makes the others anew."""
    try:
        with Repo() as repo:
            made = [stage.addressing for stage in repo.index.stages if any(out.hash_info for out in stage.outs)]
            if made:  # DVC warns of each output that was never made
                repo.pull(made, force=True, allow_missing=True)
    except (DvcException, OSError) as error:
        raise OperationalError(f"`dvc pull` failed: {error}; {_describe_remote()}") from error


def push() -> None:
    """Store every artifact of the checkout in the DVC remote."""
    try:
        with Repo() as repo:
            repo.push()
    except (DvcException, OSError) as error:
        raise OperationalError(f"`dvc push` failed, so nothing is tagged: {error}; {_describe_remote()}") from error


def _describe_remote() -> str:
    with Repo() as repo:
        name = repo.config["core"].get("remote")
    return f"does the DVC remote {name!r} answer, and is there space? `dvc push` and `dvc status --cloud` show it"


def install_champion(domain: str, version: Version) -> None:
    """Put the model of `version` into champions/<domain>, under DVC."""
    folder = paths.champion(domain)
    shutil.rmtree(folder, ignore_errors=True)
    DVCFileSystem(rev=version.revision).get(str(released(domain)), str(folder), recursive=True)
    with Repo() as repo:
        repo.add(str(folder))


def install_champions(domains: Sequence[str], settings: Retrain) -> dict[str, Version]:
    """Have champions/ hold what is in production now; returns it by domain."""
    recorded = read_yaml(CHAMPIONS)
    champions = {domain: version for domain in domains if (version := champion(Path(), domain)) is not None}
    names = {domain: str(version) for domain, version in champions.items()}
    for domain in set(recorded["champions"]) - set(champions):  # taken out of production
        shutil.rmtree(paths.champion(domain))
        paths.champion(domain).with_name(f"{domain}.dvc").unlink()
    for domain, version in champions.items():
        if recorded.get("versions", {}).get(domain) != names[domain]:
            with_retries(settings, install_champion, domain, version)
    values = {"champions": sorted(champions), "versions": names}
    CHAMPIONS.write_text(CHAMPIONS_HEAD + yaml.safe_dump(values), encoding="utf-8")
    return champions


def record_frozen() -> None:
    """Have dvc.lock say what the outputs of frozen stages are now: data came into one, or left it again.

    DVC does not make them, so what is there is what is to be there; `dvc status` would call it a change for ever.
    """
    with Repo() as repo:
        frozen = [stage for stage in repo.index.stages if isinstance(stage, PipelineStage) and stage.frozen]
        with repo.lock:
            changed = [stage.addressing for stage in frozen if stage.changed_outs()]
        for name in changed:
            repo.commit(name, force=True)


def training_rows(config: Config) -> dict[str, set[str]]:
    """Every domain's training rows, as text."""
    rows = {domain: paths.split(domain, "train", config.run.rows) for domain in config.run.domains}
    return {
        domain: {row.model_dump_json() for row in iter_rows(path, Example)} if path.exists() else set()
        for domain, path in rows.items()
    }


def count_calls() -> Counter[str]:
    """How many responses were not cached, by stage, since the cache was created."""
    store = ResponseCache(paths.RESPONSES)
    counts = Counter(store.calls_by_stage())
    store.close()
    return counts


def check(config: Config) -> None:
    """Raises InputError that names all that a retrain needs of params beyond what a pipeline does."""
    wanted = config.retrain.candidate
    run: dict[str, list[Any]] = config.run.model_dump()
    named: list[tuple[str, Any, str]] = [
        ("candidate.method", wanted.method, "methods"),
        ("candidate.seed", wanted.seed, "seeds"),
        *((f"fetch.{domain}", domain, "domains") for domain in config.retrain.fetch),
    ]
    wrong = [
        f"retrain.{key}: got {value!r}, expected one of run.{section}: {run[section]}"
        for key, value, section in named
        if value not in run[section]
    ]
    if wrong:
        raise InputError("params.yaml:\n  " + "\n  ".join(wrong))


@flow(name="retrain")
def retrain(force: bool = False) -> State[Any]:
    """One run of the service, from the folder of the repository that it serves.

    Args:
        force: run pipeline and gate although nothing is new, for instance after a change of the gate's rules.

    Returns:
        A completed state named NoNewData, Promoted or Kept, for automations; its message holds the reasons.
    """
    repository = Path.cwd()
    settings = load_config().retrain
    origin = checkout.origin(repository, settings)
    progress: Any = create_progress_artifact(0.0, "retrain-progress", "Steps of this run")
    log = RunLog(progress)
    requested = time.monotonic()
    with checkout.retrain_lock(origin, repository, log.say):
        log.waited = time.monotonic() - requested
        log.enter("checkout")
        folder = with_retries(settings, checkout.update_checkout, repository, origin, settings)
        with chdir(folder):
            return _retrain_checkout(repository, log, force)


def _retrain_checkout(repository: Path, log: RunLog, force: bool) -> State[Any]:
    config = load_config()
    check(config)
    settings = config.retrain
    log.enter("artifacts")
    with_retries(settings, pull)
    start, rows_before = checkout.git("rev-parse", "HEAD"), training_rows(config)

    log.enter("new data")
    new_files = _fetch(settings, repository, log)
    config = load_config()  # new data of the hub is a new revision there
    if not stale_stages(*stage_graph(config)) and not force:
        return _finish(log, "NoNewData", [f"nothing new: all stages are up to date on branch {settings.branch}"], {})

    log.enter("champions")
    champions = install_champions(config.run.domains, settings)
    for domain, held in write_past_answers(config, champions, rows_before).items():
        log.say(f"        {domain}, replayed: {held}")
    log.enter("pipeline")
    calls_before = count_calls()
    ran = pipeline()
    log.enter("gate")
    gate_started = time.monotonic()
    verdicts = {domain: gate_candidate(config, domain) for domain in config.run.domains}
    work = ran.work + time.monotonic() - gate_started
    for domain, verdict in verdicts.items():
        create_table_artifact(verdict.rows(), f"retrain-{domain.replace('_', '-')}", f"{domain}: {verdict.reason}")

    log.enter("push")
    costs = _costs(rows_before, training_rows(config), count_calls() - calls_before, log)
    outcome = "Promoted" if any(verdict.promoted for verdict in verdicts.values()) else "Kept"
    reasons = [f"{domain}: {verdict.reason}" for domain, verdict in verdicts.items()]
    trailers = [f"{name}: {value}" for name, value in costs.items()]  # flows.history reads them
    checkout.commit("\n".join([f"Retrain, {date.today()}: {outcome.lower()}", "", *reasons, "", *trailers]))
    with_retries(settings, push)
    log.enter("publish")
    tags = _publish(verdicts, new_files, config, start)
    facts = {
        "new or changed training rows": costs["New-rows"],
        "questions to models": costs["Questions"],
        "champion before": ", ".join(map(str, champions.values())) or "none",
        "tags": ", ".join(tags) or "none",
        "commit": checkout.git("rev-parse", "HEAD"),
        "stages": f"{len(ran.rows)}, {sum(row['result'] == 'ran' for row in ran.rows)} of them ran",
        "work": f"{work:.1f} s",
        "orchestration": overhead(work, log.waited),
    }
    return _finish(log, outcome, reasons, facts)


def _fetch(settings: Retrain, repository: Path, log: RunLog) -> dict[str, list[str]]:
    """Bring every domain's new data into the checkout and commit them; returns the lines of `new_data.fetch`."""
    quarantined = QUARANTINE.read_text(encoding="utf-8").splitlines()
    new_files = {
        domain: with_retries(settings, new_data.fetch, domain, source, repository, quarantined)
        for domain, source in settings.fetch.items()
    }
    lines = [line for files in new_files.values() for line in files]
    for line in lines:
        log.say(f"        {line}")
    if lines:
        record_frozen()
    checkout.commit("\n".join([f"New data, {date.today()}", "", *lines]))
    return new_files


def _costs(before: dict[str, set[str]], rows: dict[str, set[str]], calls: Counter[str], log: RunLog) -> dict[str, str]:
    """The cost trailers of a retraining's commit."""
    return {
        "New-rows": ", ".join(f"{name}: {len(rows[name] - before[name])} of {len(rows[name])}" for name in rows),
        "Questions": ", ".join(f"{stage}: {count}" for stage, count in calls.items()) or "none",
        "Duration": f"{process_age() - log.waited:.0f} s",
    }


def _publish(verdicts: dict[str, Verdict], new_files: dict[str, list[str]], config: Config, start: str) -> list[str]:
    """Tag what was promoted, quarantine harmful data, push all at once; returns the tags."""
    promoted = {domain: verdict.reason for domain, verdict in verdicts.items() if verdict.promoted}
    tags = [tag for domain, reason in promoted.items() for tag in promote(Path(), domain, reason)]
    quarantine({name: files for name, files in new_files.items() if files and verdicts[name].harmful}, config, start)
    with_retries(config.retrain, checkout.publish, config.retrain.branch, tags)
    return tags


def quarantine(harmful: dict[str, list[str]], config: Config, start: str) -> None:
    """Revert the new data of rejected candidates on the branch and note them: they return only once they change.

    The commit before keeps them with the run that learned from them.
    """
    if not harmful:
        return
    for domain in harmful:
        new_data.revert(domain, config.retrain.fetch[domain], start)
    if set(harmful) == set(config.run.domains):  # nothing of this run stays, so what was up to date before still is
        for path in ("dvc.lock", PAST_ANSWERS):
            checkout.git("rm", "-r", "--quiet", "--force", "--ignore-unmatch", path)
            if checkout.git("ls-tree", "--name-only", start, path):  # the first run of a project had none
                checkout.git("restore", "--source", start, "--staged", "--worktree", path)
        checkout.git("restore", "--source", start, "--staged", "--worktree", str(paths.CHAMPIONS))
        checkout.git("clean", "-ffdq", str(paths.CHAMPIONS))  # models that are no longer ignored by git
    record_frozen()
    lines = set(QUARANTINE.read_text(encoding="utf-8").splitlines())
    lines.update(*harmful.values())
    QUARANTINE.write_text("".join(f"{line}\n" for line in sorted(lines)), encoding="utf-8")
    names = [f"{domain}: {', '.join(files)}" for domain, files in harmful.items()]
    checkout.commit("\n".join([f"Data quarantined, {date.today()}", "", *names]))


def _finish(log: RunLog, outcome: str, reasons: list[str], facts: dict[str, str]) -> State[Any]:
    """Report the result: on the terminal, on the run's page, as its state."""
    for text in (*reasons, *(f"{name}: {value}" for name, value in facts.items())):
        log.say(f"        {text}")
    table = [f"| {name} | {value} |" for name, value in facts.items()]
    create_markdown_artifact(
        "\n".join([f"# {outcome}", *(f"- {reason}" for reason in reasons), "", "| | |", "|---|---|", *table]),
        "retrain-summary",
        outcome,
    )
    update_progress_artifact(log.progress, 100.0, outcome)
    log.say(f"{outcome}, after {process_age():.1f} s")
    return Completed(name=outcome, message="; ".join(reasons))


def run_retrain(force: bool) -> None:
    """One run on a server here: `raft retrain`."""
    load_config()  # what is wrong there is said before anything starts
    with serving():
        retrain(force=force)
