import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from retrain_repository import GRAPH, commit_all

from flows.environment import PIPELINE_PID
from flows.server import wait_until_healthy
from raft_tasks.config import load_config

ROOT = Path(__file__).resolve().parents[2]


def copy_project(folder, changes):
    """A copy of the working tree's files (tracked or new, not ignored) in `folder`, with its params changed."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    config = yaml.safe_load((folder / "params.yaml").read_text())
    for section, values in changes.items():
        config.setdefault(section, {}).update(values)
    (folder / "params.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def project_processes(folder, *words):
    """Running processes with `folder` as working directory and all `words` in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == folder and all(word in " ".join(process.cmdline()) for word in words):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            continue
    return found


@pytest.fixture(scope="session")
def clean_environment():
    """The environment of a user's shell: nothing that an earlier test or flow set."""
    prefixes = ("PREFECT_", "RAFT_", "HF_", "PYTEST_")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory):
    """The URL of a Prefect server for the tests that start stages: one for all, so that each need not start its own."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PREFECT_HOME": str(home), PIPELINE_PID: str(os.getpid())}
    server = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "ui", "--port", str(port)],
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}/api"
    wait_until_healthy(url, server)
    yield url
    server.terminate()
    server.wait(timeout=30)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A repository with a small graph."""
    folder = copy_project(tmp_path_factory.mktemp("template"), {"retrain": {"retry_seconds": [0.0, 0.0]}})
    for heavy in ("benchmarks", "docs", "tests", "worlds"):
        shutil.rmtree(folder / heavy)
    (folder / "dvc.yaml").write_text(GRAPH)
    commit_all(folder)
    return folder


@pytest.fixture
def repository(template, tmp_path):
    """Someone's workspace."""
    return Path(shutil.copytree(template, tmp_path / "repository"))


@pytest.fixture
def settings(repository):
    return load_config(repository / "params.yaml").retrain
