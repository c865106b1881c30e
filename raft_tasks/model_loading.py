"""Loading a model and its tokenizer: the one way of training, generation, benchmarks, merging and analysis.

An adapter's folder is loaded as its base with the adapter merged in memory: bit for bit what a release would hold.
A model that is not whole is refused: transformers would draw missing weights at random and only print a table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from raft_tasks.adapter_folder import base_of, is_adapter, merge_adapter
from raft_tasks.config import Model
from raft_tasks.errors import InputError
from raft_tasks.gguf import model_folder
from raft_tasks.model_files import AGAIN, find_faults, is_pointer, read_object

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

T = TypeVar("T")
SHOWN = 5  # names of weights in a message


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers (loading and writing of shards); its verbosity is restored at the end."""
    from transformers.utils import logging

    verbosity, was_on = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what its table of keys says, `check_keys` raises
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if was_on:
            logging.enable_progress_bar()


def load_model(model: Model, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal language model, whole and trainable, and its tokenizer from a folder or the hub.

    Raises:
        InputError: if either is missing, broken, quantised or does not fit the other.
    """
    tokenizer = load_tokenizer(model)
    check_trainable(model)
    return load_network(model, dtype, tokenizer), tokenizer


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """Its chat template is one text, also where the folder has several by name.

    Raises:
        InputError: if it is missing or broken, or its named chat templates have no default.
    """
    from transformers import AutoTokenizer

    check_files(model)
    path = str(model_folder(model.path))
    tokenizer = _explain(model, lambda: AutoTokenizer.from_pretrained(path, revision=model.revision))
    if isinstance(tokenizer.chat_template, dict):
        named = tokenizer.chat_template
        if "default" not in named:
            raise InputError(
                f"{place(model)}: the tokenizer has chat templates named {sorted(named)} and none named default; "
                "expected one template: write the one to use into chat_template.jinja"
            )
        tokenizer.chat_template = named["default"]
    return tokenizer


def load_network(model: Model, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The causal language model, whole. It may be quantised, as a judge or a fusion model can be.

    Raises:
        InputError: if it is missing, broken or does not fit its tokenizer.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    check_files(model)
    if is_adapter(folder := Path(model.path)):
        network = load_network(base_of(model), dtype, tokenizer)
        network = _explain(model, lambda: merge_adapter(network, folder, "model folder"))
        network.generation_config = _explain(model, lambda: GenerationConfig.from_pretrained(folder))
        return network
    path = str(model_folder(model.path))
    with quiet():
        loaded: Any = _explain(
            model,
            lambda: AutoModelForCausalLM.from_pretrained(
                path,
                revision=model.revision,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            ),
        )
    network = loaded[0]
    if getattr(network.config, "quantization_config", None) is None:  # others have keys of their method's own
        check_keys(model, loaded[1])
        check_head(model, network)
    check_vocabulary(model, network, tokenizer)
    return network


def check_trainable(model: Model) -> None:
    """Raises InputError if its weights are quantised; looks at its config alone."""
    config = _load_model_config(model)
    parts = (config, config.get_text_config())  # of a model that sees images the second is the language model's
    quantisation = next(filter(None, (getattr(part, "quantization_config", None) for part in parts)), None)
    if quantisation is not None:
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation.quant_method
        raise InputError(
            f"{place(model)}: its config.json has a quantization_config ({method}); expected weights in float32 or "
            "bfloat16, which can be trained and merged. Use the model that this one was quantised from"
        )


def load_context_length(model: Model) -> int:
    """Tokens that the model can read, as its config says; a recurrent model's has no limit."""
    return int(getattr(_load_model_config(model).get_text_config(), "max_position_embeddings", sys.maxsize))


def _load_model_config(model: Model) -> Any:
    from transformers import AutoConfig

    model = base_of(model)
    path = str(model_folder(model.path))
    return _explain(model, lambda: AutoConfig.from_pretrained(path, revision=model.revision))


def check_keys(model: Model, info: dict[str, Any]) -> None:
    """`info` is transformers' loading info."""
    kinds = {
        "missing": [str(key) for key in info["missing_keys"]],
        "unexpected": [str(key) for key in info["unexpected_keys"]],
        "of another shape": [str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"]],
    }
    faults = [
        f"{len(keys)} {kind} ({', '.join(sorted(keys)[:SHOWN])}{', ...' if len(keys) > SHOWN else ''})"
        for kind, keys in kinds.items()
        if keys
    ]
    if faults:
        raise InputError(
            f"{place(model)}: its weights are not those of its config.json: {'; '.join(faults)}; expected every weight "
            "once, in its shape. An untied output head must be in the file (or tie_word_embeddings be true); copy or "
            "download the folder again"
        )


def check_head(model: Model, network: PreTrainedModel) -> None:
    """InputError for an output head of its own that the config calls tied: transformers takes it, others do not."""
    head, embedding = network.get_output_embeddings(), network.get_input_embeddings()
    tied = getattr(network.config.get_text_config(), "tie_word_embeddings", False)
    if tied and head is not None and head.weight is not embedding.weight:
        raise InputError(
            f"{place(model)}: its file has an output head of its own, and config.json says that it is the embedding "
            "(tie_word_embeddings), so programs would take either. Set it to false, or take the head out of the file"
        )


def check_vocabulary(model: Model, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    embedding: Any = network.get_input_embeddings()
    rows: int = embedding.weight.shape[0]
    tokens = tokenizer.get_vocab()
    outside = sorted(token for token, number in tokens.items() if number >= rows)
    if outside:
        raise InputError(
            f"{place(model)}: {len(outside)} of the tokenizer's {len(tokens)} tokens have no row in the embedding of "
            f"{rows}, such as {outside[:SHOWN]}; expected a tokenizer of this model. Take its own tokenizer files, or "
            "resize the embedding (model.resize_token_embeddings) and save the model"
        )


def check_files(model: Model) -> None:
    """Files that git left as pointers, which transformers reports as something else, and one that it passes over."""
    folder = model_folder(model.path)
    settings = folder / "generation_config.json"
    if settings.is_file() and not is_pointer(settings) and read_object(settings) is None:
        raise InputError(f"{settings} is no JSON object; was it cut?: {AGAIN}")
    for path in filter(is_pointer, filter(Path.is_file, sorted(folder.glob("*")))):
        raise InputError(f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in {folder}")


def place(model: Model) -> str:
    folder = model_folder(model.path)
    return f"model folder {folder.absolute()}" if folder.is_dir() else f"model {model.path!r} ({model.revision})"


def _explain(model: Model, load: Callable[[], T]) -> T:
    """What `load` returns; its error names the folder's faults."""
    from safetensors import SafetensorError

    try:
        with quiet():
            return load()
    except SafetensorError as error:
        raise InputError(
            f"{place(model)}: a weights file is cut or damaged ({error}); copy or download it again"
        ) from error
    except InputError:
        raise
    except Exception as error:  # tokenizers raises a bare one for a file that was cut
        first = (str(error) or "no message").splitlines()[0]
        raise InputError(f"{unloadable(model)}\n  {type(error).__name__}: {first}") from error


def unloadable(model: Model) -> str:
    """Why a model does not load, as far as its folder tells."""
    folder = model_folder(model.path)
    if not folder.is_dir():
        return (
            f"model {model.path!r} (revision {model.revision}): there is no folder {folder.absolute()}, and as a hub "
            "id it could not be loaded either. Check models.<name>.path in params.yaml; `dvc pull` (or git) brings a "
            "folder of this project, the hub needs network access and a correct id"
        )
    faults = "; ".join(f"{got}: {action}" for got, _, action in find_faults(folder, trained=False))
    return (
        f"model folder {folder.absolute()} is there but cannot be loaded; {faults + '. ' if faults else ''}"
        "Expected what save_pretrained writes for a causal language model and its tokenizer"
    )
