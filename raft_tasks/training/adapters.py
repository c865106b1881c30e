"""LoRA adapters (peft): a student that trains few weights, and a teacher that is the same weights without them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from raft_tasks.config import Lora
from raft_tasks.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STUDENT, TEACHER = "default", "teacher"  # names of the adapters within one model


def with_adapter(network: PreTrainedModel, adapter: Lora, teacher_adapter: str | None) -> Any:
    """`network`, frozen, with a new adapter to train (float32) and the teacher's own, frozen, if it has one.

    Raises:
        InputError: if the targets are not in the model, or hold its output head.
    """
    from peft import LoraConfig, get_peft_model

    targets = adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets)
    head = next(name for name, layer in network.named_modules() if layer is network.get_output_embeddings())
    if head.split(".")[-1] in targets:
        raise InputError(
            f"adapter.targets {targets!r} hold the output head; expected layers below it (all-linear leaves it out)"
        )
    config = LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=adapter.dropout, target_modules=targets,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    try:
        with without_deprecations():
            student = get_peft_model(network, config)
    except ValueError as error:  # peft names the modules that it did not find
        linear = sorted(
            {name.split(".")[-1] for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
        )
        raise InputError(
            f"adapter.targets: got {targets!r}, expected all-linear or some of {linear}: {error}"
        ) from error
    if teacher_adapter is not None:
        check_adapter(teacher_adapter)
        student.load_adapter(teacher_adapter, TEACHER, is_trainable=False)
    return student


def merged(network: Any, folder: str) -> PreTrainedModel:
    """`network` with the adapter in `folder` built into its weights."""
    from peft import PeftModel

    check_adapter(folder)
    with without_deprecations():
        whole: PreTrainedModel = PeftModel.from_pretrained(network, folder).merge_and_unload()
    return whole


@contextmanager
def without_deprecations() -> Iterator[None]:
    """Names of gradient checkpointing that peft uses too, and that are on their way out of transformers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`\w*gradient_checkpointing\w*` is deprecated", FutureWarning)
        yield


def check_adapter(folder: str) -> None:
    if not (Path(folder) / "adapter_config.json").is_file():
        raise InputError(
            f"distillation.teacher_adapter: got {folder!r}, expected a folder with an adapter_config.json, such as the "
            "model/adapter of an earlier training"
        )


@contextmanager
def as_teacher(student: nn.Module, own_adapter: bool) -> Iterator[None]:
    """Within it the student is its teacher: its adapter off (or the teacher's on instead), dropout off.

    peft's own switches also switch requires_grad, which FSDP2 reads at times of its choosing; these do not.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in student.modules() if isinstance(layer, BaseTunerLayer)]
    was_training = student.training
    student.eval()
    for layer in layers:
        if own_adapter:
            layer._active_adapter = [TEACHER]
        else:
            layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._active_adapter, layer._disable_adapters = [STUDENT], False
        student.train(was_training)
