"""What does DVC cost a stage as the graph grows, with its own handling of dvc.lock and with flows/lock_file.py?

    python benchmarks/lock_file.py         # half a minute; prints CPU seconds, best of three

In a temporary project, graphs of so many stages, four dependencies and four outputs each: a stage that ran (its command
is a shell's) and one that is up to date, by `dvc repro --single-item` in this process.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import dvc.cli
from dvc.utils.serialize import dump_yaml
from measuring import machine, table, timed_in_turn

from flows import lock_file

STAGES = (11, 88)
REPEATS = 3
FILES = range(4)
COMMAND = "mkdir -p outs/{0}; for file in 0 1 2 3; do echo {0} > outs/{0}/$file; done"


def write_project(stages: int) -> None:
    """A graph of `stages` stages, all of them in dvc.lock with contents that differ from those of the files."""
    Path("deps").mkdir(exist_ok=True)
    for file in FILES:
        Path(f"deps/{file}").write_text(str(file))
    graph = {
        "matrix": {"number": [str(number) for number in range(stages)]},
        "cmd": COMMAND.format("${item.number}"),
        "deps": [f"deps/{file}" for file in FILES],
        "outs": [f"outs/${{item.number}}/{file}" for file in FILES],
    }
    dump_yaml("dvc.yaml", {"stages": {"stage": graph}})
    locked = {f"stage@{number}": entry(number) for number in range(stages)}
    dump_yaml("dvc.lock", {"schema": "2.0", "stages": locked})


def entry(number: int) -> dict[str, object]:
    def files(folder: str) -> list[dict[str, object]]:
        return [{"path": f"{folder}/{file}", "hash": "md5", "md5": "0" * 32, "size": 1} for file in FILES]

    return {"cmd": COMMAND.format(number), "deps": files("deps"), "outs": files(f"outs/{number}")}


def repro(number: int) -> None:
    assert dvc.cli.main(["repro", "--quiet", "--single-item", f"stage@{number}"]) == 0


def measure(stages: int) -> tuple[float, float]:
    """CPU seconds of a stage that ran, and of one that is up to date."""
    write_project(stages)
    repro(0)
    waiting = iter(range(1, REPEATS + 1))
    times = timed_in_turn({"ran": lambda: repro(next(waiting)), "up to date": lambda: repro(0)}, REPEATS, "cpu")
    return times["ran"].cpu, times["up to date"].cpu


def main() -> None:
    print(f"{machine('cpu')}\n")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for command in (["git", "init", "--quiet"], ["dvc", "init", "--quiet"]):
            subprocess.run(command, check=True)
        results = {"DVC alone": [measure(stages) for stages in STAGES]}
        lock_file.install()
        results["by stage"] = [measure(stages) for stages in STAGES]
        os.chdir("/")
    rows = [
        (f"{kind}, {side}", *(f"{times[column]:.2f}" for times in of_side))
        for column, kind in enumerate(("ran", "up to date"))
        for side, of_side in results.items()
    ]
    print(table(["CPU s a stage", *map(str, STAGES)], rows))


if __name__ == "__main__":
    main()
