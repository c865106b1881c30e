"""The frozen teacher: a copy of the base for full fine-tuning, the student without its adapter for LoRA."""

from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from raft_tasks.adapter_folder import merge_adapter
from raft_tasks.config import Distillation
from raft_tasks.errors import InputError
from raft_tasks.training.adapters import teacher_mode
from raft_tasks.training.completion_forward import CompletionForward, enable_completion_forward


class Teacher(Protocol):
    """The reference of L_KL."""

    def __call__(self, student: Any, completion_forward: CompletionForward) -> Any:
        """One forward pass without gradient; `student` is the model as it is wrapped for training."""
        ...


class FrozenCopy:
    """A model of its own, whole in every process."""

    def __init__(self, network: PreTrainedModel) -> None:
        self.network = network.eval().requires_grad_(False)
        enable_completion_forward(self.network)

    @torch.no_grad()
    def __call__(self, student: Any, completion_forward: CompletionForward) -> Any:
        return self.network(completion_forward=completion_forward)


class WithoutAdapter:
    """The student's own weights with its adapter off, or with the teacher's adapter instead."""

    def __init__(self, with_adapter: bool) -> None:
        self.with_adapter = with_adapter

    @torch.no_grad()
    def __call__(self, student: Any, completion_forward: CompletionForward) -> Any:
        with teacher_mode(student, self.with_adapter):
            return student(completion_forward=completion_forward)


def frozen_copy(network: PreTrainedModel, distillation: Distillation, dtype: str, device: torch.device) -> FrozenCopy:
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
        return FrozenCopy(copy.to(distillation.teacher_device or device))
    except (RuntimeError, AssertionError) as error:
        if distillation.teacher_device is None or isinstance(error, torch.OutOfMemoryError):
            raise
        raise InputError(
            f"distillation.teacher_device: got {distillation.teacher_device!r}, expected null, cpu or a device of this "
            f"machine such as cuda:1: {error}"
        ) from error
