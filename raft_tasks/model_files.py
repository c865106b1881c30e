"""A model folder's files: how they are written, and what they say before anything is loaded (cut or missing weights, a
foreign tokenizer, quantisation).

Of the weights only the header is read: {"model.embed_tokens.weight": {"dtype": "F32", "shape": [1346, 192]}, ...}
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

LFS_POINTER = b"version https://git-lfs"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
SHOWN = 3  # names in a message
FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names of what can be trained
QUANTISED = (".weight", ".qweight", ".weight_packed")
READ = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors.index.json",
)
AGAIN = "copy or download it again"
UNQUANTISED, FROM_THE_ORIGINAL = "weights in float32 or bfloat16", "use the model that this one was quantised from"

DAMAGED = (OSError, SafetensorError)  # what `read_header` raises for a damaged file

FileFault = tuple[str, str, str]  # what is there, what is expected, what to do


def save_network(network: Any, folder: Path) -> None:
    """`network.save_pretrained`, its rotary positions also under the keys of transformers 4.

    Programs with that version know no `rope_parameters` and would take their own default. Positions that differ between
    layers (Gemma 3) have no such keys.
    """
    network.save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    rotary = config.get("rope_parameters") or {}
    if "rope_theta" in rotary:
        older = {key: rotary.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in rotary}
        scaling = None if rotary.get("rope_type", "default") == "default" else rotary
        config |= older | {"rope_scaling": scaling, "rope_parameters": {**older, **rotary}}
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def is_pointer(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(len(LFS_POINTER)) == LFS_POINTER


def read_header(file: Path) -> dict[str, Any]:
    """Name -> dtype and shape of the tensors in a safetensors file.

    Raises:
        SafetensorError: not such a file, or not the whole of it.
    """
    with safe_open(file, framework="numpy") as weights:
        tensors = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118  # it is no dictionary
        return {name: {"dtype": tensor.get_dtype(), "shape": tensor.get_shape()} for name, tensor in tensors.items()}


def find_faults(folder: Path, trained: bool) -> Iterator[FileFault]:
    """What keeps the model in `folder` from being loaded; `trained`: what keeps it from being trained, too."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    pointers = [path for path in files if is_pointer(path)]
    for path in pointers:
        yield f"{path} is a Git-LFS pointer", "the file itself", "`git lfs pull` there"
    if (folder / "adapter_config.json").is_file():
        weights = folder / "adapter_model.safetensors"
        try:
            read_header(weights)
        except DAMAGED as error:
            yield f"{weights} is missing, cut or damaged ({error})", "the adapter's weights", AGAIN
        return
    settings = read_object(folder / "config.json")
    for path in files:
        if path.name in READ and path not in pointers and read_object(path) is None:
            yield f"{path} is no JSON object; was it cut?", "the whole file", AGAIN
    if settings is None and not (folder / "config.json").is_file():
        yield f"{str(folder)!r} without config.json", "a model folder as transformers saves it", AGAIN
    if not any((folder / name).is_file() for name in TOKENIZERS):
        yield f"no tokenizer files in {str(folder)!r}", "tokenizer.json", "take those of the model's own folder"
    text = (settings or {}).get("text_config")  # the language model of one that sees images
    parts = (settings or {}, text if isinstance(text, dict) else {})
    quantisation = next(filter(None, (part.get("quantization_config") for part in parts)), None)
    if trained and quantisation:
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation
        yield f"quantised weights ({method})", UNQUANTISED, FROM_THE_ORIGINAL
    vocabulary, pad = (settings or {}).get("vocab_size"), (settings or {}).get("pad_token_id")
    if isinstance(vocabulary, int) and isinstance(pad, int) and pad >= vocabulary:
        yield f"pad_token_id {pad} beyond the {vocabulary} tokens", "a token's number", "correct it in config.json"
    yield from _template_faults(folder)
    stored = [path for path in files if path.suffix in (".safetensors", ".bin", ".gguf")]
    if not stored:
        yield f"no weights in {str(folder)!r}", "*.safetensors", "put the weights there"
    if not set(stored) & set(pointers) and not quantisation:
        yield from _weight_faults(folder, settings or {}, [path for path in stored if path.suffix == ".safetensors"])


def _template_faults(folder: Path) -> Iterator[FileFault]:
    named = (read_object(folder / "tokenizer_config.json") or {}).get("chat_template")
    if isinstance(named, list) and not (folder / "chat_template.jinja").is_file():
        names = [item.get("name") for item in named]
        if "default" not in names:
            yield f"chat templates named {names}, none default", "one", "write the one to use into chat_template.jinja"


def _weight_faults(folder: Path, settings: dict[str, Any], files: list[Path]) -> Iterator[FileFault]:
    tensors: dict[str, Any] = {}
    for path in files:
        try:
            tensors |= read_header(path)
        except DAMAGED as error:
            yield f"{path} is cut or damaged ({error})", "a whole safetensors file", AGAIN
            return
    index = read_object(folder / "model.safetensors.index.json")
    if index is not None:
        shards = set(index.get("weight_map", {}).values()) - {path.name for path in files}
        if shards:
            yield f"{len(shards)} shards are not there: {sorted(shards)[:SHOWN]}", "all of the index", AGAIN
            return
    kinds = {tensor["dtype"] for name, tensor in tensors.items() if name.endswith(QUANTISED)} - {*FLOATS}
    if kinds:  # without a word in config.json, as of NVIDIA's ModelOpt
        yield f"quantised weights ({', '.join(sorted(kinds))})", UNQUANTISED, FROM_THE_ORIGINAL
    embeddings = [tensor["shape"][0] for name, tensor in tensors.items() if name.endswith("embed_tokens.weight")]
    if not embeddings:
        return
    tied = settings.get("tie_word_embeddings")
    if tied is False and not any(name.endswith("lm_head.weight") for name in tensors):
        action = "take the whole model, or set tie_word_embeddings to true where that is meant"
        yield "no lm_head.weight, though config.json says that it is not tied", "every weight of the model", action
    outside = sorted(token for token, number in _tokens(folder).items() if number >= embeddings[0])
    if outside:
        action = "take the model's own tokenizer, or resize its embedding (resize_token_embeddings) and save it"
        got = f"{len(outside)} tokens beyond the embedding's {embeddings[0]} rows, such as {outside[:SHOWN]}"
        yield got, "a tokenizer that fits", action


def _tokens(folder: Path) -> dict[str, int]:
    """Token -> id, as far as JSON files say it."""
    whole = read_object(folder / "tokenizer.json") or {}
    vocabulary = whole.get("model", {}).get("vocab", {})
    tokens: dict[str, int] = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    tokens |= {token["content"]: token["id"] for token in whole.get("added_tokens", [])}
    added = (read_object(folder / "tokenizer_config.json") or {}).get("added_tokens_decoder", {})
    return tokens | {token["content"]: int(number) for number, token in added.items()}


def read_object(file: Path) -> dict[str, Any] | None:
    """A JSON object; None if there is none, or not the whole of one."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
