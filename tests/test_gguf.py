"""A GGUF file as a model: a small llama with tokenizer and chat template, written by the package gguf."""

import json
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

from raft_tasks import gguf
from raft_tasks.config import Model
from raft_tasks.doctor import _check_model, weight_shapes
from raft_tasks.errors import InputError
from raft_tasks.evaluation.evidence import digest_model
from raft_tasks.file_digests import FileDigests
from raft_tasks.model_loading import load_model
from raft_tasks.models import identify

writer = pytest.importorskip("gguf")
HIDDEN, HEADS, INNER = 32, 4, 64
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_gguf(
    path: Path, template: str | None = TEMPLATE, without: str = "none", split: str = "smollm", scaled: bool = False
) -> dict[str, np.ndarray]:
    """Returns the embedding and one projection, as they went into the file (Q8_0)."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = [*SPECIAL, *sorted(bytes_to_unicode().values()), "th", "the", "ĊĊ"]
    out = writer.GGUFWriter(path, "llama")
    out.add_name("Tiny llama")
    out.add_organization("A maker")
    out.add_license("apache-2.0")
    out.add_file_type(writer.LlamaFileType.MOSTLY_Q8_0)
    out.add_block_count(1)
    out.add_context_length(128)
    out.add_embedding_length(HIDDEN)
    out.add_feed_forward_length(INNER)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(10000.0)
    out.add_rope_dimension_count(HIDDEN // HEADS)
    out.add_vocab_size(len(tokens))
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(split)
    out.add_token_list(tokens)
    out.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    out.add_token_merges(["t h", "th e", "Ċ Ċ"])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_pad_token_id(2)
    if template is not None:
        out.add_chat_template(template)
    draw, q8 = np.random.default_rng(0), writer.GGMLQuantizationType.Q8_0

    def add(name: str, *shape: int) -> np.ndarray:
        values = draw.normal(size=shape).astype(np.float32)
        quantised = writer.quants.quantize(values, q8)
        out.add_tensor(name, quantised, raw_dtype=q8)
        return writer.quants.dequantize(quantised, q8)

    if scaled:
        out.add_tensor("rope_freqs.weight", np.ones(4, dtype=np.float32))
    kept = {"embedding": add("token_embd.weight", len(tokens), HIDDEN)}
    for name in {"attn_q", "attn_k", "attn_v", "attn_output"} - {without}:
        add(f"blk.0.{name}.weight", HIDDEN, HIDDEN)
    add("blk.0.ffn_gate.weight", INNER, HIDDEN)
    kept["up"] = add("blk.0.ffn_up.weight", INNER, HIDDEN)
    add("blk.0.ffn_down.weight", HIDDEN, INNER)
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        out.add_tensor(name, np.ones(HIDDEN, dtype=np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return kept


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("tiny.Q8_0.gguf")
    write_gguf(path)
    return path


def test_a_gguf_file_loads_like_a_folder_with_its_dequantised_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = write_gguf(Path("tiny.gguf"))
    network, tokenizer = load_model(Model(path="tiny.gguf"), torch.float32)
    np.testing.assert_array_equal(network.get_input_embeddings().weight.detach().numpy(), kept["embedding"])
    np.testing.assert_array_equal(network.model.layers[0].mlp.up_proj.weight.detach().numpy(), kept["up"])
    assert network.config.eos_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.model_max_length == 128
    text = tokenizer.apply_chat_template([{"role": "user", "content": "the 42"}], tokenize=False)
    assert text == "<|im_start|>user\nthe 42<|im_end|>\n"
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])[:2] == ["<|im_start|>", "u"]


def test_the_folder_is_written_once_with_a_card_and_trains(file):
    folder = gguf.model_folder(str(file))
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "Q8_0" in card
    assert gguf.describe(file)["sha256"] in card
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert gguf.model_folder(str(file)) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert [path.name for path in gguf.FOLDERS.iterdir() if path.suffix != ".lock"] == [folder.name]


def test_its_identity_is_its_content_and_names_the_quantisation(file, tmp_path):
    with FileDigests(tmp_path / "digests.json") as digests:
        before = identify("base", Model(path=str(file)), digests)
        assert before["quantisation"] == "Q8_0"
        file.rename("other.gguf")
        assert identify("base", Model(path="other.gguf"), digests)["sha256"] == before["sha256"]


def test_doctor_counts_its_parameters_and_names_a_cut_file(file):
    assert sum(map(prod, weight_shapes(file).values())) == sum(
        p.numel() for p in load_model(Model(path=str(file)), torch.float32)[0].parameters()
    )
    assert "model.safetensors" in digest_model(Model(path=str(file)))  # the gate's evidence is the content
    cut = Path("cut.gguf")
    cut.write_bytes(file.read_bytes()[:100])
    (fault,) = _check_model("models.base", Model(path=str(cut)), cut)
    assert "not a whole GGUF file" in fault.got
    assert weight_shapes(cut) == {}


def test_what_is_no_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"none\.gguf is not there"):
        gguf.model_folder("none.gguf")
    Path("cut.gguf").write_bytes(b"GGUF\x03\x00")
    with pytest.raises(InputError, match="not a whole GGUF file"):
        gguf.model_folder("cut.gguf")
    write_gguf(Path("plain.gguf"), template=None)
    with pytest.raises(InputError, match="no chat template"):
        gguf.model_folder("plain.gguf")
    write_gguf(Path("lacking.gguf"), without="attn_k")
    with pytest.raises(InputError, match="lacks 1 weights of its model"):
        gguf.model_folder("lacking.gguf")
    assert not [path for path in gguf.FOLDERS.iterdir() if path.suffix != ".lock"]


def test_text_is_split_as_the_model_was_made_with(file):
    _, tokenizer = load_model(Model(path=str(file)), torch.float32)
    assert tokenizer.tokenize("a\n\n1") == ["a", "ĊĊ", "1"]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"split": "starcoder"}, "splits text as 'starcoder'"),
        ({"scaled": True}, "partial rotary positions .rope_freqs"),
    ],
)
def test_what_transformers_would_make_another_model_of_is_refused(tmp_path, monkeypatch, settings, fault):
    monkeypatch.chdir(tmp_path)
    write_gguf(tmp_path / "odd.gguf", **settings)
    with pytest.raises(InputError, match=fault):
        load_model(Model(path="odd.gguf"), torch.float32)


def test_partial_rotary_positions_are_seen(file):
    """Of Phi, whose rotary width transformers does not read, another network comes."""
    network, _ = load_model(Model(path=str(file)), torch.float32)
    gguf.check_positions(Path(file), network)
    network.model.rotary_emb.inv_freq = network.model.rotary_emb.inv_freq[1:]
    with pytest.raises(InputError, match=rf"partial rotary positions .llama.rope.dimension_count {HIDDEN // HEADS}\)"):
        gguf.check_positions(Path(file), network)
