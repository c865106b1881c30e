"""What every process of the project runs in: settings for the libraries, and an end together with its pipeline."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import threading
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

import psutil

PIPELINE_PID = "RAFT_PIPELINE_PID"  # set by flows.pipeline for the processes that it starts
PREFECT_PORT = 4200  # Prefect's own default
SERVER_SECONDS = 120.0  # for a server to come back
# When this process began, on the clock that nobody sets.
STARTED = time.monotonic() - (time.time() - psutil.Process().create_time())


def process_age() -> float:
    """How old this process is, imports included."""
    return time.monotonic() - STARTED


def prepare() -> None:
    """Set the environment of this process and its children, where the user has not; keep state inside the project."""
    # Prefect and torch are a million objects that stay. By default they are searched for garbage again and again while
    # they are imported, a fifth of the time, and twice more when the process ends: 0.3 to 1.5 s.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    project = Path.cwd()
    defaults = {
        "PREFECT_HOME": project / ".prefect",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the run's page has all
        # By default a restarted server forgets who holds a deployment's slot, and the slot is never free again.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "60",
        "HF_DATASETS_CACHE": project / ".cache" / "datasets",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, str(value))
    pipeline = os.environ.get(PIPELINE_PID)
    if pipeline and int(pipeline) != os.getpid():
        threading.Thread(target=_end_with, args=(int(pipeline),), daemon=True).start()


def _end_with(pid: int) -> None:
    """Kill this process group once process `pid` is gone, so that a killed pipeline leaves nothing running."""
    try:
        pipeline = psutil.Process(pid)
        while pipeline.is_running() and pipeline.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.5)
    except psutil.NoSuchProcess:
        pass  # gone already
    os.killpg(os.getpgid(0), signal.SIGKILL)


def find_server() -> str | None:
    """The API's URL of a Prefect server that answers on the default port of this machine, or None."""
    url = f"http://127.0.0.1:{PREFECT_PORT}/api"
    return url if _answer(url) == 200 else None


def wait_for_server(url: str) -> None:
    """Return once the API at `url` answers whatever, or after SERVER_SECONDS: its first caller will say what is wrong.

    Prefect tries again where a server goes away, but not in a process that has not spoken to it yet.
    """
    deadline = time.monotonic() + SERVER_SECONDS
    if _answer(url) is not None:
        return
    print(f"waiting for the Prefect server at {url}", flush=True)
    while _answer(url) is None and time.monotonic() < deadline:
        time.sleep(1)


def _answer(url: str) -> int | None:
    """The status with which the API at `url` says how it is; None where nothing, or something else, answers."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code
    except (OSError, HTTPException):
        return None
