import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from project_copies import ROOT, copy_project
from retrain_repository import GRAPH, commit_all

from flows.environment import PIPELINE_PID
from flows.server import wait_until_healthy
from raft_tasks.config import load_config


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
