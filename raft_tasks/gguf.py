"""A GGUF file, turned once into a model folder that training, generation and benchmarks load like any other.

The weights are the quantised ones in floating point: what quantisation took from the original does not come back.
"""

from __future__ import annotations

from contextlib import redirect_stderr
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from raft_tasks.artifacts import atomic_folder, digest_path
from raft_tasks.errors import InputError
from raft_tasks.model_files import save_network

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FOLDERS = Path(".cache/gguf")  # one folder per content
SUFFIX = ".gguf"
CARD = """---
library_name: transformers
pipeline_tag: text-generation
license: {license}
---

# {name}

Weights, tokenizer and chat template of `{file}` (GGUF, {quantisation}, SHA-256 `{sha256}`), written as float32
safetensors: the values of the quantised model, not those of the model that it was made from.

- Author, as the file says: {organization}
- Licence, as the file says: {license}
"""


def model_folder(path: str) -> Path:
    """Where the model of `models.<name>.path` lies: of a GGUF file the folder in FOLDERS, written if it is missing.

    Raises:
        InputError: if the file is missing, unreadable, or not a causal language model with a chat template.
    """
    file = Path(path)
    if file.suffix != SUFFIX:
        return file
    about = describe(file)
    folder = FOLDERS / f"{file.stem}-{about['sha256'][:16]}-2"  # 2: of how it is converted
    if not folder.is_dir():
        FOLDERS.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # stages start side by side
            if not folder.is_dir():
                convert(file, folder, about)
    return folder


def describe(file: Path) -> dict[str, str]:
    """What a GGUF file says of itself: name, organization, license, quantisation (Q4_1); and its sha256."""
    if not file.is_file():
        raise InputError(f"model file {file.absolute()} is not there; put it there, or correct models.<name>.path")
    state = file.stat()
    return _describe(file.resolve(), state.st_size, state.st_mtime_ns)


def read_shapes(file: Path) -> dict[str, list[int]]:
    """{name: shape} of a GGUF file's tensors."""
    return {tensor.name: tensor.shape.tolist() for tensor in _read(file).tensors}


def _read(file: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise InputError(f"{file}: a GGUF file needs the package gguf; pip install gguf") from error
    try:
        return GGUFReader(file)
    except (OSError, ValueError, KeyError, IndexError) as error:
        size = file.stat().st_size if file.is_file() else 0
        raise InputError(f"{file} ({size} bytes) is not a whole GGUF file ({error}); download it again") from error


@cache
def _describe(file: Path, size: int, modified: int) -> dict[str, str]:
    content = _read(file)
    from gguf import LlamaFileType

    def general(key: str, missing: str) -> str:
        field = content.fields.get(f"general.{key}")
        return missing if field is None else str(field.contents())

    kind = LlamaFileType(int(general("file_type", "1024"))).name  # 1024: guessed
    return {
        "name": general("name", file.stem),
        "organization": general("organization", "not stated"),
        "license": general("license", "not stated"),
        "quantisation": kind.removeprefix("MOSTLY_").removeprefix("ALL_"),
        "sha256": digest_path(file),
    }


def check_positions(file: Path, network: PreTrainedModel) -> None:
    """InputError where rotary positions are scaled or partial, which transformers often drops without a word."""
    content = _read(file)
    lost = [tensor.name for tensor in content.tensors if tensor.name.startswith("rope_f")]  # rope_freqs, rope_factors_*
    lost += [key for key in content.fields if ".rope.scaling." in key]
    frequencies = getattr(getattr(network.base_model, "rotary_emb", None), "inv_freq", None)
    for key, field in content.fields.items():
        if key.endswith(".rope.dimension_count") and frequencies is not None:
            lost += [f"{key} {field.contents()}"] if field.contents() != 2 * len(frequencies) else []
    if lost:
        raise InputError(
            f"{file}: transformers does not read its scaled or partial rotary positions ({', '.join(lost[:3])}) and "
            "would make another model of it. Use the model's safetensors folder instead"
        )


def set_split(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Split text as SmolLM2 does, for which transformers takes GPT-2's rule; InputError for another unknown rule."""
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    fields = _read(file).fields
    named = (fields.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    kind, rule = (None if field is None else field.contents() for field in named)
    if kind != "gpt2" or rule in (None, "default", "gpt-2", *GGUF_PRE_TOKENIZER_SPLITS):
        return
    if rule != "smollm":
        raise InputError(
            f"{file}: its tokenizer splits text as {rule!r}, which transformers does not know. Use the model's "
            "safetensors folder instead"
        )
    backend: Any = tokenizer
    backend.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def convert(file: Path, folder: Path, about: dict[str, str]) -> None:
    """Write the model of `file` as float32 safetensors with tokenizer, chat template and model card to `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    try:
        with redirect_stderr(StringIO()):  # progress bars
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**source)
            both: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, output_loading_info=True)
    except (ValueError, KeyError, OSError, NotImplementedError, RuntimeError) as error:
        raise InputError(
            f"{file}: transformers cannot read it ({error}); expected a causal language model of an architecture that "
            "it reads from GGUF. Use the model's safetensors folder instead"
        ) from error
    loaded: PreTrainedModel = both[0]
    missing = sorted(map(str, [*both[1]["missing_keys"], *both[1]["mismatched_keys"]]))
    if missing:  # transformers has drawn them at random
        raise InputError(f"{file} lacks {len(missing)} weights of its model ({missing[0]}, ...); download it again")
    check_positions(file, loaded)
    set_split(tokenizer, file)
    if tokenizer.chat_template is None:
        raise InputError(f"{file} has no chat template; expected an instruction-tuned model")
    plain = loaded.config.to_dict()
    plain.pop("quantization_config", None)  # save_pretrained would refuse the weights, which are dequantised by now
    config = type(loaded.config).from_dict(plain)
    config._name_or_path = about["name"]
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    tokenizer.model_max_length = config.max_position_embeddings
    with atomic_folder(folder) as partial, redirect_stderr(StringIO()):
        save_network(model, partial)
        tokenizer.save_pretrained(partial)
        (partial / "README.md").write_text(CARD.format(file=file.name, **about), encoding="utf-8")
