"""Adapters (peft's LoRA and OSF): a student that trains few weights, a teacher that is the same without them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from raft_tasks.adapter_folder import CONFIG, check_untied, check_whole, find_adapter, without_peft_warnings, write_base
from raft_tasks.artifacts import read_json, write_json
from raft_tasks.config import Lora, Model, Osf
from raft_tasks.errors import InputError
from raft_tasks.gguf import model_folder

MLP = ["gate_proj", "up_proj", "gate_up_proj", "down_proj"]  # as the Llama family and its relatives name them
STUDENT, TEACHER = "default", "teacher"  # names of the adapters within one model


def with_adapter(network: PreTrainedModel, adapter: Lora | Osf, teacher_adapter: str | None) -> Any:
    """`network`, frozen, with a new adapter to train (float32) and the teacher's own, frozen, if it has one.

    Raises:
        InputError: if the targets are not in the model, or hold its output head.
    """
    from peft import LoraConfig, OSFConfig, get_peft_model

    targets = MLP if adapter.targets == "mlp" else adapter.targets
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
            f"adapter.targets: got {targets!r}, expected all-linear, mlp or some of {linear}: {error}"
        ) from error
    check_untied(student, owners, f"adapter.targets {targets!r}")
    if teacher_adapter is not None:
        find_adapter(Path(teacher_adapter), "distillation.teacher_adapter")
        with without_peft_warnings():
            student.load_adapter(teacher_adapter, TEACHER, is_trainable=False)
        check_whole(student, TEACHER, Path(teacher_adapter), "distillation.teacher_adapter")
        check_untied(student, owners, f"distillation.teacher_adapter {teacher_adapter!r}")
    return student


def save_adapter(student: Any, model: Model, folder: Path) -> None:
    """Write the student's adapter as PEFT does, and which base it belongs to; equal adapters give equal bytes."""
    config = student.peft_config[STUDENT]
    config.base_model_name_or_path, config.revision = str(model_folder(model.path)), model.revision
    student.save_pretrained(folder, selected_adapters=[STUDENT], save_embedding_layers=False)
    written = read_json(folder / CONFIG)
    written["target_modules"] = sorted(written["target_modules"])  # PEFT has a set
    write_json(folder / CONFIG, written)
    write_base(model, folder)


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
