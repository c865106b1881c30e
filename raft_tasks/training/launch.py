"""A training over several processes: started by `accelerate launch`, watched, and ended with the process that asked.

The job lies in a folder: `job.json` (all arguments of `train_model`), then `summary.json`, or why there is none.
The workers end themselves when their standard input closes, which it does when the asking process is gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from raft_tasks.artifacts import read_json, write_json
from raft_tasks.config import Launch, Method, Model, Train
from raft_tasks.errors import InputError
from raft_tasks.schemas import TrainingPair
from raft_tasks.training.interruption import SignalWatch, TrainingInterrupted

JOB, SUMMARY, ERRORS, STOPPED = "job.json", "summary.json", "error-*.json", "stopped-*.json"  # *: a process's number
PROGRESS_LINE = "raft training: "  # <steps done> <steps in all> <what else there is to say>, from the first process
TAIL_LINES = 40  # of the workers' output, repeated when they fail


class Job(BaseModel):
    """The arguments of `train_model`."""

    pairs: list[TrainingPair]
    model: Model
    method: Method
    train: Train
    template_text: str
    seed: int
    output: Path
    checkpoints: Path
    trackers: list[str]
    tracking: Path
    anchors: Path | None = None


class WorkersFailed(Exception):
    """The processes of a training ended with an error; the message holds the end of their output."""


def train_in_processes(
    job: Job, folder: Path, progress: Callable[[int, int, str], None] | None = None
) -> dict[str, Any]:
    """`train_model` over `job.train.launch.processes` processes of this machine; returns its summary.

    Args:
        job: what to train.
        folder: for the job's files.
        progress: called with (steps done, steps in all, what else there is to say).

    Raises:
        InputError: what one of the workers raised; or if there are not as many GPUs.
        TrainingInterrupted: after SIGTERM or SIGINT, when a checkpoint is complete.
        WorkersFailed: anything else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in (folder / SUMMARY, *folder.glob(ERRORS), *folder.glob(STOPPED)):
        left_over.unlink(missing_ok=True)
    write_json(folder / JOB, job.model_dump(mode="json"))
    check_devices(job.train.launch)  # after it: the job file is what several machines are started with
    workers = subprocess.Popen(
        launch_command(job.train.launch, folder / JOB),
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    assert workers.stdin is not None and workers.stdout is not None  # noqa: PT018
    watch = SignalWatch(partial(print, file=workers.stdin, flush=True))  # a line: one worker reads it, all will stop
    watch.start()
    try:
        for line in workers.stdout:
            if line.startswith(PROGRESS_LINE):
                done, total, shown = line.removeprefix(PROGRESS_LINE).rstrip().split(maxsplit=2)
                if progress is not None:
                    progress(int(done), int(total), shown)
            else:
                tail.append(line.rstrip())
        code = workers.wait()
    finally:
        watch.restore()
        workers.stdin.close()  # the workers have sessions of their own and see this
        if workers.poll() is None:
            os.killpg(workers.pid, signal.SIGKILL)
            workers.wait()
        workers.stdout.close()
    for said in sorted(folder.glob(ERRORS)):
        raise InputError(read_json(said)["message"])  # the others say the same
    for said in sorted(folder.glob(STOPPED)):
        raise TrainingInterrupted(read_json(said)["message"])
    if code or not (folder / SUMMARY).exists():
        raise WorkersFailed(f"the training's processes ended with code {code}:\n" + "\n".join(tail))
    summary: dict[str, Any] = read_json(folder / SUMMARY)
    return summary


def check_devices(launch: Launch) -> None:
    devices = torch.cuda.device_count()
    if 0 < devices < launch.processes:
        raise InputError(
            f"train.launch.processes is {launch.processes}, this machine has {devices} GPU(s); expected at most one "
            "process per GPU. For several machines see docs/guides/launching.md"
        )


def launch_command(launch: Launch, job: Path) -> list[str]:
    """`--multi_gpu` is accelerate's name for torchrun; the workers take the CPU where there is no GPU."""
    return [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1",
        "--num_processes", str(launch.processes), "--main_process_port", "0", "--mixed_precision", "no",
        "--dynamo_backend", "no", "-m", "raft_tasks.training.worker", str(job),
    ]  # fmt: skip
