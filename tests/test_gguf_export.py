"""A model as a GGUF file, read back by transformers: the same tokens, template and logits."""

from pathlib import Path

import pytest
import torch
from test_gguf import SPECIAL, TEMPLATE
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config
from typer.testing import CliRunner

from flows.cli import app
from raft_tasks.config import Model
from raft_tasks.errors import InputError
from raft_tasks.gguf import describe
from raft_tasks.gguf_export import check_architecture, export_gguf
from raft_tasks.model_loading import load_model

pytest.importorskip("gguf")
TEXT = "<|im_start|>user\nthe 4217 things, it's über:\n\n1. a  5<|im_end|>\n"


def save_llama(folder, digits=True, spare=0, **changes):
    """Grouped attention, so that queries and keys have different head counts."""
    vocabulary = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the", "ĊĊ", "ĠĠ"]
    merges = [("t", "h"), ("th", "e"), ("Ċ", "Ċ"), ("Ġ", "Ġ")]
    core = Tokenizer(models.BPE({token: n for n, token in enumerate(vocabulary)}, merges))
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), split]) if digits else split
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=SPECIAL[1], eos_token=SPECIAL[2], pad_token=SPECIAL[2], unk_token=SPECIAL[0]
    )
    tokenizer.chat_template = TEMPLATE
    settings = {
        "vocab_size": len(vocabulary) + spare, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "initializer_range": 0.2, "rope_theta": 5000.0,
    }  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**(settings | changes))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Model(path=str(folder), dtype="float32")


@pytest.mark.parametrize("width", ["float32", "float16"])
@pytest.mark.parametrize(("tied", "digits"), [(True, True), (False, False)])
def test_an_exported_model_is_read_back(tmp_path, monkeypatch, width, tied, digits):
    monkeypatch.chdir(tmp_path)
    model = save_llama(tmp_path / "model", digits, tie_word_embeddings=tied)
    if tied:
        (tmp_path / "model/README.md").write_text("---\nlicense: apache-2.0\n---\n")
    export_gguf(model, Path("out.gguf"), width)
    assert describe(Path("out.gguf"))["license"] == ("apache-2.0" if tied else "not stated")
    network, tokenizer = load_model(model, torch.float32)
    read, read_tokenizer = load_model(Model(path="out.gguf"), torch.float32)
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert read_tokenizer.chat_template == TEMPLATE
    assert read_tokenizer.eos_token_id == tokenizer.eos_token_id
    if width == "float16":
        for parameter in network.parameters():
            parameter.data = parameter.data.half().float()
    with torch.no_grad():
        got, expected = (net.eval()(input_ids=torch.tensor([ids])).logits for net in (read, network))
    assert torch.allclose(got, expected, atol=1e-5)
    assert torch.equal(got.argmax(-1), expected.argmax(-1))
    turns = [{"role": "user", "content": "the things"}]
    assert read_tokenizer.apply_chat_template(turns) == tokenizer.apply_chat_template(turns)


def test_what_cannot_be_exported_is_refused(tmp_path):
    with pytest.raises(InputError, match="model_type 'qwen3'; expected a Llama"):
        check_architecture(Qwen3Config(hidden_size=4096, num_attention_heads=32, head_dim=128), "m")
    scaled = LlamaConfig(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0})
    with pytest.raises(InputError, match="rope_type 'linear'"):
        check_architecture(scaled, "m")


def test_the_command_names_a_model_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    result = CliRunner().invoke(app, ["export", "nowhere", str(tmp_path / "out.gguf")])
    assert isinstance(result.exception, InputError)
    assert "expected a folder with a model" in str(result.exception)
    result = CliRunner().invoke(app, ["export", "models/pocket-base", str(tmp_path / "out.gguf")])
    assert "model_type 'qwen3'" in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_the_command_exports_a_folder_outside_of_a_project_exactly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = save_llama(tmp_path / "model")
    result = CliRunner().invoke(app, ["export", "model", "out.gguf", "--dtype", "float32"])
    assert result.exit_code == 0, result.exception
    weights, exported = (load_model(Model(path=path), torch.float32)[0] for path in (model.path, "out.gguf"))
    assert all(torch.equal(value, exported.state_dict()[name]) for name, value in weights.state_dict().items())


def test_an_ordinary_added_token_is_no_control_token(tmp_path):
    """llama.cpp's server leaves control tokens out of what it prints: a thought would run into the answer."""
    from gguf import GGUFReader, TokenType

    model = save_llama(tmp_path / "model", spare=1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    tokenizer.save_pretrained(tmp_path / "model")
    export_gguf(model, tmp_path / "out.gguf", "float32")
    kinds = GGUFReader(tmp_path / "out.gguf").fields["tokenizer.ggml.token_type"].contents()
    assert kinds[tokenizer.convert_tokens_to_ids("<think>")] == TokenType.USER_DEFINED
    assert kinds[1] == TokenType.CONTROL
