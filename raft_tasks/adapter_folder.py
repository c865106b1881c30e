"""A LoRA row's artifact: PEFT's adapter, tokenizer and chat template, and which base it belongs to.

    adapter_config.json, adapter_model.safetensors   as PEFT writes and loads them
    base.json      {"path": "models/pocket-base", "revision": null, "sha256": "8f..."}

An adapter on another base is another model without any error, hence the digest of the base's weights.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft_tasks import gguf
from raft_tasks.artifacts import digest, digest_path, read_json, write_json
from raft_tasks.config import Model
from raft_tasks.errors import InputError
from raft_tasks.model_files import DAMAGED, read_header

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
FILES = {CONFIG, WEIGHTS, BASE}  # the others of the folder are those of any model


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def write_base(model: Model, folder: Path) -> None:
    """Note in an adapter's folder that it was trained on `model`."""
    write_json(folder / BASE, {"path": model.path, "revision": model.revision, "sha256": weights_sha256(model)})


def base_of(model: Model) -> Model:
    """The model whose weights an adapter's folder changes; `model` itself where it has weights of its own.

    Raises:
        InputError: the folder does not say which base it belongs to, or the base there has other weights.
    """
    folder = Path(model.path)
    if not is_adapter(folder):
        return model
    try:
        pin = read_json(folder / BASE)
        base = model.model_copy(update={"path": pin["path"], "revision": pin["revision"]})
        expected = pin["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"adapter {folder}: expected {BASE} with path, revision and sha256 of its base, as a training writes it: "
            f"{error!r}. Merge an adapter of other origin into its base (PEFT's merge_and_unload) and use that folder"
        ) from error
    present = weights_sha256(base)
    if present != expected:
        state = "is not there" if present is None else f"has other weights ({present[:16]})"
        raise InputError(
            f"adapter {folder}: its base {base.path} {state}, expected weights {expected:.16}; put that base there "
            "(`git checkout`, `dvc pull`), or train again"
        )
    return base


def weights_sha256(model: Model) -> str | None:
    """Of a folder's weights and config.json, or of a GGUF file; None where neither is there (a hub id has a commit)."""
    folder = Path(model.path)
    if folder.suffix == gguf.SUFFIX and folder.is_file():
        return gguf.describe(folder)["sha256"]
    files = [path for path in folder.glob("*") if path.suffix in (".safetensors", ".bin") or path.name == "config.json"]
    state = {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files)}
    return (
        digest({name: _file_sha256(folder.absolute() / name, *now) for name, now in state.items()}) if state else None
    )


@cache
def _file_sha256(file: Path, size: int, modified: int) -> str:
    return digest_path(file)


def merge_adapter(network: PreTrainedModel, folder: Path, where: str) -> PreTrainedModel:
    """`network` with the adapter in `folder` merged into its weights, which keep their dtype.

    Args:
        where: what names the folder, for the message.

    Raises:
        InputError: no adapter, not the whole of one, or one on a weight that two layers share.
    """
    model = add_adapter(network, folder, where)
    with without_peft_warnings():
        merged: PreTrainedModel = model.merge_and_unload()
    return merged.requires_grad_(True)


def add_adapter(network: PreTrainedModel, folder: Path, where: str) -> Any:
    """PEFT's model of `network` and the adapter in `folder`, not merged. InputError as `merge_adapter`."""
    from peft import PeftModel

    find_adapter(folder, where)
    owners = Counter(id(p) for layer in network.modules() for p in layer._parameters.values())
    with without_peft_warnings():
        model = PeftModel.from_pretrained(network, str(folder))
    check_whole(model, "default", folder, where)
    check_untied(model, owners, f"{where} {str(folder)!r}")
    return model


def check_whole(model: Any, name: str, folder: Path, where: str) -> None:
    """Raises InputError where the adapter `name` of PEFT's `model` has other weights than `folder`: PEFT only warns."""
    from peft import get_peft_model_state_dict

    stored = {*read_header(folder / WEIGHTS)}
    wanted = {*get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)}
    missing = sorted(wanted - stored)
    unexpected = sorted(key for key in stored - wanted if ".lora_" in key)
    if missing or unexpected:
        raise InputError(
            f"{where}: {folder / WEIGHTS} is not whole; copy it again. Missing: {missing[:3] or 'none'}, of other "
            f"layers: {unexpected[:3] or 'none'}"
        )


def find_adapter(folder: Path, where: str) -> None:
    """Raises InputError where `folder` holds no adapter, or not the whole file of its weights."""
    if not is_adapter(folder):
        raise InputError(
            f"{where}: got {str(folder)!r}, expected a folder with an {CONFIG}, such as runs/METHOD-SEED/model of an "
            "earlier training of a method with `lora`"
        )
    try:
        read_header(folder / WEIGHTS)
    except DAMAGED as error:
        raise InputError(f"{where}: {folder / WEIGHTS} is missing, cut or damaged ({error}); copy it again") from error


@contextmanager
def without_peft_warnings() -> Iterator[None]:
    """peft's use of names that are on their way out of transformers; its word on tied weights, which are checked."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`\w*gradient_checkpointing\w*` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)  # `check_whole` says it
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied", UserWarning)
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
