"""What a training would be, without training: sizes, tokens, steps, memory and time (the dry run)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, quantiles
from typing import Any

import torch

from raft_tasks.config import Method, Model, Train
from raft_tasks.schemas import TrainingPair
from raft_tasks.training.adapters import without_deprecations
from raft_tasks.training.conversations import Encoded
from raft_tasks.training.memory import Memory, Shape, available_bytes, estimate, gigabytes, settings_that_fit
from raft_tasks.training.speed import ModelFlops
from raft_tasks.training.train import make_pair, prepare, training_arguments
from raft_tasks.training.trainer import RaftTrainer
from raft_tasks.training.weights import quiet

TRIED_STEPS = 2  # really taken, of a copy that is thrown away; the second one is warm
UTILISATION = 0.3  # of the device's peak, assumed where no step can be taken


def plan(
    pairs: list[TrainingPair],
    model: Model,
    method: Method,
    train: Train,
    template_text: str,
    seed: int,
    folder: Path,
    anchors: Path | None = None,
) -> dict[str, Any]:
    """What `train_model` would do with the same arguments, JSON-ready.

    Args:
        folder: empty, for what the tried steps write.

    Raises:
        As `train_model`, before its first step.
    """
    network, tokenizer, rows, replay, held = prepare(pairs, model, method, train, template_text, seed, anchors)
    single = train.model_copy(update={"launch": train.launch.model_copy(update={"processes": 1, "strategy": "none"})})
    arguments = training_arguments(single, len(rows), seed, folder)
    device = arguments.device
    steps_per_epoch = math.ceil(len(rows) / train.batch_size)
    student, teacher = make_pair(network, model, method, seed, arguments)
    if train.gradient_checkpointing:
        with without_deprecations():
            network.gradient_checkpointing_enable({"use_reentrant": False})
    shape = Shape.of(student, model.dtype)
    through = [*rows, *replay, *(held.rows if held else [])]
    needed, there = estimate(shape, through, method, train), available_bytes(device)
    fits = needed.peak <= there
    result: dict[str, Any] = {
        "parameters": shape.parameters,
        "trainable": shape.trainable,
        "rows": len(rows),
        "epochs": train.epochs,
        "steps": steps_per_epoch * train.epochs,
        "lengths": lengths(rows),
        "tokens_per_epoch": tokens(rows, method),
        "device": str(device),
        "memory": asdict(needed) | {"peak": needed.peak, "available": there},
        "would_fit": [] if fits else [text for text, _ in settings_that_fit(there, shape, through, method, train)],
    }
    if fits:
        arguments.max_steps, arguments.save_strategy = TRIED_STEPS, "no"
        with quiet():
            trainer = RaftTrainer(
                student,
                teacher,
                rows,
                tokenizer,
                method,
                single,
                arguments,
                "plan",
                folder / "steps.csv",
                replay=replay,
                anchors=held,
            )
            try:
                trainer.train()
            finally:
                trainer.interruption.watch.restore()
        seconds = trainer.steps()[-1]["seconds"]
        if device.type == "cuda":
            result["memory"]["measured_peak"] = torch.cuda.max_memory_allocated(device)
    else:
        flops = ModelFlops(student, device, torch.bfloat16 if train.precision == "bfloat16" else torch.float32)
        whole = flops.training(sum(result["tokens_per_epoch"].values()), result["tokens_per_epoch"]["answers"])
        seconds = 1 / flops.utilisation(UTILISATION / (whole / steps_per_epoch), 1.0, 1)
    result["seconds_per_step"] = seconds / train.launch.processes
    result["measured"] = fits
    result["hours"] = result["seconds_per_step"] * result["steps"] / 3600
    return result


def lengths(rows: Sequence[Encoded]) -> dict[str, dict[str, float]]:
    """Tokens of prompts, answers and the teacher's prompts: mean, median, 95th percentile, longest."""
    sides = {
        "prompt": [len(row.prompt) for row in rows],
        "answer": [len(row.answer) for row in rows],
        "teacher's prompt": [len(row.teacher_prompt) for row in rows if row.teacher_prompt],
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
    """Tokens of one epoch; of the rollouts, the most that there can be."""
    drawn = method.distillation.rollout_max_new_tokens * len(rows) if method.distillation else 0
    return {
        "prompts": sum(len(row.prompt) for row in rows),
        "answers": sum(len(row.answer) for row in rows),
        "rollouts_at_most": drawn,
    }


def report(result: dict[str, Any]) -> str:
    """`plan`'s result for people."""
    memory, there = result["memory"], result["memory"]["available"]
    lines = [
        f"parameters        {result['parameters']:,}, of which {result['trainable']:,} are trained",
        f"rows              {result['rows']:,}, {result['epochs']} epochs, {result['steps']:,} optimiser steps",
        "tokens an epoch   " + ", ".join(f"{n.replace('_', ' ')} {v:,}" for n, v in result["tokens_per_epoch"].items()),
    ]
    for name, of in result["lengths"].items():
        lines.append(
            f"{name:18}mean {of['mean']:.0f}, median {of['median']:.0f}, 95 % up to {of['p95']:.0f}, "
            f"longest {of['longest']:.0f} tokens"
        )
    lines.append(
        f"memory            estimated peak {gigabytes(memory['peak'])} of {gigabytes(there)} on {result['device']}"
    )
    for name in Memory.__dataclass_fields__:
        lines.append(f"  {name.replace('_', ' '):22}{gigabytes(memory[name])}")
    if "measured_peak" in memory:
        lines.append(f"  measured peak         {gigabytes(memory['measured_peak'])}")
    if result["would_fit"]:
        lines.append("  TOO MUCH; change in params.yaml: " + "; ".join(result["would_fit"]))
    how = (
        f"measured in {TRIED_STEPS} real steps"
        if result["measured"]
        else f"from FLOPs at {UTILISATION:.0%} of the device's measured peak"
    )
    lines.append(
        f"time              {result['seconds_per_step']:.3g} s a step ({how}), {result['hours']:.2g} hours in all"
    )
    return "\n".join(lines)
