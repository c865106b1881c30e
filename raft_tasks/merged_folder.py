"""A model as a folder that transformers alone loads: what is released, exported and pushed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft_tasks.adapter_folder import FILES, add_adapter, base_of, is_adapter
from raft_tasks.config import Model
from raft_tasks.errors import InputError
from raft_tasks.gguf import model_folder
from raft_tasks.model_files import save_network
from raft_tasks.model_loading import load_model, load_network, load_tokenizer, quiet

if TYPE_CHECKING:
    from torch import Tensor, nn


def write_whole(model: Model, folder: Path) -> None:
    """Copy the model's folder; of an adapter write base and adapter merged, in `model.dtype`, and check the weights.

    Raises:
        InputError: the written weights are not base + adapter within the rounding of their dtype.
        InputError: the model cannot be loaded.
    """
    import torch

    source = model_folder(model.path)
    left_out = FILES if is_adapter(source) else set()
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=lambda _, names: left_out & set(names))
    if left_out:
        network = load_model(model, getattr(torch, model.dtype))[0]
        with quiet():
            save_network(network, folder)
        del network
        check_merged(model, folder)


def check_merged(model: Model, folder: Path) -> None:
    """Compare the weights in `folder` with base + adapter, each of which is loaded apart.

    Raises:
        InputError: naming what differs by more than rounding.
    """
    import torch

    dtype, tokenizer = getattr(torch, model.dtype), load_tokenizer(model)
    whole = load_network(Model(path=str(folder), dtype=model.dtype), dtype, tokenizer)
    base = load_network(base_of(model), dtype, tokenizer)
    apart = add_adapter(base, Path(model.path), "model folder").get_base_model()
    wrong = []
    with torch.no_grad():
        for layer_name, layer in whole.named_modules():
            for name, weight in layer.named_parameters(recurse=False):
                expected = _expected(apart.get_submodule(layer_name), name)
                bound = torch.finfo(dtype).eps * expected.abs() + torch.finfo(dtype).tiny
                if not bool(((weight.double() - expected).abs() <= bound).all()):
                    wrong.append(f"{layer_name}.{name}")
    if wrong:
        raise InputError(
            f"{folder}: {len(wrong)} merged weights are not those of the base and the adapter {model.path} within the "
            f"rounding of {model.dtype}: {', '.join(wrong[:5])}. Nothing was released"
        )


def _expected(layer: nn.Module, name: str) -> Tensor:
    """A parameter of a layer that peft may have wrapped, in float64."""
    from peft.utils import ModulesToSaveWrapper

    if isinstance(layer, ModulesToSaveWrapper):
        layer = layer.modules_to_save[layer.active_adapters[0]]
    wrapped: Any = layer
    original = wrapped.get_base_layer() if hasattr(wrapped, "get_base_layer") else wrapped
    value: Tensor = getattr(original, name).double()
    if name == "weight" and original is not wrapped:
        for adapter in wrapped.active_adapters:
            value = value + wrapped.get_delta_weight(adapter).double()
    return value
