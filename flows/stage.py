"""How a stage's flow runs in a process of its own: `raft stage NAME [DOMAIN [METHOD SEED]]`."""

import inspect
import os
import sys
import time
from importlib import import_module
from shutil import get_terminal_size
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.schemas import FlowRun
from prefect.settings import PREFECT_API_URL, get_current_settings
from prefect.states import State

from flows.environment import find_server
from flows.resolve import DVC_STAGE, check_unchanged, resolve
from flows.runners import task_runner
from flows.server import prefect_at
from raft_tasks.config import load_config
from raft_tasks.errors import InputError, Interrupted

RUN_LINE = "flow run: "  # its page follows, and the work begins
END_LINE = "flow run ended"
PROGRESS_SECONDS = 2.0  # between two lines of one stage
TERMINAL_SECONDS = 0.1  # between two states of a terminal's line
BAR = 20  # characters


def run_stage(name: str, *arguments: str | int | None) -> None:
    """Run the flow of `flows.<name>` in this process, as `name@argument-...`.

    Raises:
        InputError: bad input, or arguments that the stage does not take.
        Interrupted: a signal stopped it at a point from which the next run goes on.
    """
    stage: Flow[..., Any] = getattr(import_module(f"flows.{name}"), name)
    given = [argument for argument in arguments if argument is not None]
    label = "-".join(map(str, given))
    try:
        inspect.signature(stage.fn).bind(*given)
    except TypeError as error:
        parameters = ", ".join(inspect.signature(stage.fn).parameters) or "no arguments"
        raise InputError(f"stage {name}: got {given}, expected {parameters} ({error})") from error
    # Without a server Prefect starts a temporary one for every stage, which takes seconds: use one that runs.
    # The heartbeat thread's join would add a second to every stage, and DVC sees a stage that dies.
    server = find_server()
    try:
        config = load_config()
        if DVC_STAGE in os.environ:
            check_unchanged(config, name, *map(str, given[:2]))
        else:  # by hand: what a changed model said before must not count as the new one's
            resolve(config)
        resources = config.resources
        check_gpus(resources.gpus)
        flow_run = stage.with_options(
            flow_run_name=f"{name}@{label}" if label else name,  # as DVC names the stage
            on_running=[_announce],
            task_runner=task_runner(resources.chunks),
        )
        with prefect_at(server):
            get_current_settings().flows.heartbeat_frequency = None
            flow_run(*given)
        print(END_LINE, flush=True)
    except (InputError, Interrupted) as error:
        raise type(error)(f"{name} {label}: {error}") from error


def check_gpus(needed: int) -> None:
    """Raises InputError where this machine does not have as many."""
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
        self.origin: tuple[float, int] = (self.started, 0)  # a resumed training begins with steps of an earlier run
        self.terminal = sys.stdout.isatty()

    def __call__(self, done: int, total: int | None = None, shown: str = "") -> None:
        """`shown` is what else there is to say, a loss for instance."""
        self.total = total or self.total
        if not self.due(done):
            return
        self.printed = now = time.monotonic()
        began, before = self.origin
        left = f", about {(now - began) / (done - before) * (self.total - done):.0f} s left" if done > before else ""
        if self.origin == (self.started, 0) or done < before:  # at first, and where one training follows another
            self.origin = (now, done)
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
