"""Adapters (peft's LoRA and OSF): a student that trains few weights, a teacher that is the same without them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from raft_tasks.config import Lora, Osf
from raft_tasks.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STUDENT, TEACHER = "default", "teacher"  # names of the adapters within one model


def with_adapter(network: PreTrainedModel, adapter: Lora | Osf, teacher_adapter: str | None) -> Any:
    """`network`, frozen, with a new adapter to train (float32) and the teacher's own, frozen, if it has one.

    Raises:
        InputError: if the targets are not in the model, or hold its output head.
    """
    from peft import LoraConfig, OSFConfig, get_peft_model

    targets = adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets)
    owners = Counter(id(p) for layer in network.modules() for p in layer._parameters.values())
    head = next(name for name, layer in network.named_modules() if layer is network.get_output_embeddings())
    if head.split(".")[-1] in targets:
        raise InputError(
            f"adapter.targets {targets!r} hold the output head; expected layers below it (all-linear leaves it out)"
        )
    config: Any
    if isinstance(adapter, Osf):
        config = OSFConfig(effective_rank=adapter.preserved, target_modules=targets, task_type="CAUSAL_LM")
    else:
        config = LoraConfig(
            r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=adapter.dropout, target_modules=targets,
            task_type="CAUSAL_LM",
        )  # fmt: skip
    try:
        with without_peft_warnings():
            student = get_peft_model(network, config)
    except ValueError as error:  # peft names the modules that it did not find
        linear = sorted(
            {name.split(".")[-1] for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
        )
        raise InputError(
            f"adapter.targets: got {targets!r}, expected all-linear or some of {linear}: {error}"
        ) from error
    check_untied(student, owners, f"adapter.targets {targets!r}")
    if teacher_adapter is not None:
        check_adapter(teacher_adapter)
        student.load_adapter(teacher_adapter, TEACHER, is_trainable=False)
    return student


def merge_adapter(network: Any, folder: str) -> PreTrainedModel:
    """`network` with the adapter in `folder` merged into its weights."""
    from peft import PeftModel

    check_adapter(folder)
    owners = Counter(id(p) for layer in network.modules() for p in layer._parameters.values())
    with without_peft_warnings():
        model = PeftModel.from_pretrained(network, folder)
        check_untied(model, owners, f"distillation.teacher_adapter {folder!r}")
        merged: PreTrainedModel = model.merge_and_unload()
    return merged


@contextmanager
def without_peft_warnings() -> Iterator[None]:
    """peft's use of names that are on their way out of transformers; its word on tied weights, which are refused."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`\w*gradient_checkpointing\w*` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        yield


def check_untied(model: nn.Module, owners: Counter[int], setting: str) -> None:
    """An adapter on a weight that two layers share moves one layer in training, and both when it is merged."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
    tied = [name for name, layer in layers if owners[id(layer.get_base_layer().weight)] > 1]
    if tied:
        raise InputError(
            f"{setting}: {', '.join(tied)} has a weight that another layer uses too (tied embeddings), so that the "
            "merged model would not be the trained one; expected targets with weights of their own, such as all-linear"
        )


def check_adapter(folder: str) -> None:
    if not (Path(folder) / "adapter_config.json").is_file():
        raise InputError(
            f"distillation.teacher_adapter: got {folder!r}, expected a folder with an adapter_config.json, such as the "
            "model/adapter of an earlier training"
        )


@contextmanager
def teacher_mode(student: nn.Module, with_adapter: bool) -> Iterator[None]:
    """Within it the student is its teacher: its adapter off (or the teacher's on instead), dropout off.

    peft's own switches also switch requires_grad, which FSDP2 reads at times of its choosing; these do not.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in student.modules() if isinstance(layer, BaseTunerLayer)]
    was_training = student.training
    student.eval()
    for layer in layers:
        layer._active_adapter = [TEACHER if with_adapter else STUDENT]
        layer._disable_adapters = not with_adapter
    try:
        yield
    finally:
        for layer in layers:
            layer._active_adapter, layer._disable_adapters = [STUDENT], False
        student.train(was_training)
