"""What a training needs of the device's memory, by part, before it starts; and what to change when that is too much.

Counted from shapes, for the Llama family's layers (two norms, grouped attention, gated MLP) and AdamW. Other layers
come near. Not counted: the allocator's fragments and the libraries' own memory (about 1 GB on a GPU).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from raft_tasks.config import Generate, Method, Train, VllmServer
from raft_tasks.errors import InputError
from raft_tasks.training.completion_forward import network_of
from raft_tasks.training.conversations import Encoded
from raft_tasks.training.job import TrainingJob
from raft_tasks.training.logits import TILE_ELEMENTS

WIDTH = {"float32": 4, "bfloat16": 2}  # bytes of a number
SAMPLING_BYTES = 24  # per entry of [B, V] while a token is sampled: logits, log-probabilities, their sum in float64


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that its memory follows from."""

    parameters: int
    weight_bytes: int
    trainable: int
    layers: int
    hidden: int
    queries: int  # heads x head size
    keys: int  # key-value heads x head size
    inner: int  # of the MLP
    vocabulary: int
    teacher_width: int  # bytes of a number of the base, as its copy has them

    @classmethod
    def of(cls, model: Any, dtype: str) -> Shape:
        """Of a student, a transformers model or a peft model around one, and its base's dtype."""
        network: PreTrainedModel = network_of(model)
        config = network.config.get_text_config()
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        parameters = list(model.parameters())
        return cls(
            parameters=sum(p.numel() for p in parameters),
            weight_bytes=sum(p.numel() * p.element_size() for p in [*parameters, *model.buffers()]),  # OSF's
            trainable=sum(p.numel() for p in parameters if p.requires_grad),
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            queries=config.num_attention_heads * head,
            keys=config.num_key_value_heads * head,
            inner=config.intermediate_size,
            vocabulary=config.vocab_size,
            teacher_width=WIDTH[dtype],
        )


@dataclass(frozen=True)
class Memory:
    """Bytes by part. Activations and logits count in the student's passes, the cache in the sampling."""

    weights: int
    gradients: int
    optimiser: int
    teacher: int
    half_copies: int  # of the weights, bfloat16, that autocast keeps during a pass
    activations: int
    logits: int  # tiles of the head
    rollout_cache: int  # keys and values of the rollouts, and their logits while sampling

    @property
    def standing(self) -> int:
        return self.weights + self.gradients + self.optimiser + self.teacher

    @property
    def peak(self) -> int:
        return self.standing + self.half_copies + max(self.activations + self.logits, self.rollout_cache)


def estimate(shape: Shape, rows: Sequence[Encoded], method: Method, train: Train) -> Memory:
    """The memory that one process of this training needs; `rows` is all that goes through the student, anchors too."""
    shards = train.launch.processes if train.launch.strategy == "fsdp2" else 1
    distillation, full = method.distillation, method.adapter is None
    width = WIDTH[train.precision]
    copied = distillation is not None and full and distillation.teacher_device is None
    teacher_width = (
        WIDTH[distillation.teacher_dtype] if distillation and distillation.teacher_dtype else shape.teacher_width
    )
    new_tokens = distillation.rollout_max_new_tokens if distillation else 0
    longest = max(max(row.length, len(row.prompt_ids) + new_tokens * bool(row.teacher_prompt_ids)) for row in rows)
    pass_rows = min(train.micro_batch_size, len(rows))
    tokens = pass_rows * longest
    layer = tokens * layer_bytes(shape, width)
    kept = tokens * shape.hidden * width
    activations = shape.layers * kept + layer if train.gradient_checkpointing else shape.layers * layer
    scored = min(tokens, max(1, TILE_ELEMENTS // shape.vocabulary))
    return Memory(
        weights=shape.weight_bytes // shards,
        gradients=shape.trainable * WIDTH["float32"] // shards,
        optimiser=2 * shape.trainable * WIDTH["float32"] // shards,
        teacher=shape.parameters * teacher_width if copied else 0,
        half_copies=shape.parameters * width if train.precision == "bfloat16" and full else 0,
        activations=activations + 4 * kept,  # the last states and the gradients on their way
        logits=2 * scored * shape.vocabulary * WIDTH["float32"],
        rollout_cache=rollout_bytes(shape, rows, method, train, width),
    )


def layer_bytes(shape: Shape, width: int) -> int:
    """What a layer keeps per token for its backward pass; the norms' inputs are float32 whatever the precision."""
    norms = 2 * shape.hidden * (2 * WIDTH["float32"] + width)  # input, normalised, output
    attention = 5 * shape.queries * width  # queries, repeated keys and values, result, its reshaped copy
    mlp = 4 * shape.inner * width  # gate, its activation, up, their product
    return norms + attention + mlp


def rollout_bytes(shape: Shape, rows: Sequence[Encoded], method: Method, train: Train, width: int) -> int:
    """Keys and values of the rollouts that are sampled together."""
    distillation = method.distillation
    if distillation is None or isinstance(distillation.sampler, VllmServer):
        return 0
    at_once = train.batch_size * distillation.rollout_steps
    if distillation.sampler.kind in ("generate", "continuous_batching"):
        at_once = min(at_once, distillation.sampler.batch_size)
    longest = max(len(row.prompt_ids) for row in rows if row.teacher_prompt_ids) + distillation.rollout_max_new_tokens
    return at_once * (2 * shape.layers * shape.keys * longest * width + shape.vocabulary * SAMPLING_BYTES)


def settings_that_fit(
    available: int, shape: Shape, rows: Sequence[Encoded], method: Method, train: Train
) -> list[tuple[str, int]]:
    """Changes, each added to those before, until the estimate fits into `available` bytes, and the peak after each.

    The mildest comes first: only an adapter changes what is learned.
    """
    changes: list[tuple[str, int]] = []
    now = estimate(shape, rows, method, train)
    candidates: list[tuple[str, Method, Train]] = []  # each with those before it
    if (
        method.distillation
        and isinstance(method.distillation.sampler, Generate)
        and now.rollout_cache > now.activations
    ):
        for size in halves(method.distillation.sampler.batch_size):
            sampler = Generate(kind="generate", batch_size=size)
            method = method.model_copy(
                update={"distillation": method.distillation.model_copy(update={"sampler": sampler})}
            )
            candidates.append((f"distillation.sampler.batch_size: {size}", method, train))
    for size in halves(train.micro_batch_size):
        train = train.model_copy(update={"micro_batch_size": size})
        candidates.append((f"train.micro_batch_size: {size}", method, train))
    if not train.gradient_checkpointing:
        train = train.model_copy(update={"gradient_checkpointing": True})
        candidates.append(("train.gradient_checkpointing: true", method, train))
    for text, changed_method, changed_train in candidates:
        changes.append((text, estimate(shape, rows, changed_method, changed_train).peak))
        if changes[-1][1] <= available:
            return changes
    if method.adapter is None:
        last = estimate(shape, rows, method, train)
        without = last.peak - last.gradients - last.optimiser - last.teacher - last.half_copies
        changes.append(("lora: {rank: 16, alpha: 32, dropout: 0.05, targets: all-linear}", without))
    return changes


def halves(size: int) -> list[int]:
    """size / 2, size / 4, ..., 1."""
    return [size >> shift for shift in range(1, size.bit_length())]


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, of Python, or of the CPU, where torch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def available_bytes(device: torch.device) -> int:
    """Of the device, in use or not."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    import psutil

    return psutil.virtual_memory().total


def explain(
    error: BaseException, device: torch.device, shape: Shape, rows: Sequence[Encoded], job: TrainingJob
) -> InputError:
    """The error that names the settings that would fit."""
    needed, available = estimate(shape, rows, job.method, job.train), available_bytes(device)
    changes = settings_that_fit(min(available, needed.peak - 1), shape, rows, job.method, job.train)
    return InputError(
        f"out of memory on {device}, which has {gigabytes(available)}; this training needs an estimated "
        f"{gigabytes(needed.peak)} ({parts(needed)}). Change in params.yaml, one after the other until it fits:\n"
        + "\n".join(f"  {text}   # then about {gigabytes(peak)}" for text, peak in changes)
        + "\n  or shorter sequences: train.max_length, distillation.rollout_max_new_tokens"
        + f"\nThe last checkpoint is intact. The library's message: {(str(error) or repr(error)).splitlines()[0]:.200}"
    )


def parts(memory: Memory) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {gigabytes(size)}" for name, size in vars(memory).items() if size)


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
