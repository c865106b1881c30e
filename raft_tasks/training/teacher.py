"""The frozen teacher: a copy of the base for full fine-tuning, the student without its adapter for LoRA."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from raft_tasks.adapter_folder import merge_adapter
from raft_tasks.config import Distillation
from raft_tasks.errors import InputError
from raft_tasks.training.adapters import teacher_mode
from raft_tasks.training.completion_forward import CompletionForward, enable_completion_forward

# (student as it is wrapped for training, CompletionForward) -> what its `head_fn` returns: the reference of L_KL
Teacher = Callable[[Any, CompletionForward], Any]


def frozen(network: PreTrainedModel) -> Teacher:
    """A model of its own, whole in every process."""
    network.eval().requires_grad_(False)
    enable_completion_forward(network)
    return lambda student, completion_forward: network(completion_forward=completion_forward)


def without_adapter(student: Any, completion_forward: CompletionForward, with_adapter: bool) -> Any:
    """The student's own weights with its adapter off, or with the teacher's adapter instead."""
    with teacher_mode(student, with_adapter):
        return student(completion_forward=completion_forward)


def frozen_copy(network: PreTrainedModel, distillation: Distillation, dtype: str, device: torch.device) -> Teacher:
    """The teacher of full fine-tuning: `network` before its first step.

    `dtype` and `device` hold where the settings of `distill` are null.

    Raises:
        InputError: if there is no such device.
    """
    copy: Any = deepcopy(network)
    if distillation.teacher_adapter is not None:
        copy = merge_adapter(copy, Path(distillation.teacher_adapter), "distillation.teacher_adapter")
    try:
        for (
            parameter
        ) in copy.parameters():  # not the buffers: a model loaded in bfloat16 has float32 rotary frequencies
            parameter.data = parameter.data.to(getattr(torch, distillation.teacher_dtype or dtype))
        return frozen(copy.to(distillation.teacher_device or device))
    except (RuntimeError, AssertionError) as error:
        if distillation.teacher_device is None or isinstance(error, torch.OutOfMemoryError):
            raise
        raise InputError(
            f"distillation.teacher_device: got {distillation.teacher_device!r}, expected null, cpu or a device of this "
            f"machine such as cuda:1: {error}"
        ) from error
