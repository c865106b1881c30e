"""Task of the stage `distill`: one training run, resumable from checkpoints that are keyed by what determines it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from prefect import task
from prefect.cache_policies import NO_CACHE

from raft_tasks.artifacts import atomic_folder, digest, digest_path, read_rows, write_rows
from raft_tasks.code_digest import code_digest
from raft_tasks.config import resolved
from raft_tasks.schemas import TrainingPair

if TYPE_CHECKING:
    from raft_tasks.training.job import TrainingJob
    from raft_tasks.training.step_metrics import Progress
    from raft_tasks.training.summary import TrainingSummary


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, which a repository and its retrain checkout share; wait, and say so, if it is held."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = Path(f"{path}.lock")
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"another process is making {path}; waiting for it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # still held: FileLock takes no lock whose file is gone
        lock.release()


def with_mixed_targets(job: TrainingJob, identity: dict[str, str | None], progress: Progress) -> TrainingJob:
    """The job with the targets that the method's `mixing` makes; they are kept beside the checkpoints."""
    from raft_tasks.generation.mixing import mix_answers
    from raft_tasks.training.conversations import teacher_message

    settings = job.method.mixing
    if settings is None:
        return job
    code = code_digest("raft_tasks.generation.mixing")
    key = digest([job.pairs, identity, settings, resolved(job.model), job.template_text, job.seed, code])
    file = job.checkpoints / f"targets-{key[:16]}.jsonl"
    with exclusive(file):
        if not file.exists():
            guide = teacher_message(job.template_text)
            write_rows(file, mix_answers(job.pairs, job.model, settings, guide, job.seed, progress))
    return replace(job, pairs=read_rows(file, TrainingPair), mixed=True)


def run_training(job: TrainingJob, progress: Progress) -> TrainingSummary:
    """In this process, or in as many as `train.launch` says."""
    from raft_tasks.training.launch import train_in_processes
    from raft_tasks.training.train import train_model

    if job.train.launch.processes > 1:
        return train_in_processes(job, job.checkpoints / "job", progress)
    summary = train_model(job, progress)
    assert summary is not None  # this is the only process
    return summary


@task(cache_policy=NO_CACHE)  # its files are DVC's; what an interrupted training has done is in its checkpoints
def train(job: TrainingJob, identity: dict[str, str | None], progress: Progress, drawn: Progress) -> TrainingSummary:
    """Train one model into `job.output` (model/, steps.csv, curve.csv); returns the summary.

    A run that was killed continues from its last checkpoint under `job.checkpoints`/<digest of what determines the
    result, and of `job.output`>; a run of the same training waits for the first. `identity` is the base model's.
    `progress` hears of the training's steps, `drawn` of `mixing`'s answers.
    """
    from raft_tasks.training.injection import inject

    job = replace(job, method=job.method.model_copy(update={"merge": None}))  # merging does not change the training
    asked = len(job.pairs)
    job = with_mixed_targets(job, identity, drawn)
    left_out = asked - len(job.pairs)
    if left_out:
        print(f"mixing left out {left_out} of {asked} rows: no drawn answer said what their reference says", flush=True)
    anchors = None if job.anchors is None else digest_path(job.anchors)
    parts = [job.pairs, identity, job.method, job.train, job.template_text, job.seed, code_digest(__name__), anchors]
    parts += [job.documents] if job.documents else []
    parts += [str(job.output)]  # methods that differ in `merge` alone train side by side
    key = digest([*parts, *job.input_digests])
    folder = job.checkpoints / key[:16]
    run = partial(run_training, progress=progress)
    with exclusive(folder):
        job = inject(replace(job, checkpoints=folder), run)
        with atomic_folder(job.output) as unfinished:
            summary = run(replace(job, output=unfinished))
        shutil.rmtree(folder, ignore_errors=True)
    summary["rows_left_out"] = left_out
    return summary
