import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from project_copies import ROOT, copy_project
from retrain_repository import GRAPH, commit_all

from flows.cli import main
from flows.environment import PIPELINE_PID
from flows.server import free_port, prefect_at, wait_until_healthy
from raft_tasks.config import load_config

left_running = []  # Popen would fail a test by saying so
# Their loops cost a tenth of a core, and no test looks at what they do.
IDLE_SERVICES = ("CANCELLATION_CLEANUP", "FOREMAN", "LATE_RUNS", "PAUSE_EXPIRATIONS", "TRIGGERS")


@pytest.fixture(scope="session")
def clean_environment():
    """The environment of a user's shell: nothing that an earlier test or flow set."""
    prefixes = ("PREFECT_", "RAFT_", "HF_", "PYTEST_")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


def start_server(home, owner):
    """A Prefect server that ends with the process `owner`; returns its API's URL and its process."""
    port = free_port()
    disabled = {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in IDLE_SERVICES}
    server = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "ui", "--port", str(port)],
        cwd=ROOT,
        env={**os.environ, **disabled, "PREFECT_HOME": str(home), PIPELINE_PID: str(owner)},
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}/api"
    wait_until_healthy(url, server)
    return url, server


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory, worker_id):
    """The URL of a Prefect server for the tests that start stages: one for all, xdist's processes too."""
    if worker_id == "master":
        url, server = start_server(tmp_path_factory.mktemp("prefect"), os.getpid())
        yield url
        server.terminate()
        server.wait(timeout=30)
        return
    shared = tmp_path_factory.getbasetemp().parent
    with FileLock(shared / "prefect.lock"):
        known = shared / "prefect.url"
        if not known.exists():
            (shared / "prefect").mkdir()
            url, server = start_server(shared / "prefect", os.getppid())
            left_running.append(server)
            known.write_text(url)
    yield known.read_text()


@pytest.fixture
def raft(prefect_api, monkeypatch, capfd):
    """Runs `raft ...` in a folder as subprocess.run does, but in this process: to start another takes seconds."""

    def run(folder, *arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setenv("PREFECT_API_URL", prefect_api)
        monkeypatch.setattr(sys, "argv", ["raft", *arguments])
        capfd.readouterr()
        with prefect_at(prefect_api), pytest.raises(SystemExit) as end:
            main()
        code, message = (1, f"{end.value.code}\n") if isinstance(end.value.code, str) else (end.value.code or 0, "")
        shown = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, code, shown.out, shown.err + message)

    return run


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A repository with a small graph, whose stages run one after another: a second DVC process costs more."""
    changes = {"retrain": {"retry_seconds": [0.0, 0.0]}, "resources": {"processes": 1}}
    folder = copy_project(tmp_path_factory.mktemp("template"), changes)
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
