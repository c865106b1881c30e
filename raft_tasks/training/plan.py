"""What a training would be, without training: sizes, tokens, steps, memory and time (the dry run)."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, quantiles
from typing import Any

import torch

from raft_tasks.config import Method
from raft_tasks.model_loading import quiet
from raft_tasks.training.conversations import Encoded
from raft_tasks.training.job import TrainingJob
from raft_tasks.training.memory import Memory, Shape, available_bytes, estimate, gigabytes, settings_that_fit
from raft_tasks.training.preparation import make_pair, prepare, training_arguments, with_target_logits
from raft_tasks.training.speed import ModelFlops
from raft_tasks.training.trainer import RaftTrainer

TRIED_STEPS = 2  # real ones, of a copy that is thrown away; the second one is warm
UTILISATION = 0.3  # of the device's peak, assumed where no step can be taken


def plan(job: TrainingJob, folder: Path) -> dict[str, Any]:
    """What `train_model` would do with this job, JSON-ready; `folder` is empty, for what the tried steps write.

    Raises:
        As `train_model`, before its first step.
    """
    method, train = job.method, job.train
    launch = train.launch.model_copy(update={"processes": 1, "strategy": "none"})
    single = replace(job, train=train.model_copy(update={"launch": launch}), output=folder, checkpoints=folder)
    network, data = prepare(single)
    arguments = training_arguments(single, len(data.rows))
    arguments.max_steps, arguments.save_strategy = TRIED_STEPS, "no"
    device = arguments.device
    steps_per_epoch = math.ceil(len(data.rows) / train.batch_size)
    data = with_target_logits(network, data, single, device)
    student, teacher = make_pair(network, single, device)
    shape = Shape.of(student, job.model.dtype)
    needed, available = estimate(shape, data.all_rows, method, train), available_bytes(device)
    fits = needed.peak <= available
    changes = [] if fits else settings_that_fit(available, shape, data.all_rows, method, train)
    result: dict[str, Any] = {
        "parameters": shape.parameters,
        "trainable": shape.trainable,
        "rows": len(data.rows),
        "epochs": train.epochs,
        "steps": steps_per_epoch * train.epochs,
        "lengths": lengths(data.rows),
        "tokens_per_epoch": tokens(data.rows, method),
        "device": str(device),
        "memory": asdict(needed) | {"peak": needed.peak, "available": available},
        "would_fit": [text for text, _ in changes],
        "measured": fits,
    }
    if fits:
        with quiet():
            seconds = try_steps(RaftTrainer(single, student, teacher, data, arguments))
        if device.type == "cuda":
            result["memory"]["measured_peak"] = torch.cuda.max_memory_allocated(device)
    else:
        flops = ModelFlops(student, device, torch.bfloat16 if train.precision == "bfloat16" else torch.float32)
        whole = sum(result["tokens_per_epoch"].values())
        epoch = flops.training(whole, whole - result["tokens_per_epoch"]["prompts"])
        seconds = 1 / flops.utilisation(UTILISATION / (epoch / steps_per_epoch), 1.0, 1)
    result["seconds_per_step"] = seconds / train.launch.processes
    result["hours"] = result["seconds_per_step"] * result["steps"] / 3600
    return result


def try_steps(trainer: RaftTrainer) -> float:
    """Seconds of the last step."""
    try:
        trainer.train()
    finally:
        trainer.interruption.watch.restore()
    return float(trainer.steps()[-1]["seconds"])


def lengths(rows: Sequence[Encoded]) -> dict[str, dict[str, float]]:
    """Tokens of prompts, answers and the teacher's prompts: mean, median, 95th percentile, longest."""
    sides = {
        "prompt": [len(row.prompt_ids) for row in rows],
        "answer": [len(row.completion_ids) for row in rows],
        "teacher's prompt": [len(row.teacher_prompt_ids) for row in rows if row.teacher_prompt_ids],
    }
    return {
        name: {
            "mean": mean(sizes),
            "median": quantiles(sizes, n=2, method="inclusive")[0],
            "p95": quantiles(sizes, n=20, method="inclusive")[-1],
            "longest": max(sizes),
        }
        for name, sizes in sides.items()
        if len(sizes) > 1
    }


def tokens(rows: Sequence[Encoded], method: Method) -> dict[str, int]:
    """Tokens of one epoch that the student learns from; of the rollouts, the most that there can be."""
    return {
        "prompts": sum(len(row.prompt_ids) for row in rows),
        "answers": sum(len(row.completion_ids) for row in rows) if method.sft else 0,
        "rollouts_at_most": method.distillation.rollout_max_new_tokens * len(rows) if method.distillation else 0,
    }


def report(result: dict[str, Any]) -> str:
    """`plan`'s result as text."""
    memory, device = result["memory"], result["device"]
    lines = [
        f"parameters        {result['parameters']:,}, of which {result['trainable']:,} are trained",
        f"rows              {result['rows']:,}, {result['epochs']} epochs, {result['steps']:,} optimiser steps",
        "tokens an epoch   " + ", ".join(f"{n.replace('_', ' ')} {v:,}" for n, v in result["tokens_per_epoch"].items()),
        *(
            f"{name:18}mean {sizes['mean']:.0f}, median {sizes['median']:.0f}, 95 % up to {sizes['p95']:.0f}, "
            f"longest {sizes['longest']:.0f} tokens"
            for name, sizes in result["lengths"].items()
        ),
        f"memory            estimated peak {gigabytes(memory['peak'])} of {gigabytes(memory['available'])} on {device}",
        *(f"  {name.replace('_', ' '):22}{gigabytes(memory[name])}" for name in Memory.__dataclass_fields__),
    ]
    if "measured_peak" in memory:
        lines.append(f"  measured peak         {gigabytes(memory['measured_peak'])}")
    if result["would_fit"]:
        lines.append("  TOO MUCH; change in params.yaml: " + "; ".join(result["would_fit"]))
    how = f"from FLOPs at {UTILISATION:.0%} of the device's measured peak"
    if result["measured"]:
        how = f"measured in {TRIED_STEPS} real steps"
    lines.append(
        f"time              {result['seconds_per_step']:.3g} s a step ({how}), {result['hours']:.2g} hours in all"
    )
    return "\n".join(lines)
