"""The response cache: what models answered, how much room it takes, and how to forget some of it (`raft cache`).

What is forgotten is asked again when a stage needs it; artifacts are left as they are.
"""

import shutil
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from flows import paths
from raft_tasks.errors import InputError
from raft_tasks.generation.response_cache import COUNTS, ResponseCache

LAST_RUNS = 10
MEGABYTE = 10**6
DAY = 86400


def open_cache() -> ResponseCache:
    """Raises InputError where there is no cache yet, or it is damaged."""
    if not paths.RESPONSES.exists():
        raise InputError(f"{paths.RESPONSES} is not there: no stage has made a call yet in this folder")
    return ResponseCache(paths.RESPONSES)


def show() -> None:
    """Print what the cache holds by role, model and day, and the last runs."""
    store, console = open_cache(), Console(width=None if sys.stdout.isatty() else 140)
    console.print(f"{store.path}: {store.size() / MEGABYTE:.1f} MB")
    for by in ("role", "model", "day"):
        columns = [by, "calls", "failed", "tokens in", "tokens out", "cost", "bytes"]
        _print(console, columns, [[*row[:5], f"{row[5]:.4f}", row[6]] for row in store.summary(by)])
    runs = [
        [stage, f"{datetime.fromtimestamp(started):%Y-%m-%d %H:%M}", *counts[:-1], f"{counts[-1]:.4f}"]
        for stage, started, *counts in store.last_runs(LAST_RUNS)
    ]
    _print(console, ["last runs", "started", *(name.replace("_", " ") for name in COUNTS)], runs)


def _print(console: Console, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    console.print(table)


def prune(older_than: float | None, role: str | None, failed: bool, to_megabytes: float | None) -> None:
    """Forget the calls that meet all conditions: older than so many days, of a role, failed; or the oldest ones."""
    if older_than is role is to_megabytes is None and not failed:
        raise InputError("no condition given; `raft cache prune --help` lists them")
    store = open_cache()
    before = store.size()
    gone = store.prune(
        older_than=None if older_than is None else older_than * DAY,
        role=role,
        failed=failed,
        to_bytes=None if to_megabytes is None else int(to_megabytes * MEGABYTE),
    )
    shutil.rmtree(paths.TASKS, ignore_errors=True)  # results of whole chunks, which would be in the way of asking again
    print(f"{gone} calls forgotten; {store.path}: {before / MEGABYTE:.1f} -> {store.size() / MEGABYTE:.1f} MB")
