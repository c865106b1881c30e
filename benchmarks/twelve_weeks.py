"""Twelve weeks of scheduled retraining, unattended, with what goes wrong in a year: on the pocket world, in real time.

    python benchmarks/twelve_weeks.py [FOLDER]        about half an hour on two cores; FOLDER is kept, else temporary

A real Prefect server and worker, the deployment `retrain`, git tags, a DVC remote: all as `make ui`, `make deploy` and
`make worker` have them, in a clone of HEAD with small params. A week's data is dropped into the inbox and a run is
scheduled at once; the next week comes when it is over. After each week the invariants are checked, and at the end all
of git and DVC. Prints a table of the weeks; ends with an error where something that must hold does not.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from weeks_service import METHOD, Service


def nothing() -> None:
    """What most weeks bring."""


@dataclass
class Week:
    """One week: what is new, what goes wrong, what is expected."""

    what: str
    data: Callable[[], None] = nothing
    trouble: Callable[[], None] = nothing  # happens while the run is at work
    before: Callable[[], None] = nothing
    after: Callable[[], None] = nothing  # mends what `before` broke
    expected: tuple[str, ...] = ("Promoted",)
    runs: int = 1


def weeks_of(service: Service) -> list[Week]:
    def at_once() -> None:
        service.facts(2)

    return [
        Week("the first data", expected=("Promoted",)),
        Week("4 new facts", data=lambda: service.facts(4)),
        Week("nothing new", expected=("NoNewData",)),
        Week("4 new facts; kill -9 of the worker", data=lambda: service.facts(4), trouble=service.kill_worker),
        Week("mixed-up values", data=service.poison, expected=("Kept",)),
        Week("4 new facts; kill -9 of the server", data=lambda: service.facts(4), trouble=service.kill_server),
        Week("refusals", data=service.refusals, expected=("Kept",)),
        Week(
            "2 new facts; the DVC remote is away",
            data=lambda: service.facts(2),
            before=service.hide_remote,
            after=service.bring_remote_back,
            expected=("Failed",),
        ),
        Week("the remote is back", expected=("Promoted", "Kept")),
        Week(
            "2 new facts; the disk is full",
            data=lambda: service.facts(2),
            before=service.fill_disk,
            after=service.empty_disk,
            expected=("Failed", "Crashed"),
        ),
        Week("there is room again; two runs at once", data=at_once, runs=2, expected=("Promoted", "Kept")),
        Week("1 new fact: 2 % of the rows", data=lambda: service.facts(1), expected=("Promoted", "Kept")),
    ]


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        service = Service(folder)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped: SIGTERM"))
        try:
            service.start_server()
            service.deploy()
            service.start_worker()
            wrong = live(service)
        finally:
            service.stop()
    if wrong:
        sys.exit("\n".join(["what must hold does not:", *wrong]))
    print("\ntwelve weeks: every invariant held")


def live(service: Service) -> list[str]:
    """Live through the weeks; returns what went wrong."""
    wrong: list[str] = []
    print("| week | what | outcome | domain accuracy | in production | questions to models | s | why |")
    print("|---:|---|---|---:|---|---:|---:|---|", flush=True)
    accuracy: dict[str, float] = {}
    for number, week in enumerate(weeks_of(service), start=1):
        before, asked, began = service.champion(), calls(service), time.monotonic()
        week.data()
        week.before()
        runs = [service.schedule() for _ in range(week.runs)]
        week.trouble()
        states = [service.wait(run) for run in runs]
        names = [state["name"] for state in states]
        if week.trouble is not nothing and "CRASHED" in [state["type"] for state in states]:
            names.append(service.wait(service.newest(but=runs))["name"])  # the automation's doing
        week.after()
        after = service.champion()
        verdict = service.at_branch("releases/archive.json") or {}
        outcome = " and ".join(names)
        last = "Promoted" if after != before else names[-1]
        if last not in week.expected:
            wrong.append(f"week {number}, {week.what}: got {outcome}, expected one of {week.expected}")
        if (after != before) != ("Promoted" in names):
            wrong.append(f"week {number}: {outcome}, and in production is {after} after {before}")
        tags = service.git("tag").split()
        if len([tag for tag in tags if "@" in tag]) != len([tag for tag in tags if "#" in tag]):
            wrong.append(f"week {number}: versions and stages do not agree: {tags}")
        if after != before:
            accuracy[after] = domain_accuracy(service)
            if before in accuracy and accuracy[after] < accuracy[before] - 0.1:
                wrong.append(f"week {number}: {after} has {accuracy[after]:.3f}, {before} had {accuracy[before]:.3f}")
        shown = f"{100 * accuracy[after]:.1f}" if after in accuracy else "-"
        why = verdict.get("reason", "") if last in ("Kept",) else states[0].get("message") or ""
        print(
            f"| {number} | {week.what} | {outcome} | {shown} | {after} | {calls(service) - asked} "
            f"| {time.monotonic() - began:.0f} | {why[:300].replace('|', '/')} |",
            flush=True,
        )
    return wrong + service.whole()


def domain_accuracy(service: Service) -> float:
    path = service.folder / f".raft/checkout/artifacts/archive/benchmarks/{METHOD}-0/scores.json"
    return float(json.loads(path.read_text())["tasks"]["domain"]["metrics"]["acc"])


def calls(service: Service) -> int:
    """Answers that models have given so far: rows of the response cache."""
    import sqlite3

    path = service.folder / ".cache/responses.sqlite"
    if not path.exists():
        return 0
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as store:
        return int(store.execute("select count(*) from calls").fetchone()[0])


if __name__ == "__main__":
    main()
