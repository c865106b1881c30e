"""The response cache from the command line: what models answered, how much room it takes, and how to forget some of it.

    python -m flows.calls                             what is in it: by role, model and day; the last runs
    python -m flows.calls prune --older-than 30       days
    python -m flows.calls prune --role judge          of this role; rewrite, fuse, judge, question, check, ...
    python -m flows.calls prune --failed              answers that were empty, refused or filtered
    python -m flows.calls prune --to-megabytes 500    the oldest, until the rest fits

Conditions add up: `prune --role judge --older-than 7` forgets what is both. What is forgotten is asked again when a
stage needs it; artifacts are left as they are.
"""

from __future__ import annotations

import argparse
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


def show(store: ResponseCache, console: Console) -> None:
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


def main(arguments: Sequence[str]) -> None:
    """
    Raises:
        InputError: there is no store yet, or it is damaged.
    """
    parser = argparse.ArgumentParser(prog="python -m flows.calls", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command")
    prune = commands.add_parser("prune", help="forget calls; at least one condition")
    prune.add_argument("--older-than", type=float, metavar="DAYS")
    prune.add_argument("--role")
    prune.add_argument("--failed", action="store_true")
    prune.add_argument("--to-megabytes", type=float)
    given = parser.parse_args(arguments)
    conditions = {name: value for name, value in vars(given).items() if name != "command"}
    if given.command and all(value in (None, False) for value in conditions.values()):
        prune.error("nothing said about what to forget")
    if not paths.RESPONSES.exists():
        raise InputError(f"{paths.RESPONSES} is not there: no stage has made a call yet in this folder")
    store = ResponseCache(paths.RESPONSES)
    if given.command is None:
        show(store, Console(width=None if sys.stdout.isatty() else 140))
        return
    before = store.size()
    gone = store.prune(
        older_than=None if given.older_than is None else given.older_than * 86400,
        role=given.role,
        failed=given.failed,
        to_bytes=None if given.to_megabytes is None else int(given.to_megabytes * MEGABYTE),
    )
    print(f"{gone} calls forgotten; {store.path}: {before / MEGABYTE:.1f} -> {store.size() / MEGABYTE:.1f} MB")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")
