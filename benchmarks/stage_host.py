"""What stages cost with a stage host and without one: CPU seconds and seconds of each, side by side in one run.

    python -m benchmarks.stage_host 3 "ingest archive" "rewrite archive" ...

Run in a project whose stages before these have run, with PREFECT_API_URL naming a server. Every stage runs once before,
so that row stages find their calls in the response cache and what is left is their cost beside their work.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections import defaultdict
from statistics import median

import psutil

from flows.stage_host import stage_host

Cost = tuple[float, float]  # CPU seconds of all processes, seconds


def cpu_seconds(host: psutil.Process | None) -> float:
    """Of this process's children that have ended, and of the host and its children that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    times = host.cpu_times() if host is not None else None
    of_host = times.user + times.system + times.children_user + times.children_system if times else 0.0
    return ended.ru_utime + ended.ru_stime + of_host


def run(stage: str, environment: dict[str, str], host: psutil.Process | None) -> Cost:
    before, started = cpu_seconds(host), time.monotonic()
    subprocess.run(
        ["sh", "-c", f"raft stage {stage}"], env=environment, check=True, capture_output=True, stdin=subprocess.DEVNULL
    )
    return cpu_seconds(host) - before, time.monotonic() - started


def show(label: str, cost: Cost) -> None:
    print(f"{label:48s}{cost[0]:8.2f} CPU s{cost[1]:8.2f} s", flush=True)


def main(rounds: int, stages: list[str]) -> None:
    plain = dict(os.environ)
    costs: dict[tuple[str, str], list[Cost]] = defaultdict(list)
    with stage_host(plain) as hosted:
        host = psutil.Process().children()[0]
        for stage in stages:
            show(f"{stage}, first with host: imports for all", run(stage, hosted, host))
        for _ in range(rounds):
            for stage in stages:
                costs[stage, "without"].append(run(stage, plain, host))
                costs[stage, "with"].append(run(stage, hosted, host))
    for (stage, kind), values in costs.items():
        show(f"{stage}, {kind} host", (median(value[0] for value in values), median(value[1] for value in values)))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
