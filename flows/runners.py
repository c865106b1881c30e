"""Where chunks of rows run: threads, processes (one per GPU), or a Dask cluster."""

import fcntl
import multiprocessing
import os
import threading
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from flows import paths
from raft_tasks.config import Chunks
from raft_tasks.errors import InputError


def task_runner(chunks: Chunks) -> TaskRunner[Any]:
    """The Prefect task runner that `resources.chunks` names. InputError where its extra is not installed."""
    if chunks.runner == "threads":
        return ThreadPoolTaskRunner(max_workers=chunks.workers)
    if chunks.runner == "processes":
        return ProcessPoolTaskRunner(
            max_workers=chunks.workers, initializer=prepare_worker, initargs=(_gpus(), paths.GPU_CLAIMS)
        )
    try:
        from prefect_dask import DaskTaskRunner
    except ModuleNotFoundError as error:
        raise InputError(
            "params.yaml: resources.chunks.runner: dask needs an extra: pip install 'raft-refinery[dask]'"
        ) from error
    if chunks.dask_address is not None:
        return DaskTaskRunner(address=chunks.dask_address)
    cluster = {"n_workers": chunks.workers, "threads_per_worker": 1, "dashboard_address": None}
    return DaskTaskRunner(cluster_kwargs=cluster)


def prepare_worker(gpus: list[str], claims: Path) -> None:
    """In a new worker process: give it a GPU of its own, as far as they go, and have it end with its parent."""
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = claim(gpus, claims)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def claim(gpus: list[str], claims: Path) -> str:
    """A GPU that no other worker of this project has, as long as this process lives; else they share."""
    claims.mkdir(parents=True, exist_ok=True)
    for gpu in gpus:
        lock = os.open(claims / gpu, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        return gpu  # the lock stays open: a claim lasts as long as its process
    return gpus[os.getpid() % len(gpus)]


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)  # killed parents do not end their pool
