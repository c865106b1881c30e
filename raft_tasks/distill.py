"""Task of the stage `distill`: one training run, resumable from checkpoints that are keyed by what determines it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from raft_tasks import config
from raft_tasks.artifacts import atomic_folder, digest, digest_path
from raft_tasks.schemas import TrainingPair


@task(cache_policy=NO_CACHE)
def train(
    pairs: list[TrainingPair],
    model: config.Model,
    identity: dict[str, str | None],
    method: config.Method,
    settings: config.Train,
    template: str,
    seed: int,
    output: Path,
    checkpoints: Path,
    trackers: list[str],
    tracking: Path,
    anchors: Path | None,
    progress: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """Train one model into `output` (model/, steps.csv); returns the summary.

    A run that was killed continues from its last checkpoint under `checkpoints`/<digest of what determines the result>.
    """
    from raft_tasks import chat, training
    from raft_tasks.training.launch import Job, train_in_processes
    from raft_tasks.training.train import train_model

    method = method.model_copy(update={"after": None})  # what is taken back later does not change the training
    sources = [Path(chat.__file__), *Path(training.__path__[0]).glob("*.py")]
    code = {path.name: path.read_text() for path in sources}
    held_to = None if anchors is None else digest_path(anchors)
    key = digest([pairs, identity, method, settings, template, seed, code, held_to])
    folder = checkpoints / key[:16]
    with atomic_folder(output) as partial:
        job = Job(
            pairs=pairs,
            model=model,
            method=method,
            train=settings,
            template_text=template,
            seed=seed,
            output=partial,
            checkpoints=folder,
            trackers=trackers,
            tracking=tracking,
            anchors=anchors,
        )
        if settings.launch.processes == 1:
            summary = train_model(**dict(job), progress=progress)
            assert summary is not None  # this is the only process
        else:
            summary = train_in_processes(job, folder / "job", progress)
    shutil.rmtree(folder, ignore_errors=True)
    return summary
