"""Random fault injections: kill -9 of any process of a pipeline at any time; the next run ends as if nothing had been.

    python benchmarks/faults.py [INJECTIONS] [SEED]        100 injections, seed 0: hours on two cores

A small pipeline (all row stages and a training, with checkpoints) runs undisturbed in a clone of HEAD. Then, for every
injection, it begins from nothing, and after a random time a randomly chosen process of its tree is killed: the parent
flow, its Prefect server, DVC, a stage. It is run once more, and checked: it ends green with the same bytes, what was
finished is not done again, nothing half-written is left, DVC and git find everything in order. Prints a line for each
injection and a summary; ends with an error where something did not hold.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import yaml
from dvc.repo import Repo

from raft_tasks.artifacts import digest_path

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "run": {"domains": ["registry"], "methods": ["raft"], "seeds": [0]},
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
    params = yaml.safe_load((folder / "params.yaml").read_text())
    for section, values in SMALL.items():
        params[section].update(values)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    graph = (folder / "dvc.yaml").read_text()
    (folder / "dvc.yaml").write_text(graph[: graph.index("  benchmark:")])
    path = folder / "data/registry/pairs.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    train = [line for line in lines if '"split": "train"' in line]
    path.write_text("".join([*train[:ROWS], *(line for line in lines if line not in set(train))]))
    # The embedded world's frozen stage made those rows; they are now what it is to have.
    subprocess.run([sys.executable, "-m", "dvc", "commit", "--quiet", "--force", "world"], cwd=folder, check=True)
    identity = ["-c", "user.name=faults", "-c", "user.email=faults@localhost"]
    subprocess.run(["git", *identity, "commit", "-qam", "small"], cwd=folder, check=True)


def start(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "RAFT_"))}
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.pipeline"],
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
    """`flows.pipeline`, `dvc`, `flows.rewrite`, ..."""
    words = process.cmdline()
    return words[words.index("-m") + 1] if "-m" in words else Path(words[0]).name if words else "gone"


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
            for process in left:
                process.kill()
            break
        time.sleep(0.1)
    return wrong


def started(log: Path) -> Counter[str]:
    """How often each stage's command began, by what the pipeline printed."""
    return Counter(re.findall(r"^\[.*\]\s+(\S+): started, ", log.read_text(), flags=re.MULTILINE))


def finished(log: Path) -> set[str]:
    return set(re.findall(r"^\[.*\]\s+\d+/\d+ (\S+): ran in ", log.read_text(), flags=re.MULTILINE))


def digests(folder: Path) -> dict[str, str]:
    return {name: digest_path(folder / "artifacts/registry" / name) for name in COMPARED}


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


def main() -> None:
    injections = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder, first, second = (
            Path(temporary) / "project",
            Path(temporary) / "first.log",
            Path(temporary) / "second.log",
        )
        small_project(folder)
        began = time.monotonic()
        pipeline = start(folder, first)
        wrong = await_end(pipeline, folder)
        whole = time.monotonic() - began
        if pipeline.returncode or wrong or what_is_left(folder):
            sys.exit(f"undisturbed: {wrong or what_is_left(folder)}\n{first.read_text()[-3000:]}")
        expected = digests(folder)
        print(f"undisturbed: {whole:.1f} s, stages: {' '.join(started(first))}", flush=True)

        victims, repeats, faults = Counter[str](), Counter[int](), 0
        for number in range(1, injections + 1):
            clean(folder)
            began = time.monotonic()
            pipeline = start(folder, first)
            time.sleep(draw.uniform(0.0, whole))
            tree = sorted(working(folder), key=lambda process: process.pid)
            victim = draw.choice(tree) if tree else None
            at = time.monotonic() - began
            name = "nothing, it was over"
            if victim is not None:
                name = name_of(victim)
                victim.kill()
            wrong = await_end(pipeline, folder)
            pipeline = start(folder, second)
            wrong += await_end(pipeline, folder)
            if pipeline.returncode:
                wrong.append(f"the second run ended with {pipeline.returncode}: {second.read_text()[-2000:]}")
            else:
                wrong += what_is_left(folder)
                wrong += [f"other bytes: {key}" for key, value in digests(folder).items() if value != expected[key]]
            repeated = {stage for stage in started(first) if stage in started(second)}
            again = repeated & finished(first)
            if again:
                wrong.append(f"finished, and done again: {sorted(again)}")
            victims[name] += 1
            repeats[len(repeated)] += 1
            faults += bool(wrong)
            said = "; ".join(wrong) or f"again: {' '.join(sorted(repeated)) or 'nothing'}"
            print(
                f"{number:3d} killed {name} at {at:.1f} s, {time.monotonic() - began:.1f} s in all; {said}", flush=True
            )
    print(f"{injections} injections, seed {seed}: {faults} with a fault")
    print("killed: " + ", ".join(f"{name} {count}" for name, count in victims.most_common()))
    print(
        "stages begun twice: " + ", ".join(f"{count} in {times} injections" for count, times in sorted(repeats.items()))
    )
    if faults:
        sys.exit(1)


if __name__ == "__main__":
    main()
