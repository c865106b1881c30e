"""One process of a training that is spread over several: `accelerate launch -m raft_tasks.training.worker JOB.json`."""

import os
import signal
import stat
import sys
import threading
from pathlib import Path

from raft_tasks.artifacts import write_json
from raft_tasks.errors import InputError, Interrupted
from raft_tasks.training.job import TrainingJob
from raft_tasks.training.launch import ERRORS, PROGRESS_LINE, STOPPED, SUMMARY


def main(path: Path) -> None:
    if stat.S_ISFIFO(os.fstat(0).st_mode):  # a pipe from `launch`, not a terminal
        threading.Thread(target=end_with_the_pipe, daemon=True).start()
    from raft_tasks.training.train import train_model

    def note(pattern: str, message: str) -> None:
        write_json(path.parent / pattern.replace("*", os.environ.get("RANK", "0")), {"message": message})

    def progress(done: int, total: int, status: str) -> None:
        print(f"{PROGRESS_LINE}{done} {total} {status}", flush=True)

    try:
        summary = train_model(TrainingJob.load(path), progress)
    except InputError as error:
        note(ERRORS, str(error))
        raise
    except Interrupted as stop:
        note(STOPPED, str(stop))
        return
    if summary is not None:
        write_json(path.parent / SUMMARY, summary)


def end_with_the_pipe() -> None:
    """A line through the standard input stops the training after its step; its end kills this process."""
    while os.read(0, 1024):
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
