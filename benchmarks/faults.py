"""Random fault injections: kill -9 of any process of a pipeline at any time; the next run ends as if nothing had been.

    python benchmarks/faults.py [--injections 100] [--seed 0] [--share 1/2]      resumable; --share: two side by side

A small pipeline (all row stages and a training, with checkpoints) runs undisturbed in a clone of HEAD, under a Prefect
server that outlives the runs. Then, for every injection, it begins from nothing, and after a random time a randomly
chosen process of its tree is killed: the parent flow, DVC, a stage. It is run once more, and checked: it ends green
with the same bytes, what was finished is not done again, nothing half-written is left, DVC and git find everything in
order. Each injection adds a line to benchmarks/faults.jsonl; the summary is of all lines of the seed. Ends with an
error where something did not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from dvc.repo import Repo

from flows.server import free_port, wait_until_healthy
from raft_tasks.artifacts import digest_path

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).with_name("faults.jsonl")
STAGES = ("resolve", "ingest", "anchors", "rewrite", "semantic_filter", "fuse", "distill")
SMALL = {
    "run": {"domains": ["archive"], "methods": ["raft"], "seeds": [0]},
    "rewrite": {"chunk_rows": 8},
    "fuse": {"rounds": 1},
    "train": {"epochs": 1, "checkpoint_steps": 1},
}
ROWS = 24  # of training
COMPARED = ("examples", "rewritten.jsonl", "filtered.jsonl", "fused.jsonl", "training", "runs/raft-0/model")
RUN_SECONDS = 300.0
ORPHAN_SECONDS = 30.0


def small_project(folder: Path) -> None:
    """A clone of HEAD whose graph ends with the trained model: for a kill, benchmark and report are no different."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    config = yaml.safe_load((folder / "params.yaml").read_text())
    for section, values in SMALL.items():
        config.setdefault(section, {}).update(values)
    (folder / "params.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    graph = yaml.safe_load((folder / "dvc.yaml").read_text())
    graph = {"vars": graph["vars"], "stages": {name: graph["stages"][name] for name in STAGES}}
    (folder / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False))
    path = folder / "data/archive/pairs.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    train = [line for line in lines if '"split": "train"' in line]
    path.write_text("".join([*train[:ROWS], *(line for line in lines if line not in set(train))]))
    # The embedded world's frozen stage made those rows; they are now what it is to have.
    subprocess.run([sys.executable, "-m", "dvc", "commit", "--quiet", "--force", "world"], cwd=folder, check=True)
    identity = ["-c", "user.name=faults", "-c", "user.email=faults@localhost"]
    subprocess.run(["git", *identity, "commit", "-qam", "small"], cwd=folder, check=True)


@contextmanager
def prefect_server(home: Path) -> Iterator[dict[str, str]]:
    """A server of our own; the environment for what runs under it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "RAFT_"))}
    port = free_port()
    environment |= {"PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    server = subprocess.Popen([sys.executable, "-m", "flows.cli", "ui", "--port", str(port)], cwd=ROOT, env=environment)
    try:
        wait_until_healthy(environment["PREFECT_API_URL"], server)
        yield environment
    finally:
        server.terminate()
        server.wait()


def start(folder: Path, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "run"],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def working(folder: Path) -> list[psutil.Process]:
    """The processes whose folder is the project."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def name_of(process: psutil.Process) -> str:
    """`run`, `flows.dvc_worker`, `stage rewrite`, ..."""
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        words = []
    for index, word in enumerate(words):
        if word == "flows.cli" or Path(word).name == "raft":
            return " ".join(words[index + 1 : index + 3])
    return words[words.index("-m") + 1] if "-m" in words else Path(words[0]).name if words else "gone"


def kill_one(folder: Path, draw: random.Random) -> str | None:
    """kill -9 of one of the project's processes; its name, None where none is left."""
    tree = sorted(working(folder), key=lambda process: process.pid)
    while tree:
        victim = draw.choice(tree)
        name = name_of(victim)
        try:
            victim.kill()
            return name
        except psutil.NoSuchProcess:  # it ended since it was listed
            tree.remove(victim)
    return None


def kill_all(folder: Path) -> None:
    for process in working(folder):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def await_end(pipeline: subprocess.Popen[bytes], folder: Path) -> list[str]:
    """Wait for the pipeline and all that it started; returns what is wrong."""
    wrong = []
    try:
        pipeline.wait(RUN_SECONDS)
    except subprocess.TimeoutExpired:
        wrong.append(f"the pipeline did not end within {RUN_SECONDS:.0f} s")
        pipeline.kill()
        pipeline.wait()
    deadline = time.monotonic() + ORPHAN_SECONDS
    while left := working(folder):
        if time.monotonic() > deadline:
            wrong.append(f"orphans were left: {[name_of(process) for process in left]}")
            kill_all(folder)
            break
        time.sleep(0.1)
    return wrong


def started(log: Path) -> Counter[str]:
    """How often each stage's command began, by what the pipeline printed."""
    return Counter(re.findall(r"^\[.*\]\s+(\S+): started, ", log.read_text(), flags=re.MULTILINE))


def finished(log: Path) -> set[str]:
    return set(re.findall(r"^\[.*\]\s+\d+/\d+ (\S+): ran in ", log.read_text(), flags=re.MULTILINE))


def digests(folder: Path) -> dict[str, str]:
    return {name: digest_path(folder / "artifacts/archive" / name) for name in COMPARED}


def what_is_left(folder: Path) -> list[str]:
    """What is wrong with a project whose pipeline ended green."""
    wrong = [f"half-written: {path}" for path in folder.rglob("*.partial*") if ".prefect" not in path.parts]
    wrong += [f"checkpoint left: {path}" for path in (folder / ".cache/checkpoints").glob("*")]
    with Repo(str(folder)) as repo:
        status = repo.status()
    if status:
        wrong.append(f"dvc status: {status}")
    done = subprocess.run(["git", "fsck", "--full"], cwd=folder, capture_output=True, text=True)
    return wrong + ([f"git fsck: {done.stderr}"] if done.returncode else [])


def clean(folder: Path) -> None:
    """As cloned: no artifact, cache, call or checkpoint."""
    subprocess.run(["git", "reset", "--quiet", "--hard"], cwd=folder, check=True)
    subprocess.run(["git", "clean", "-ffdxq"], cwd=folder, check=True)
    for cache in (".dvc/cache", ".dvc/tmp", ".cache"):
        shutil.rmtree(folder / cache, ignore_errors=True)


def injection(
    folder: Path, draw: random.Random, whole: float, expected: dict[str, str], environment: dict[str, str]
) -> dict[str, Any]:
    """Kill, run again, check."""
    logs = [folder.with_name(name) for name in ("first.log", "second.log")]
    clean(folder)
    began = time.monotonic()
    pipeline = start(folder, logs[0], environment)
    time.sleep(draw.uniform(0.0, whole))
    killed, at = kill_one(folder, draw), time.monotonic() - began
    wrong = await_end(pipeline, folder)
    pipeline = start(folder, logs[1], environment)
    wrong += await_end(pipeline, folder)
    if pipeline.returncode:
        wrong.append(f"the second run ended with {pipeline.returncode}: {logs[1].read_text()[-2000:]}")
    else:
        wrong += what_is_left(folder)
        wrong += [f"other bytes: {key}" for key, value in digests(folder).items() if value != expected[key]]
    repeated = sorted({stage for stage in started(logs[0]) if stage in started(logs[1])})
    again = sorted(set(repeated) & finished(logs[0]))
    if again:
        wrong.append(f"finished, and done again: {again}")
    seconds = round(time.monotonic() - began, 1)
    return {"killed": killed, "at": round(at, 1), "seconds": seconds, "begun twice": repeated, "wrong": wrong}


def recorded(seed: int) -> dict[int, dict[str, Any]]:
    """The injections of this seed so far, by number."""
    lines = RECORD.read_text().splitlines() if RECORD.exists() else []
    return {row["number"]: row for row in map(json.loads, lines) if row["seed"] == seed}


def summary(rows: list[dict[str, Any]]) -> str:
    victims = Counter(row["killed"] or "nothing, it was over" for row in rows)
    twice = Counter(len(row["begun twice"]) for row in rows)
    killed = ", ".join(f"{name} {count}" for name, count in victims.most_common())
    begun = ", ".join(f"{count} in {times}" for count, times in sorted(twice.items()))
    faults = [row["number"] for row in rows if row["wrong"]]
    return (
        f"{len(rows)} injections; something wrong in: {faults or 'none'}\nkilled: {killed}\nstages begun twice: {begun}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill random processes of a small pipeline, and see that it recovers.")
    parser.add_argument("--injections", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", default="1/1", help="1/2 and 2/2 are two processes side by side")
    asked = parser.parse_args()
    part, parts = map(int, asked.share.split("/"))
    with (
        tempfile.TemporaryDirectory() as temporary,
        prefect_server(Path(temporary) / "prefect") as environment,
        ExitStack() as end,
    ):
        folder, log = Path(temporary) / "project", Path(temporary) / "first.log"
        small_project(folder)
        end.callback(kill_all, folder)  # what an interrupt leaves running
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        began = time.monotonic()
        pipeline = start(folder, log, environment)
        wrong = await_end(pipeline, folder)
        whole = time.monotonic() - began
        if pipeline.returncode or wrong or what_is_left(folder):
            sys.exit(f"undisturbed: {wrong or what_is_left(folder)}\n{log.read_text()[-3000:]}")
        expected = digests(folder)
        print(f"undisturbed: {whole:.1f} s, stages: {' '.join(started(log))}", flush=True)
        for number in range(part, asked.injections + 1, parts):
            if number not in recorded(asked.seed):
                found = injection(folder, random.Random(f"{asked.seed}/{number}"), whole, expected, environment)
                about = {
                    "seed": asked.seed,
                    "number": number,
                    "commit": commit.stdout.strip()[:12],
                    "of": round(whole, 1),
                }
                with RECORD.open("a") as out:
                    out.write(json.dumps({**about, **found}) + "\n")
                print(f"{number:3d} {found}", flush=True)
    rows = list(recorded(asked.seed).values())
    print(summary(rows))
    if any(row["wrong"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
