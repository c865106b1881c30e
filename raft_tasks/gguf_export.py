"""A model as one GGUF file, for llama.cpp and what builds on it: Llama architecture, byte-level BPE, not quantised.

The chat template goes along as it is, so that the file prompts as the folder does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raft_tasks import chat
from raft_tasks.artifacts import atomic_file
from raft_tasks.config import Model
from raft_tasks.errors import InputError
from raft_tasks.model_loading import load_model

if TYPE_CHECKING:
    from torch import Tensor

Width = Literal["float16", "float32"]
LARGEST = 65504.0  # of float16
LAYER_TENSORS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
TENSORS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def export_gguf(model: Model, file: Path, width: Width) -> None:
    """Write the model, an adapter merged, to `file`; vectors stay float32, as llama.cpp has them.

    Raises:
        InputError: another architecture or tokenizer than described above, or weights beyond float16's range.
    """
    import torch

    from raft_tasks.training.licence import read_licence

    try:
        from gguf import GGUFWriter, LlamaFileType
    except ImportError as error:
        raise InputError(f"{file}: a GGUF file needs the package gguf; pip install gguf") from error
    network, tokenizer = load_model(model, getattr(torch, model.dtype))
    check_architecture(network.config, model.path)
    with atomic_file(file) as partial:
        writer = GGUFWriter(partial, "llama")
        writer.add_name(Path(model.path).name)
        if licence := read_licence(model).get("license"):
            writer.add_license(licence)
        writer.add_file_type(LlamaFileType.MOSTLY_F16 if width == "float16" else LlamaFileType.ALL_F32)
        _add_shape(writer, network.config)
        _add_tokenizer(writer, tokenizer, network.config.vocab_size, model.path)
        for name, value in network.state_dict().items():
            if name != "lm_head.weight" or not network.config.tie_word_embeddings:
                writer.add_tensor(*_convert(name, value, network.config, width))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def check_architecture(config: Any, path: str) -> None:
    """Raises InputError for what `export_gguf` cannot write."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    faults = {
        f"model_type {config.model_type!r}": config.model_type != "llama",
        f"head_dim {head}": head * config.num_attention_heads != config.hidden_size,
        f"rope_type {rope!r}": rope != "default",
        "biases": getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False),
    }
    if any(faults.values()):
        raise InputError(
            f"{path}: got {', '.join(name for name, wrong in faults.items() if wrong)}; expected a Llama with plain "
            "rotary positions and no biases. llama.cpp's convert_hf_to_gguf.py reads other models' folders"
        )


def _add_shape(writer: Any, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)


def _add_tokenizer(writer: Any, tokenizer: Any, rows: int, path: str) -> None:
    from gguf import TokenType

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = _pre_tokenizer(state.get("pre_tokenizer"))
    if state["model"]["type"] != "BPE" or pre is None or state.get("normalizer") is not None:
        raise InputError(
            f"{path}: got a {state['model']['type']} tokenizer whose splitting is none of GPT-2's and SmolLM's; "
            "expected byte-level BPE. llama.cpp's convert_hf_to_gguf.py knows more tokenizers"
        )
    control = {n for n, token in tokenizer.added_tokens_decoder.items() if token.special} | {*tokenizer.all_special_ids}
    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    kinds = [
        TokenType.UNUSED if n not in texts
        else TokenType.CONTROL if n in control
        else TokenType.USER_DEFINED if n in tokenizer.added_tokens_decoder
        else TokenType.NORMAL
        for n in range(rows)
    ]  # fmt: skip
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([texts.get(n, f"[PAD{n}]") for n in range(rows)])
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)  # templates write their own
    for name in ("bos", "pad"):
        if (number := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    writer.add_eos_token_id(chat.end_of_turn(tokenizer))  # where llama.cpp stops
    writer.add_chat_template(tokenizer.chat_template)


def _pre_tokenizer(state: Any) -> str | None:
    """llama.cpp's name of a tokenizer.json's splitting, of the two that are told apart safely."""
    parts = state.get("pretokenizers", [state]) if state else []
    kinds = [part["type"] for part in parts]
    if any(part.get("add_prefix_space") or part.get("use_regex") is False for part in parts):
        return None
    if kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"]:
        return "smollm"
    return "gpt-2" if kinds == ["ByteLevel"] else None


def _convert(name: str, value: Tensor, config: Any, width: Width) -> tuple[str, Any]:
    """GGUF's name and values of a parameter; llama.cpp rotates pairs (2i, 2i+1) where transformers has halves."""
    layer = name.removesuffix(".weight")
    values = value.detach().float()
    if layer in TENSORS:
        target = TENSORS[layer]
    else:
        number, _, part = layer.removeprefix("model.layers.").partition(".")
        target = f"blk.{number}.{LAYER_TENSORS[part]}"
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(LAYER_TENSORS[part])
        if heads is not None:
            rows, inputs = values.shape
            values = values.view(heads, 2, rows // heads // 2, inputs).transpose(1, 2).reshape(rows, inputs)
    if values.ndim > 1 and width == "float16":
        if float(values.abs().max()) > LARGEST:
            raise InputError(f"{name} holds values beyond float16's {LARGEST:g}; export --dtype float32")
        values = values.half()
    return f"{target}.weight", values.contiguous().numpy()
