"""What every process of the project runs in: settings for the libraries, and an end together with its pipeline."""

import atexit
import gc
import os
import signal
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from flows.paths import NLTK_DATA
from flows.stage_host import PIPELINE_PID
from raft_tasks.errors import InputError, OperationalError
from raft_tasks.proxies import LOOPBACK, check_schemes, is_loopback, proxy_note, reach_directly

PREFECT_PORT = 4200  # Prefect's own default
REFUSALS = ("status 401", "status 403", "status 5")  # a server with a password, or behind a gateway: Prefect says more
SERVER_SECONDS = 120.0  # for a server to come back while a pipeline runs
HEALTHY = "true"  # what Prefect answers under /health
GIT_OF_A_HOOK = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX"),
    *("GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_QUARANTINE_PATH"),
)
IMPORTED = time.time(), time.monotonic()  # the second is of a clock that nobody sets


def process_age() -> float:
    """How old this process is, imports included."""
    import psutil

    return IMPORTED[0] - psutil.Process().create_time() + time.monotonic() - IMPORTED[1]


def prepare() -> None:
    """Set the environment of this process and its children, where the user has not; keep state inside the project."""
    # Prefect and torch are a million objects that stay. By default they are searched for garbage again and again while
    # they are imported, a fifth of the time, and twice more when the process ends: 0.3 to 1.5 s.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    for name in GIT_OF_A_HOOK:
        os.environ.pop(name, None)  # of the repository whose hook runs this: git is to find the folder's own
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
        "DVC_NO_ANALYTICS": "1",  # `dvc init` sends some before the project can say no
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, str(value))
    given = os.environ.get("PREFECT_API_URL", "")
    reach_directly(*LOOPBACK, *([urlsplit(given).hostname or ""] if is_loopback(given) else []))
    try:
        check_schemes()
    except InputError as error:
        sys.exit(f"error: {error}")
    nltk = [*filter(None, os.environ.get("NLTK_DATA", "").split(os.pathsep)), str(project / NLTK_DATA)]
    os.environ["NLTK_DATA"] = os.pathsep.join(dict.fromkeys(nltk))  # where `raft mirror` puts the splitter of ifeval
    if "PREFECT_API_URL" in os.environ:
        os.environ["PREFECT_API_URL"] = os.environ["PREFECT_API_URL"].rstrip("/")
    pipeline = os.environ.get(PIPELINE_PID)
    if pipeline and int(pipeline) != os.getpid():
        threading.Thread(target=_end_with, args=(int(pipeline),), daemon=True).start()


def _end_with(pid: int) -> None:
    """Kill this process group once process `pid` is gone, so that a killed pipeline leaves nothing running."""
    import psutil

    try:
        pipeline = psutil.Process(pid)
        while pipeline.is_running() and pipeline.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.5)
    except psutil.NoSuchProcess:
        pass  # gone already
    os.killpg(os.getpgid(0), signal.SIGKILL)


def find_server() -> str | None:
    """The API's URL of PREFECT_API_URL, else of a Prefect server on the default port of this machine; None without one.

    Raises:
        OperationalError: as `wait_for_server`, for PREFECT_API_URL.
    """
    given = os.environ.get("PREFECT_API_URL")
    if given:
        wait_for_server(given)
        return given
    url = f"http://127.0.0.1:{PREFECT_PORT}/api"
    return url if ask_server(url) == HEALTHY else None


def wait_for_server(url: str) -> None:
    """Return once Prefect answers at `url`, or refuses; within a pipeline a server that restarts is waited for.

    Prefect tries again where a server goes away, but not in a process that has not spoken to it yet.

    Raises:
        OperationalError: nothing answers, or something else.
    """
    deadline = time.monotonic() + (SERVER_SECONDS if PIPELINE_PID in os.environ else 0.0)
    answer = ask_server(url)
    if answer is None and PIPELINE_PID in os.environ:
        print(f"waiting for the Prefect server at {url}", flush=True)
    while answer is None:
        if time.monotonic() > deadline:
            raise OperationalError(
                f"PREFECT_API_URL is {url}, where nothing answers{proxy_note(url)}; start that server or unset the "
                "variable"
            )
        time.sleep(1)
        answer = ask_server(url)
    if answer != HEALTHY and not answer.startswith(REFUSALS):
        raise OperationalError(
            f"PREFECT_API_URL is {url}: got {answer!r:.60} from its /health{proxy_note(url)}, expected {HEALTHY!r} of "
            "a Prefect server; correct or unset the variable"
        )


def ask_server(url: str) -> str | None:
    """What the API at `url` says of its health, HEALTHY from Prefect; `status 503`; None where nothing answers."""
    import urllib.request  # here, as psutil: `raft stage` hands over before it needs them
    from http.client import HTTPException
    from urllib.error import HTTPError

    try:
        proxies: dict[str, str] | None = {} if is_loopback(url) else None  # NO_PROXY does not know [::1]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
        with opener.open(f"{url}/health", timeout=3) as answer:
            return str(answer.read(100).decode("utf-8", "replace"))
    except HTTPError as error:
        return f"status {error.code}"
    except (OSError, HTTPException, ValueError):
        return None
