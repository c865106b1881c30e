"""One process of a training that is spread over several: `accelerate launch -m raft_tasks.training.worker JOB.json`."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
from pathlib import Path

from raft_tasks.artifacts import read_json, write_json
from raft_tasks.errors import InputError, Interrupted
from raft_tasks.training.launch import ERRORS, PROGRESS_LINE, STOPPED, SUMMARY, Job


def main(path: Path) -> None:
    if stat.S_ISFIFO(os.fstat(0).st_mode):  # a pipe from `launch`, not a terminal
        threading.Thread(target=end_with_the_pipe, daemon=True).start()
    from raft_tasks.training.train import train_model

    def named(pattern: str) -> Path:
        return path.parent / pattern.replace("*", os.environ.get("RANK", "0"))

    job = Job.model_validate(read_json(path), strict=False)
    try:
        summary = train_model(
            pairs=job.pairs,
            model=job.model,
            method=job.method,
            train=job.train,
            template_text=job.template_text,
            seed=job.seed,
            output=job.output,
            checkpoints=job.checkpoints,
            trackers=job.trackers,
            tracking=job.tracking,
            progress=lambda done, total, shown: print(f"{PROGRESS_LINE}{done} {total} {shown}", flush=True),
        )
    except InputError as error:
        write_json(named(ERRORS), {"message": str(error)})
        raise
    except Interrupted as stop:
        write_json(named(STOPPED), {"message": str(stop)})
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
