"""The scheduled service: new data -> pipeline -> candidate against champion and base -> gate -> promote or keep.

A run works in its own clean checkout of the branch that params name (flows/checkout.py). What it made comes back in one
push at the very end, after `dvc push`: the branch and, where a candidate was promoted, its tags; all of it or nothing.
Before that push nothing is changed for anyone, so a run that is killed leaves the champion as it was, and the next run
finds what is finished in DVC's cache, the response cache and the checkpoints.
"""

from __future__ import annotations

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
from prefect import Task, flow, get_run_logger, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows import checkout, news, paths
from flows.environment import seconds_since_start
from flows.gate import gate_candidate
from flows.pipeline import overhead, pipeline, serving, stage_graph, stale_stages
from raft_tasks.artifacts import iter_rows, read_yaml
from raft_tasks.config import Config, Retrain, load_config
from raft_tasks.errors import InputError, OperationalError
from raft_tasks.generation.response_cache import ResponseCache
from raft_tasks.registry import Version, champion, promote
from raft_tasks.schemas import Example

P = ParamSpec("P")
R = TypeVar("R")

OUTCOMES = ("NoNews", "Promoted", "Kept")  # names of the state in which a run completes
STEPS = ("checkout", "artifacts", "news", "champions", "pipeline", "gate", "push", "publish")
CHAMPIONS = paths.CHAMPIONS / "domains.yaml"
REFUSED = paths.CHAMPIONS / "refused.txt"  # new data that a gate refused, a line each, as `news.fetch` names it
CHAMPIONS_HEAD = (
    "# The domains that have a model in production, written by flows.retrain: each one's model is champions/<domain>\n"
)


@dataclass
class Journal:
    """What a run says and shows while it goes on: lines, and its progress on the run's page."""

    progress: UUID
    waited: float = 0.0  # seconds, for another run

    def say(self, text: str) -> None:
        print(f"[{seconds_since_start():6.1f} s] {text}", flush=True)
        get_run_logger().info(text)

    def enter(self, step: str) -> None:
        done = STEPS.index(step)
        self.say(step)
        update_progress_artifact(self.progress, 100 * done / len(STEPS), f"{step}, step {done + 1} of {len(STEPS)}")


def _may_pass(task: Task[..., Any], run: Any, state: State[Any]) -> bool:
    """Whether trying again may help: not where the input is wrong."""
    return not isinstance(state.result(raise_on_failure=False), InputError)


def patiently(settings: Retrain, function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """Call `function` as a task that is tried again, after the waits of params, where a remote or a source is away."""
    waits: list[float] = list(settings.retry_seconds)
    tried: Any = task(
        name=function.__name__,
        cache_policy=NO_CACHE,
        retries=len(waits),
        retry_delay_seconds=waits,
        retry_condition_fn=_may_pass,
    )(function)
    return tried(*arguments, **named)


class RemoteAway(OperationalError):
    """The DVC remote does not take or give what it should; the message holds what DVC said."""


def pull() -> None:
    """Get every artifact of the checkout's commit from the cache or the DVC remote; DVC makes the others anew."""
    try:
        with Repo() as repo:
            repo.pull(force=True, allow_missing=True)
    except (DvcException, OSError) as error:
        raise RemoteAway(f"`dvc pull` failed: {error}; {_which_remote()}") from error


def push() -> None:
    """Store every artifact of the checkout in the DVC remote."""
    try:
        with Repo() as repo:
            repo.push()
    except (DvcException, OSError) as error:
        raise RemoteAway(f"`dvc push` failed, so nothing is tagged: {error}; {_which_remote()}") from error


def _which_remote() -> str:
    with Repo() as repo:
        name = repo.config["core"].get("remote")
    return f"does the DVC remote {name!r} answer, and is there space? `dvc push` and `dvc status --cloud` show it"


def place_champion(domain: str, version: Version) -> None:
    """Put the model of `version` into champions/<domain>, under DVC."""
    folder = paths.champion(domain)
    shutil.rmtree(folder, ignore_errors=True)
    DVCFileSystem(rev=version.revision).get(str(version.path), str(folder), recursive=True)
    with Repo() as repo:
        repo.add(str(folder))


def place_champions(domains: Sequence[str], settings: Retrain) -> dict[str, Version]:
    """Have champions/ hold what is in production now; returns it by domain."""
    known = read_yaml(CHAMPIONS)
    found = {domain: version for domain in domains if (version := champion(Path(), domain)) is not None}
    names = {domain: str(version) for domain, version in found.items()}
    for domain in set(known["champions"]) - set(found):  # taken out of production
        shutil.rmtree(paths.champion(domain))
        paths.champion(domain).with_name(f"{domain}.dvc").unlink()
    for domain, version in found.items():
        if known.get("versions", {}).get(domain) != names[domain]:
            patiently(settings, place_champion, domain, version)
    values = {"champions": sorted(found), "versions": names}
    CHAMPIONS.write_text(CHAMPIONS_HEAD + yaml.safe_dump(values), encoding="utf-8")
    return found


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


def calls() -> Counter[str]:
    """How many answers of models that no store had, by stage, since the response cache began."""
    store = ResponseCache(paths.RESPONSES)
    counts = Counter(store.calls_by_stage())
    store.close()
    return counts


def check(config: Config) -> None:
    """
    Raises:
        InputError: naming all that a retrain needs of params beyond what a pipeline does.
    """
    wanted = config.retrain.candidate
    run: dict[str, list[Any]] = config.run.model_dump()
    named: list[tuple[str, Any, str]] = [
        ("candidate.method", wanted.method, "methods"),
        ("candidate.seed", wanted.seed, "seeds"),
        *((f"fetch.{domain}", domain, "domains") for domain in config.retrain.fetch),
    ]
    wrong = [
        f"retrain.{key}: got {value!r}, expected one of run.{known}: {run[known]}"
        for key, value, known in named
        if value not in run[known]
    ]
    if wrong:
        raise InputError("params.yaml:\n  " + "\n  ".join(wrong))


@flow(name="retrain")
def retrain(force: bool = False) -> State[Any]:
    """One run of the service, from the folder of the repository that it serves.

    Args:
        force: run pipeline and gate although nothing is new, for instance after a change of the gate's rules.

    Returns:
        A completed state named NoNews, Promoted or Kept, so that automations can tell them apart; its message says why.
    """
    repository = Path.cwd()
    settings = load_config().retrain
    origin = checkout.origin(repository, settings)
    progress: Any = create_progress_artifact(0.0, "retrain-progress", "Steps of this run")
    journal = Journal(progress)
    asked = time.monotonic()
    with checkout.only_one(origin, repository, journal.say):
        journal.waited = time.monotonic() - asked
        journal.enter("checkout")
        folder = patiently(settings, checkout.clean_checkout, repository, origin, settings)
        with chdir(folder):
            return _in_checkout(repository, journal, force)


def _in_checkout(repository: Path, journal: Journal, force: bool) -> State[Any]:
    config = load_config()
    check(config)
    settings = config.retrain
    journal.enter("artifacts")
    patiently(settings, pull)
    start, before = checkout.git("rev-parse", "HEAD"), training_rows(config)

    journal.enter("news")
    refused = REFUSED.read_text(encoding="utf-8").splitlines()
    arrived = {
        domain: patiently(settings, news.fetch, domain, source, repository, refused)
        for domain, source in settings.fetch.items()
    }
    lines = [line for came in arrived.values() for line in came]
    for line in lines:
        journal.say(f"        {line}")
    if lines:
        record_frozen()
    checkout.commit("\n".join([f"New data, {date.today()}", "", *lines]))
    config = load_config()  # new data of the hub is a new revision there
    stale = stale_stages(*stage_graph(config))
    if not stale and not force:
        return _finish(journal, "NoNews", [f"nothing new: all stages are up to date on branch {settings.branch}"], {})

    journal.enter("champions")
    champions = place_champions(config.run.domains, settings)
    journal.enter("pipeline")
    asked_before = calls()
    ran = pipeline()
    journal.enter("gate")
    judging = time.monotonic()
    verdicts = {domain: gate_candidate(config, domain) for domain in config.run.domains}
    work = ran.work + time.monotonic() - judging
    reasons = [f"{domain}: {verdict.reason}" for domain, verdict in verdicts.items()]
    for domain, verdict in verdicts.items():
        create_table_artifact(verdict.rows(), f"retrain-{domain.replace('_', '-')}", f"{domain}: {verdict.reason}")
    promoted = [domain for domain, verdict in verdicts.items() if verdict.promoted]
    outcome = "Promoted" if promoted else "Kept"

    journal.enter("push")
    rows, asked = training_rows(config), calls() - asked_before
    costs = {
        "New-rows": ", ".join(f"{name}: {len(rows[name] - before[name])} of {len(rows[name])}" for name in rows),
        "Questions": ", ".join(f"{stage}: {count}" for stage, count in asked.items()) or "none",
        "Duration": f"{seconds_since_start() - journal.waited:.0f} s",
    }
    trailers = [f"{name}: {value}" for name, value in costs.items()]  # flows.history reads them
    checkout.commit("\n".join([f"Retrain, {date.today()}: {outcome.lower()}", "", *reasons, "", *trailers]))
    patiently(settings, push)
    journal.enter("publish")
    tags = [tag for domain in promoted for tag in promote(Path(), domain, verdicts[domain].reason)]
    set_aside({domain: came for domain, came in arrived.items() if came and verdicts[domain].harmful}, config, start)
    patiently(settings, checkout.publish, settings.branch, tags)

    facts = {
        "new or changed training rows": costs["New-rows"],
        "questions to models": costs["Questions"],
        "champion before": ", ".join(map(str, champions.values())) or "none",
        "tags": ", ".join(tags) or "none",
        "commit": checkout.git("rev-parse", "HEAD"),
        "stages": f"{len(ran.rows)}, {sum(row['result'] == 'ran' for row in ran.rows)} of them ran",
        "work": f"{work:.1f} s",
        "orchestration": overhead(work, journal.waited),
    }
    return _finish(journal, outcome, reasons, facts)


def set_aside(refused: dict[str, list[str]], config: Config, start: str) -> None:
    """Take the new data of refused domains off the branch again, and note it: it comes again only once it changed.

    What was learned of it stays in the history: one commit earlier.
    """
    if not refused:
        return
    for domain in refused:
        news.take_back(domain, config.retrain.fetch[domain], start)
    if set(refused) == set(config.run.domains):  # nothing of this run stays, so what was up to date before still is
        checkout.git("restore", "--source", start, "--staged", "--worktree", "dvc.lock", str(paths.CHAMPIONS))
        checkout.git("clean", "-ffdq", str(paths.CHAMPIONS))  # models that nothing keeps out of git any more
    record_frozen()
    lines = sorted(
        {*REFUSED.read_text(encoding="utf-8").splitlines(), *(line for came in refused.values() for line in came)}
    )
    REFUSED.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    checkout.commit(
        "\n".join(
            [
                f"Refused data set aside, {date.today()}",
                "",
                *(f"{name}: {', '.join(came)}" for name, came in refused.items()),
            ]
        )
    )


def _finish(journal: Journal, outcome: str, reasons: list[str], facts: dict[str, str]) -> State[Any]:
    """The run's last words: on the terminal, on its page, as its state."""
    for text in (*reasons, *(f"{name}: {value}" for name, value in facts.items())):
        journal.say(f"        {text}")
    table = [f"| {name} | {value} |" for name, value in facts.items()]
    create_markdown_artifact(
        "\n".join([f"# {outcome}", *(f"- {reason}" for reason in reasons), "", "| | |", "|---|---|", *table]),
        "retrain-summary",
        outcome,
    )
    update_progress_artifact(journal.progress, 100.0, outcome)
    journal.say(f"{outcome}, after {seconds_since_start():.1f} s")
    return Completed(name=outcome, message="; ".join(reasons))


def run_retrain(force: bool) -> None:
    """One run on a server here: `raft retrain`."""
    load_config()  # what is wrong there is said before anything starts
    with serving():
        retrain(force=force)
