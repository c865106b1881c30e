"""How a stage's flow is started from the command line: `python -m flows.<stage> [domain [method seed]]`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from prefect import Flow
from prefect.settings import get_current_settings

from raft_tasks.params import ParamsError

PROGRESS_SECONDS = 2.0  # between two lines of one stage


def main(stage: Flow[..., Any], *kinds: Callable[[str], Any]) -> None:
    """Run `stage` with the command line's arguments, each converted by its kind; end with 1 and a message on bad input."""
    arguments = sys.argv[1:]
    if len(arguments) > len(kinds):
        sys.exit(f"error: {stage.name} takes at most {len(kinds)} argument(s), got {arguments}")
    # The heartbeat thread's join would add a second to every stage; DVC sees a stage that dies.
    get_current_settings().flows.heartbeat_frequency = None
    try:
        stage(*(kind(argument) for kind, argument in zip(kinds, arguments, strict=False)))
    except (ParamsError, ValueError, FileNotFoundError, FileExistsError) as error:
        sys.exit(f"error: {stage.name} {' '.join(arguments)}: {error}")


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
