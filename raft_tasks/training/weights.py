"""Models as weights: loading them, and how far training has moved them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from raft_tasks.artifacts import digest
from raft_tasks.config import Model
from raft_tasks.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ModelError(InputError):
    """A model that cannot be loaded: what was tried and what to do."""


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers (loading and writing of shards); its verbosity is restored at the end."""
    from transformers.utils import logging

    verbosity, was_on = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if was_on:
            logging.enable_progress_bar()


def load_model(model: Model, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal language model and its tokenizer from a folder or the hub.

    Raises:
        ModelError: if either is missing or broken.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(model.path, revision=model.revision)
            network = AutoModelForCausalLM.from_pretrained(model.path, revision=model.revision, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{unloadable(model)}\n  {type(error).__name__}: {str(error).splitlines()[0]}") from error
    return network, tokenizer


def unloadable(model: Model) -> str:
    """Why a model does not load, as far as one can see from here."""
    folder = Path(model.path)
    if not folder.is_dir():
        return (
            f"model {model.path!r} (revision {model.revision}): there is no folder {folder.absolute()}, and as a hub "
            "id it could not be loaded either. Check models.<name>.path in params.yaml; `dvc pull` (or git) brings a "
            "folder of this project, the hub needs network access and a correct id"
        )
    present = {path.name for path in folder.iterdir()}
    missing = {"config.json", "tokenizer_config.json"} - present
    if not any(name.endswith(".safetensors") for name in present):
        missing.add("*.safetensors")
    return (
        f"model folder {folder.absolute()} is there but cannot be loaded; "
        + (f"missing: {', '.join(sorted(missing))}. " if missing else "")
        + "Expected what save_pretrained writes for a causal language model and its tokenizer"
    )


def weights_digest(network: PreTrainedModel) -> str:
    """A quick fingerprint of all weights: names, shapes and sums."""
    return digest(
        [[n, list(p.shape), float(p.detach().sum(dtype=torch.float64))] for n, p in network.named_parameters()]
    )


def relative_distance(trained: PreTrainedModel, base: PreTrainedModel) -> dict[str, float]:
    """|W - W0| / |W0| (l2) of all weights ("total") and of each layer ("layer 0", ..., and the modules beside them)."""
    return distance_by(trained, base, lambda name: ("total", layer_name(name)))


def distance_by(
    trained: PreTrainedModel, base: PreTrainedModel, groups: Callable[[str], tuple[str, ...]]
) -> dict[str, float]:
    """|W - W0| / |W0| (l2) of each group of weights; `groups` says in which ones a parameter counts."""
    moved: dict[str, float] = defaultdict(float)
    size: dict[str, float] = defaultdict(float)
    original = dict(base.named_parameters())
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            before = original[name].to(parameter.device).double()
            apart = float((parameter.double() - before).square().sum())
            length = float(before.square().sum())
            for group in groups(name):
                moved[group] += apart
                size[group] += length
    return {group: (moved[group] / size[group]) ** 0.5 if size[group] else 0.0 for group in moved}


def layer_name(parameter: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> layer 3; model.embed_tokens.weight -> embed_tokens."""
    number = re.search(r"\.(\d+)\.", parameter)
    return f"layer {number[1]}" if number else parameter.split(".")[-2]


def matrix_name(parameter: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> up_proj, the same in every layer."""
    return parameter.split(".")[-2]
