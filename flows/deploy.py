"""Record the deployments of prefect.yaml on a Prefect server, or work for them.

    python -m flows.deploy            makes the process work pool `raft` and records the deployments (`make deploy`)
    python -m flows.deploy worker     executes their runs until it is interrupted (`make worker`)

The server is PREFECT_API_URL, or the one of `make ui` on this machine.
"""

import os
import subprocess
import sys
from pathlib import Path

from flows.environment import answering_server

POOL = "raft"


def server() -> str:
    """The API's URL; ends this process with what to do where none answers."""
    url = os.environ.get("PREFECT_API_URL") or answering_server()
    if url is None:
        sys.exit("error: no Prefect server answers on this machine; start one with `make ui`, or set PREFECT_API_URL")
    return url


def prefect(*arguments: str) -> None:
    """Run Prefect's own command; this process ends with it where it fails."""
    environment = {
        **os.environ,
        "PREFECT_API_URL": server(),
        "RAFT_PROJECT": str(Path.cwd()),
        "PYTHONPATH": str(Path.cwd()),  # a run imports `flows` from this folder, whatever the worker's is
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
    }
    done = subprocess.run([sys.executable, "-m", "prefect", "--no-prompt", *arguments], env=environment)
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    if sys.argv[1:] not in ([], ["worker"]):
        sys.exit(f"error: deploy takes `worker` or nothing, got {sys.argv[1:]}")
    if sys.argv[1:]:
        prefect("worker", "start", "--pool", POOL, "--type", "process", "--limit", "1")
        return
    prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
    prefect("deploy", "--all", "--prefect-file", "prefect.yaml")


if __name__ == "__main__":
    main()
