"""How a stage's flow is started from the command line: `python -m flows.<stage> [domain [method seed]]`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from shutil import get_terminal_size
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.schemas import FlowRun
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings
from prefect.states import State

from flows.environment import answering_server, await_server
from flows.runners import task_runner
from raft_tasks.config import load_config
from raft_tasks.errors import INTERRUPTED, InputError, Interrupted

RUN_LINE = "flow run: "  # its page follows, and the work begins
END_LINE = "flow run ended"
DRY_RUN = "--dry-run"
PROGRESS_SECONDS = 2.0  # between two lines of one stage
TERMINAL_SECONDS = 0.1  # between two states of a terminal's line
BAR = 20  # characters


def main(stage: Flow[..., Any], *kinds: Callable[[str], Any], dry_run: Callable[..., None] | None = None) -> None:
    """Run `stage` with the command line's arguments, each converted by its kind; bad input ends it with a message.

    With --dry-run, where the stage has a `dry_run`, that is called instead: no flow run, no artifact.
    A stage that a signal stopped where the next run goes on ends with the exit code INTERRUPTED.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != DRY_RUN]
    if dry_run is not None and DRY_RUN in sys.argv:
        try:
            dry_run(*(kind(argument) for kind, argument in zip(kinds, arguments, strict=True)))
        except InputError as error:
            sys.exit(f"error: {stage.name} {' '.join(sys.argv[1:])}: {error}")
        return
    if len(arguments) > len(kinds):
        sys.exit(f"error: {stage.name} takes at most {len(kinds)} argument(s), got {arguments}")
    # Without a server Prefect starts a temporary one for every stage, which takes seconds: use one that runs.
    # The heartbeat thread's join would add a second to every stage, and DVC sees a stage that dies.
    given = os.environ.get("PREFECT_API_URL")
    if given:
        await_server(given)
    server = None if given else answering_server()
    settings = temporary_settings({PREFECT_API_URL: server}) if server else nullcontext()
    label = f"{stage.name}@{'-'.join(arguments)}" if arguments else stage.name  # as DVC names the stage
    try:
        resources = load_config().resources
        check_gpus(resources.gpus)
        runner = task_runner(resources.chunks)
        announced = stage.with_options(flow_run_name=label, on_running=[_announce], task_runner=runner)
        with settings:
            get_current_settings().flows.heartbeat_frequency = None
            announced(*(kind(argument) for kind, argument in zip(kinds, arguments, strict=False)))
        print(END_LINE, flush=True)
    except InputError as error:
        sys.exit(f"error: {stage.name} {' '.join(arguments)}: {error}")
    except Interrupted as stop:
        print(f"{label}: {stop}", file=sys.stderr)
        sys.exit(INTERRUPTED)


def check_gpus(needed: int) -> None:
    """
    Raises:
        InputError: if this machine does not have as many.
    """
    if not needed:
        return
    import torch

    there = torch.cuda.device_count()
    if there < needed:
        raise InputError(
            f"resources.gpus is {needed}, this machine has {there} that torch can use; was one lost? `nvidia-smi` "
            "shows them. Run the same command once they are back: finished stages and checkpoints are kept"
        )


def _announce(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    api_url = PREFECT_API_URL.value()
    if api_url:
        print(f"{RUN_LINE}{run_page(api_url, flow_run.id)}", flush=True)


def run_page(api_url: str, run: UUID | str) -> str:
    """The address of a flow run's page."""
    return f"{api_url.removesuffix('/api')}/runs/flow-run/{run}"


class Progress:
    """Shows `<label>: 128/240 rows, about 6 s left`: a line now and then in a log, on a terminal one with a bar."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.started = self.printed = time.monotonic()
        self.terminal = sys.stdout.isatty()

    def __call__(self, done: int, total: int | None = None, shown: str = "") -> None:
        """`shown` is what else there is to say, a loss for instance."""
        self.total = total or self.total
        if not self.due(done):
            return
        self.printed = now = time.monotonic()
        left = f", about {(now - self.started) / done * (self.total - done):.0f} s left" if done else ""
        text = f"{done}/{self.total} {self.unit}{left}{shown and '; '}{shown}"
        if not self.terminal:
            print(f"{self.label}: {text}", flush=True)
            return
        filled = BAR * done // self.total
        line = f"{self.label} [{'#' * filled}{'.' * (BAR - filled)}] {text}"[: get_terminal_size().columns - 1]
        print(f"\r\033[K{line}", end="\n" if done == self.total else "", flush=True)  # erase, then write anew

    def due(self, done: int) -> bool:
        """Whether there is something to show after `done`."""
        seconds = TERMINAL_SECONDS if self.terminal else PROGRESS_SECONDS
        return 0 < done == self.total or time.monotonic() - self.printed >= seconds
