"""Kill -9 at the worst moments: the next run finishes, repeats little, and ends with the same artifacts."""

import csv
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest
from project_copies import copy_project, project_processes

from raft_tasks.artifacts import digest_path

SMALL = {
    "run": {"domains": ["archive"], "methods": ["raft"], "seeds": [0]},
    "rewrite": {"chunk_rows": 16},
    "train": {"epochs": 1, "checkpoint_steps": 4},
}
TARGET = "distill@archive-raft-0"
ROWS = 144  # to learn from: nine chunks, and steps enough for four checkpoints
PATIENCE = 600


def start(folder, environment, *command, module="flows.cli"):
    return subprocess.Popen(
        [sys.executable, "-m", module, *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, what):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {PATIENCE} s")


def finish(process):
    output, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, output


def stored_calls(folder):
    """When each call in the store was made."""
    path = folder / ".cache" / "responses.sqlite"
    if not path.exists():
        return {}
    with closing(sqlite3.connect(path, timeout=60)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'calls'").fetchall()
        return dict(connection.execute("SELECT key, made FROM calls")) if tables else {}


def data(folder):
    artifacts = folder / "artifacts" / "archive"
    names = ("examples", "rewritten.jsonl", "filtered.jsonl", "fused.jsonl", "training", "runs/raft-0/model")
    timing = {"tokens_per_second", "seconds", "model_flops_utilisation"}
    with (artifacts / "runs" / "raft-0" / "steps.csv").open() as rows:
        steps = [
            {k: v for k, v in row.items() if k not in timing and not k.endswith("_share")}
            for row in csv.DictReader(rows)
        ]
    return {name: digest_path(artifacts / name) for name in names}, steps


def small_project(folder):
    """A project that ends with the trained model: for a kill, benchmark and report are no different."""
    copy_project(folder, SMALL)
    pairs = folder / "data/archive/pairs.jsonl"
    lines = pairs.read_text().splitlines(keepends=True)
    learned = [line for line in lines if json.loads(line)["split"] == "train"]
    pairs.write_text("".join([line for line in lines if line not in learned[ROWS:]]))
    graph = (folder / "dvc.yaml").read_text()
    (folder / "dvc.yaml").write_text(graph[: graph.index("  benchmark:")])
    return folder


@pytest.fixture(scope="session")
def environment(clean_environment, prefect_api):
    """With a Prefect server that runs already: to start one for each run takes longest."""
    return {**clean_environment, "PREFECT_API_URL": prefect_api}


@pytest.fixture(scope="module")
def calm(tmp_path_factory, environment):
    """A project whose pipeline ran undisturbed."""
    folder = small_project(tmp_path_factory.mktemp("calm"))
    code, output = finish(start(folder, environment, "run"))
    assert code == 0, output
    return folder


@pytest.mark.slow
def test_push_and_pull_bring_every_artifact_back(calm, tmp_path, environment):
    before = data(calm)
    for command in (["remote", "add", "-d", "-f", "local", str(tmp_path / "remote")], ["push"]):
        code, output = finish(start(calm, environment, *command, module="dvc"))
        assert code == 0, output
    shutil.rmtree(calm / "artifacts")
    shutil.rmtree(calm / ".dvc" / "cache")
    code, output = finish(start(calm, environment, "pull", module="dvc"))
    assert code == 0, output
    assert data(calm) == before


@pytest.mark.slow
def test_a_changed_threshold_concerns_what_depends_on_it(calm, environment):
    show = "from flows.run import *; print(*stale_stages(*stage_graph(load_config())))"
    ask = [sys.executable, "-c", show]
    config = (calm / "params.yaml").read_text()
    try:
        (calm / "params.yaml").write_text(config + "semantic_filter: {tau: 0.7}\n")
        stale = subprocess.run(ask, cwd=calm, env=environment, capture_output=True, text=True, check=True)
    finally:
        (calm / "params.yaml").write_text(config)
    assert stale.stdout.split() == [
        "resolve",
        "semantic_filter@archive",
        "fuse@archive",
        TARGET,
    ]


@pytest.mark.slow
def test_killed_rewrite_distill_and_parent_flow(calm, tmp_path, environment, clean_environment):
    stormy = small_project(tmp_path / "stormy")

    # 1. the stage `rewrite`, after two of its chunks are answered
    pipeline = start(stormy, environment, "run")
    wait_for(lambda: len(stored_calls(stormy)) >= 32, "a second stored chunk")
    for process in project_processes(stormy, "stage", "rewrite"):
        process.send_signal(signal.SIGKILL)
    before = stored_calls(stormy)
    code, output = finish(pipeline)
    assert code != 0
    assert "rewrite@archive" in output
    assert not (stormy / "artifacts" / "archive" / "rewritten.jsonl").exists()

    # 2. the parent flow, once `distill` has a checkpoint; everything that it started, a server too, must end with it
    pipeline = start(stormy, clean_environment, "run")
    checkpoints = stormy / ".cache" / "checkpoints"
    wait_for(lambda: list(checkpoints.glob("*/*/complete*")), "a complete checkpoint")
    assert stored_calls(stormy).items() >= before.items()  # no stored call was made again
    os.kill(pipeline.pid, signal.SIGKILL)
    pipeline.communicate()
    wait_for(lambda: not project_processes(stormy), "the end of the orphans")

    # 3. the stage `distill` itself, later on
    seen = set(checkpoints.glob("*/*"))
    pipeline = start(stormy, environment, "run")
    wait_for(lambda: set(checkpoints.glob("*/*")) - seen or pipeline.poll() is not None, "another checkpoint")
    for process in project_processes(stormy, "stage", "distill"):
        process.send_signal(signal.SIGKILL)
    assert finish(pipeline)[0] != 0

    code, output = finish(start(stormy, environment, "run"))
    assert code == 0, output
    assert data(stormy) == data(calm)
    assert not list(checkpoints.glob("*"))  # a finished training needs none
    leftovers = [path for path in stormy.rglob("*.partial") if ".prefect" not in path.parts]
    assert leftovers == []
    code, output = finish(start(stormy, environment, "run"))
    assert (code, "Nothing to do" in output) == (0, True)
