"""The parent flow: drives the DVC graph, one task per stage, independent stages side by side.

DVC decides whether a stage runs; this flow adds the budget of processes, progress, a page to look at and a clean end.
"""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import LifoQueue
from typing import Any, NamedTuple

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import ThreadPoolTaskRunner

from flows.dvc_worker import DvcWorker
from flows.environment import process_age
from flows.run import host_stages, stage_graph, stale_stages
from flows.server import Server, prefect_at
from flows.stage import END_LINE, RUN_LINE, run_page
from flows.stage_host import stage_environment, stage_host
from raft_tasks.config import load_config
from raft_tasks.errors import OperationalError

TAIL_LINES = 30  # of a failed stage's output, repeated in its error
ERROR = "error: "  # that flows/cli.py begins the message of a failed stage with
DVC_ERROR = "ERROR: failed to reproduce "
DVC_RUNS = "Running stage "
STOP_SECONDS = 120.0  # for a step and a checkpoint, before a stage is killed
# A thread for every stage: they wait for their upstream, and then for a DVC worker.
ALL_AT_ONCE: Any = ThreadPoolTaskRunner(max_workers=sys.maxsize)


class StageFailed(OperationalError):
    """A stage ended with an error; the message holds its last words."""


class Ran(NamedTuple):
    """What a pipeline did."""

    rows: list[dict[str, str]]  # of every stage, see PipelineRun.finish
    work: float  # seconds in which at least one stage's own flow was running; the rest is DVC's, Prefect's and imports


@dataclass
class PipelineRun:
    """The progress of a run; prints a line for each event."""

    total: int
    workers: list[DvcWorker]  # as many as stages may run side by side
    started: float = field(default_factory=time.monotonic)
    rows: list[dict[str, str]] = field(default_factory=list)
    idle: LifoQueue[DvcWorker] = field(default_factory=LifoQueue)
    work_intervals: list[tuple[float, float]] = field(default_factory=list)  # when a stage's own flow was running
    stopped: bool = False

    def __post_init__(self) -> None:
        for worker in self.workers:
            self.idle.put(worker)

    def log(self, text: str) -> None:
        print(f"[{time.monotonic() - self.started:6.1f} s] {text}", flush=True)

    def finish(self, name: str, result: str, seconds: float, link: str) -> None:
        self.rows.append({"stage": name, "result": result, "seconds": f"{seconds:.1f}", "flow run": link})
        rate = (time.monotonic() - self.started) / len(self.rows)
        left = rate * (self.total - len(self.rows))
        self.log(f"{len(self.rows):3d}/{self.total} {name}: {result} in {seconds:.1f} s; {left:.0f} s left in all")

    def work(self) -> float:
        """Seconds in which at least one stage's own flow was running."""
        total, reached = 0.0, 0.0
        for begin, end in sorted(self.work_intervals):
            total += max(0.0, end - max(begin, reached))
            reached = max(reached, end)
        return total

    def stop(self) -> None:
        """Start nothing more; interrupt every stage that still runs (a training saves a checkpoint), later kill it."""
        self.stopped = True
        busy = sum(worker.busy for worker in self.workers)
        if busy:
            self.log(f"stopping {busy} stage(s); a training saves a checkpoint first")
        for worker in self.workers:
            worker.interrupt()
        deadline = time.monotonic() + STOP_SECONDS
        for worker in self.workers:
            worker.end(max(0.0, deadline - time.monotonic()))


@dataclass
class StageRun:
    """What the output of one stage's `dvc repro` says."""

    name: str
    output: list[str] = field(default_factory=list)
    link: str = ""  # of its flow run's page
    ran: bool = False  # and not restored from the run cache
    started: float = field(default_factory=time.monotonic)
    work_started: float | None = None
    work_ended: float | None = None

    def read(self, line: str, run: PipelineRun) -> None:
        self.output.append(line)
        if line.startswith(RUN_LINE):
            self.link = line.removeprefix(RUN_LINE)
            self.work_started = time.monotonic()
            run.log(f"        {self.name}: started, {self.link}")
        elif line == END_LINE:
            self.work_ended = time.monotonic()
        elif line.startswith(f"{self.name}: "):  # a stage's own progress
            run.log(f"        {line}")
        self.ran = self.ran or line.startswith(DVC_RUNS)


def failure_reason(output: list[str]) -> str:
    """The error message that a failed stage's output ends with, without the log before it; otherwise its end."""
    lines = [line for line in output if not line.startswith(DVC_ERROR)]
    starts = [index for index, line in enumerate(lines) if line.startswith(ERROR)]
    if starts:
        return "\n".join(lines[starts[-1] :]).rstrip()
    return "the end of its output:\n" + "\n".join(output[-TAIL_LINES:])


@task(task_run_name="{name}", cache_policy=NO_CACHE)  # DVC decides
def run_stage(name: str, run: PipelineRun) -> str:
    """`dvc repro --single-item` of one stage; returns ran | unchanged. StageFailed has its error, printed too."""
    worker, stage = run.idle.get(), StageRun(name)
    failure, cause = "", None
    try:
        if run.stopped:
            raise StageFailed(f"{name} was not started: the pipeline was stopped")
        for line in worker.reproduce(name):
            stage.read(line, run)
        if worker.code:
            failure = f"{name} ended with code {worker.code}; {failure_reason(stage.output)}"
    except (OSError, ValueError) as error:  # no process could be started, or what it wrote not be read
        failure, cause = f"{name} was not run to its end: {type(error).__name__}: {error}", error
    finally:
        run.idle.put(worker)
    ended = time.monotonic()
    if stage.work_started is not None:
        run.work_intervals.append((stage.work_started, stage.work_ended or ended))
    get_run_logger().info("\n".join(stage.output))
    result = "FAILED" if failure else "ran" if stage.ran else "unchanged"
    run.finish(name, result, ended - stage.started, stage.link)
    if failure:
        run.log(failure)
        raise StageFailed(failure) from cause
    return result


@flow(name="pipeline", task_runner=ALL_AT_ONCE)
def pipeline() -> Ran:
    """Run the stages that are not up to date, in the graph's order.

    Raises:
        StageFailed: naming every stage that failed; the others ran as far as they could.
    """
    config = load_config()
    resources = config.resources
    upstream, changed = stage_graph(config)
    stale = stale_stages(upstream, changed)
    api_url = PREFECT_API_URL.value()
    assert api_url is not None  # a flow's process always has one: of `serving`, or a worker's
    futures: dict[str, PrefectFuture[str]] = {}
    with stage_host(stage_environment(api_url, resources.threads), host_stages(stale)) as environment:
        run = PipelineRun(len(stale), [DvcWorker(environment) for _ in range(resources.processes)])
        run.log(f"{len(stale)} stages to run, {resources.processes} at a time, {resources.threads} thread(s) each")
        run.log(f"this run: {run_page(api_url, flow_run.id)}")
        try:
            for name in stale:
                waits_for = [futures[dep] for dep in upstream[name] if dep in futures]
                futures[name] = run_stage.submit(name, run, return_state=False, wait_for=waits_for)
            wait(list(futures.values()))
        finally:
            run.stop()
            wait(list(futures.values()))  # the rest ends at once; Prefect would wait forever on a cancelled upstream
            if run.rows:
                create_table_artifact(key="pipeline", table=run.rows, description="Every stage of this run")
    if not all(future.state.is_completed() for future in futures.values()):
        raise StageFailed("\n\n".join(_errors(futures)))
    return Ran(run.rows, run.work())


def _errors(futures: dict[str, PrefectFuture[str]]) -> Iterator[str]:
    """What went wrong in each stage that failed; of the others, whose upstream failed, nothing."""
    for name, future in futures.items():
        if future.state.is_failed() or future.state.is_crashed():
            error = future.state.result(raise_on_failure=False)
            yield str(error) if isinstance(error, StageFailed) else f"{name}: {error!r}"


def overhead(work: float, waited: float = 0.0) -> str:
    """What of this process's life was neither work nor waiting, in words; all in seconds."""
    whole = process_age() - waited
    return f"{whole - work:.1f} s, {100 * (whole - work) / whole:.1f} % of {whole:.1f} s"


@contextmanager
def serving(server: Server | None = None) -> Iterator[None]:
    """Flows run on a Prefect server here, and SIGTERM ends them like Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped: SIGTERM"))
    with prefect_at((server or Server()).wait()):
        yield
