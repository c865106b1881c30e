"""A Prefect server for this project: one that answers already, or one of our own for as long as a command runs.

`raft ui` serves in the foreground, on 127.0.0.1 only.
"""

import atexit
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from flows.environment import HEALTHY, PIPELINE_PID, ask_server, find_server
from raft_tasks.errors import OperationalError

START_SECONDS = 240


@contextmanager
def prefect_at(url: str | None) -> Iterator[None]:
    """Have Prefect use the API at `url` in every thread of this process; None leaves the choice to Prefect.

    Prefect's `temporary_settings` reach the calling thread alone. Its thread that passes on what worker processes send
    would start a temporary server of its own, where the run is not known.
    """
    import prefect.context
    from prefect.settings import PREFECT_API_URL, temporary_settings

    everywhere = prefect.context.GLOBAL_SETTINGS_CONTEXT
    with temporary_settings({PREFECT_API_URL: url} if url else {}):
        prefect.context.GLOBAL_SETTINGS_CONTEXT = prefect.context.get_settings_context()
        try:
            yield
        finally:
            prefect.context.GLOBAL_SETTINGS_CONTEXT = everywhere


def free_port() -> int:
    """Never the default port: other runs would find our server there, and lose it when we end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """An API: of PREFECT_API_URL, of a server on the default port, or of one of our own that ends with this process.

    Attributes:
        url: where it is, or will be once `wait` returns.

    Raises:
        OperationalError: if the server named by PREFECT_API_URL does not answer.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        if running := find_server():
            self.url = running
            return
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/api"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "ui", "--port", str(port)],
            env={**os.environ, PIPELINE_PID: str(os.getpid())},
            start_new_session=True,
        )
        # Not at the end of the flow: when the interpreter ends, Prefect first sends the events still in its queue.
        atexit.register(_stop, self.process)
        print("starting a Prefect server for this run (a folder's first takes longest)", flush=True)

    def wait(self) -> str:
        """The URL, once the API answers. OperationalError where our own server does not start."""
        if self.process:
            wait_until_healthy(self.url, self.process)
        return self.url


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(timeout=15)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def wait_until_healthy(url: str, server: subprocess.Popen[bytes]) -> None:
    """Return once the server at `url` answers; OperationalError if it ended or took too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise OperationalError(f"the Prefect server ended with code {server.returncode}; {url} never answered")
        if ask_server(url) == HEALTHY:
            return
        time.sleep(0.1)
    raise OperationalError(f"the Prefect server did not answer on {url} within {START_SECONDS} s")


def serve(port: int) -> None:
    """Serve API and pages on 127.0.0.1:`port` until interrupted. OperationalError where something else has the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn: a server that has just ended is none
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            there = "a Prefect server" if ask_server(f"http://127.0.0.1:{port}/api") == HEALTHY else "another program"
            raise OperationalError(
                f"port {port} of 127.0.0.1 is taken by {there} ({error.strerror}); stop it, or `raft ui --port PORT`"
            ) from error
    if PIPELINE_PID not in os.environ:
        print(f"Prefect's page: http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
    os.environ["PREFECT_SERVER_API_HOST"] = "127.0.0.1"
    os.environ["PREFECT_SERVER_API_PORT"] = str(port)
    os.environ["PREFECT_UI_API_URL"] = f"http://127.0.0.1:{port}/api"
    os.environ["PREFECT__SERVER_FINAL"] = "1"
    import uvicorn

    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=port,
        log_level="error",
        timeout_graceful_shutdown=3,
    )
