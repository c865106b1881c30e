"""Injection: before a method learns its answers, the student learns to write the domain's documents.

    L_inject = mean over the step's document tokens of -log p(d_t | u, d_<t)

u is a constant instruction, d a window of a document: of the three objectives of arXiv:2608.20281 (inject, align,
recover) the reconstruction behind a reading instruction. It is a training of its own in the one loop, by plain
cross-entropy, with the method's adapter; the method's own training starts with its weights. Teacher and anchors are
still those of the base there.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from raft_tasks.adapter_folder import WEIGHTS, check_whole
from raft_tasks.artifacts import atomic_folder, read_json, write_json
from raft_tasks.config import Method
from raft_tasks.errors import InputError
from raft_tasks.model_loading import load_model
from raft_tasks.training.adapters import STUDENT
from raft_tasks.training.job import TrainingJob
from raft_tasks.training.summary import InjectionSummary, TrainingSummary

FOLDER, SUMMARY = "injected", "summary.json"  # beside the checkpoints; in it also model/, steps.csv


def injection_job(job: TrainingJob, output: Path) -> TrainingJob:
    """The training that the method's injection is.

    Raises:
        InputError: the method has none, or there are no documents.
    """
    injection, train = job.method.injection, job.train
    if injection is None or not job.documents:
        raise InputError(
            f"got {len(job.documents)} document(s) with injection {injection!r}; expected some exactly where the "
            "method injects: put them into documents/<domain>"
        )
    most = min(injection.max_length, train.max_length)
    # what is trained is float32, and stays so between the two trainings
    changes: dict[str, Any] = {"thinking": "off"} | ({} if job.method.lora else {"dtype": "float32"})
    return replace(
        job,
        pairs=job.documents,
        documents=[],
        mixed=False,
        model=job.model.model_copy(update=changes),
        method=Method(lora=job.method.lora, learning_rate_scale=injection.learning_rate_scale),
        train=train.model_copy(update={"epochs": injection.epochs, "max_length": most, "curve": None}),
        output=output,
        checkpoints=job.checkpoints / "injection",
        anchors=None,
        curve=None,
        trackers=(),
    )


def inject(job: TrainingJob, train: Callable[[TrainingJob], TrainingSummary | None]) -> TrainingJob:
    """The job with injected weights, where its method injects; they are made once, by `train`, beside the checkpoints.

    Raises:
        InputError: there are documents and no injection, or the other way round.
    """
    if job.method.injection is None and not job.documents:
        return job
    folder = job.checkpoints / FOLDER
    if not folder.exists():
        with atomic_folder(folder) as partial:
            summary = train(injection_job(job, partial))
            if summary is not None:
                write_json(partial / SUMMARY, summary)
    return replace(job, injected=folder)


def load_injected(student: Any, job: TrainingJob) -> None:
    """Give the student the weights that the injection ended with."""
    assert job.injected is not None  # the caller has checked
    folder = job.injected / "model"
    if job.method.lora is None:
        model = job.model.model_copy(update={"path": str(folder), "revision": None})
        student.load_state_dict(load_model(model, torch.float32)[0].state_dict())
        return
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    check_whole(student, STUDENT, folder, "injection")
    set_peft_model_state_dict(student, load_file(folder / WEIGHTS), STUDENT)


def injection_summary(folder: Path) -> InjectionSummary:
    """Of the injection in `folder`."""
    summary = read_json(folder / SUMMARY)
    return {
        "rows": summary["rows"],
        "steps": summary["steps"],
        "seconds": summary["seconds"],
        "tokens_trained": summary["answer_tokens_trained"],
        "nll": summary["final"]["nll"],
    }
