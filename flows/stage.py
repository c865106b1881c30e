"""How a stage's flow is started from the command line: `python -m flows.<stage> [domain [method seed]]`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from prefect import Flow
from prefect.client.schemas import FlowRun
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings
from prefect.states import State

from flows.environment import answering_server
from raft_tasks.errors import InputError

RowT = TypeVar("RowT")

RUN_LINE = "flow run: "
PROGRESS_SECONDS = 2.0  # between two lines of one stage


def main(stage: Flow[..., Any], *kinds: Callable[[str], Any]) -> None:
    """Run `stage` with the command line's arguments, each converted by its kind; bad input ends it with a message."""
    arguments = sys.argv[1:]
    if len(arguments) > len(kinds):
        sys.exit(f"error: {stage.name} takes at most {len(kinds)} argument(s), got {arguments}")
    # Without a server Prefect starts a temporary one for every stage, which takes seconds: use one that runs.
    # The heartbeat thread's join would add a second to every stage, and DVC sees a stage that dies.
    server = os.environ.get("PREFECT_API_URL") or answering_server()
    settings = {PREFECT_API_URL: server} if server else {}
    label = f"{stage.name}@{'-'.join(arguments)}" if arguments else stage.name  # as DVC names the stage
    announced = stage.with_options(flow_run_name=label, on_running=[_announce])
    try:
        with temporary_settings(settings):
            get_current_settings().flows.heartbeat_frequency = None
            announced(*(kind(argument) for kind, argument in zip(kinds, arguments, strict=False)))
    except InputError as error:
        sys.exit(f"error: {stage.name} {' '.join(arguments)}: {error}")


def _announce(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    page = PREFECT_API_URL.value()
    if page:
        print(f"{RUN_LINE}{page.removesuffix('/api')}/runs/flow-run/{flow_run.id}", flush=True)


def chunks(rows: list[RowT], size: int) -> Iterator[list[RowT]]:
    """`rows` in order, `size` at a time: what one cached task works on, and what a kill can cost."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


class Progress:
    """Prints `<label>: 128/240 rows, about 6 s left` now and then, a line each, for people and for logs."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.started = self.printed = time.monotonic()

    def __call__(self, done: int, total: int | None = None) -> None:
        self.total = total or self.total
        now = time.monotonic()
        if done and (done == self.total or now - self.printed >= PROGRESS_SECONDS):
            self.printed = now
            left = (now - self.started) / done * (self.total - done)
            print(f"{self.label}: {done}/{self.total} {self.unit}, about {left:.0f} s left", flush=True)
