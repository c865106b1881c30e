"""A training over several processes: started by `accelerate launch`, watched, and ended with the calling process.

The job's folder holds `job.json`, then `summary.json` or the reason why there is none. The workers end themselves when
their standard input closes, which it does when the calling process is gone.
"""

import os
import signal
import subprocess
import sys
from collections import deque
from functools import partial
from pathlib import Path

import torch

from raft_tasks.artifacts import read_json
from raft_tasks.config import Launch
from raft_tasks.errors import InputError, Interrupted
from raft_tasks.training.interruption import SignalWatch
from raft_tasks.training.job import TrainingJob
from raft_tasks.training.step_metrics import Progress
from raft_tasks.training.summary import TrainingSummary

JOB, SUMMARY, ERRORS, STOPPED = "job.json", "summary.json", "error-*.json", "stopped-*.json"  # *: a process's number
PROGRESS_LINE = "raft training: "  # <steps done> <steps in all> <status>, from the first process
TAIL_LINES = 40  # of the workers' output, repeated when they fail


def train_in_processes(job: TrainingJob, folder: Path, progress: Progress | None = None) -> TrainingSummary:
    """`train_model` over `job.train.launch.processes` processes of this machine; `folder` gets the job's files.

    Raises:
        InputError: what one of the workers raised; or if there are not as many GPUs.
        Interrupted: after SIGTERM or SIGINT, when a checkpoint is complete.
        RuntimeError: anything else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / SUMMARY, *folder.glob(ERRORS), *folder.glob(STOPPED)):
        old.unlink(missing_ok=True)
    job.save(folder / JOB)
    check_devices(job.train.launch)  # after it: the job file is what several machines are started with
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    code = run_workers(launch_command(job.train.launch, folder / JOB), tail, progress)
    for error in sorted(folder.glob(ERRORS)):
        raise InputError(read_json(error)["message"])  # the others say the same
    for stop in sorted(folder.glob(STOPPED)):
        raise Interrupted(read_json(stop)["message"])
    if code or not (folder / SUMMARY).exists():
        raise RuntimeError(f"the training's processes ended with code {code}:\n" + "\n".join(tail))
    return read_json(folder / SUMMARY)


def run_workers(command: list[str], tail: deque[str], progress: Progress | None) -> int:
    """Run the workers to their end; returns their exit code, `tail` gets their output."""
    workers = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert workers.stdin is not None and workers.stdout is not None  # noqa: PT018
    watch = SignalWatch(partial(print, file=workers.stdin, flush=True))  # a line: one worker reads it, all will stop
    watch.start()
    try:
        for line in workers.stdout:
            if line.startswith(PROGRESS_LINE):
                done, total, status = line.removeprefix(PROGRESS_LINE).rstrip().split(maxsplit=2)
                if progress is not None:
                    progress(int(done), int(total), status)
            else:
                tail.append(line.rstrip())
        return workers.wait()
    finally:
        watch.restore()
        workers.stdin.close()  # the workers have sessions of their own and see this
        if workers.poll() is None:
            os.killpg(workers.pid, signal.SIGKILL)
            workers.wait()
        workers.stdout.close()


def check_devices(launch: Launch) -> None:
    devices = torch.cuda.device_count()
    if 0 < devices < launch.processes:
        raise InputError(
            f"train.launch.processes is {launch.processes}, this machine has {devices} GPU(s); expected at most one "
            "process per GPU. For several machines see docs/guides/training.md"
        )


def launch_command(launch: Launch, job: Path) -> list[str]:
    """`--multi_gpu` is accelerate's name for torchrun; the workers take the CPU where there is no GPU."""
    return [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1",
        "--num_processes", str(launch.processes), "--main_process_port", "0", "--mixed_precision", "no",
        "--dynamo_backend", "no", "-m", "raft_tasks.training.worker", str(job),
    ]  # fmt: skip
