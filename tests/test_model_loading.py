"""One loader for generation, benchmarks and training: a model that is not whole is refused."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MambaConfig, Phi3Config

from raft_tasks.config import Model
from raft_tasks.errors import InputError
from raft_tasks.evaluation.chat_model import ChatModel
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.model_files import find_faults, save_network
from raft_tasks.model_loading import load_context_length, load_model, load_tokenizer

BASE = Path(__file__).resolve().parents[1] / "models" / "pocket-base"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(BASE, tmp_path / "model"))


def settings(folder):
    return Model(path=str(folder), revision=None, dtype="float32", system=None)


USERS = {
    "training": lambda model: load_model(model, torch.float32),
    "generation": lambda model: TransformersBackend(model).model,
    "benchmarks": lambda model: ChatModel(model, 4, lambda done: None),
}


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("user", USERS)
def test_the_whole_model_loads(folder, user):
    USERS[user](settings(folder))


@pytest.mark.parametrize("user", USERS)
def test_an_untied_head_that_is_not_in_the_file(folder, user):
    edit(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(InputError, match=r"1 missing \(lm_head\.weight\)"):
        USERS[user](settings(folder))


def test_an_output_head_that_the_config_calls_tied(folder):
    change_weights(folder, lambda weights: weights.update({"lm_head.weight": weights["model.embed_tokens.weight"] + 1}))
    with pytest.raises(InputError, match=r"an output head of its own, and config\.json says that it is the embedding"):
        load_model(settings(folder), torch.float32)


@pytest.mark.parametrize("user", USERS)
def test_a_missing_an_unexpected_and_a_misshapen_weight_are_named_together(folder, user):
    def change(weights):
        del weights["model.layers.0.mlp.up_proj.weight"]
        weights["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2, 2)
        weights["model.norm.weight"] = torch.zeros(3)

    change_weights(folder, change)
    with pytest.raises(InputError, match=r"missing .*up_proj.*unexpected .*layers.9.*another shape .*norm"):
        USERS[user](settings(folder))


@pytest.mark.parametrize("user", USERS)
def test_a_git_lfs_pointer(folder, user):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 8\n")
    with pytest.raises(InputError, match=r"Git LFS pointer.*git lfs pull"):
        USERS[user](settings(folder))


@pytest.mark.parametrize("user", USERS)
def test_weights_that_were_cut(folder, user):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cut or damaged"):
        USERS[user](settings(folder))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"])
def test_a_file_of_json_that_was_cut(folder, name):
    content = (folder / name).read_text()
    (folder / name).write_text(content[: len(content) // 2])
    with pytest.raises(InputError, match=rf"{name} is no JSON object; was it cut\?: copy or download it again"):
        USERS["training"](settings(folder))


def test_a_shard_that_is_missing(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    save_file({name: weights[name] for name in shards["a.safetensors"]}, folder / "a.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"1 shards are not there: \['b\.safetensors'\]: copy or download it again"):
        USERS["training"](settings(folder))


def test_weights_of_eight_bits_without_a_word_in_the_config(folder):
    assert [*find_faults(folder, trained=True)] == []
    change_weights(folder, lambda weights: weights.update({"model.norm.weight": torch.zeros(2, dtype=torch.int8)}))
    [(got, expected, action)] = find_faults(folder, trained=True)
    assert (got, expected) == ("quantised weights (I8)", "weights in float32 or bfloat16")
    assert "was quantised from" in action


def test_a_recurrent_model_reads_without_a_limit(folder):
    edit(folder / "config.json", max_position_embeddings=77)
    assert load_context_length(settings(folder)) == 77
    MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1).save_pretrained(folder)
    assert load_context_length(settings(folder)) == sys.maxsize


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "fp8"},
        {"quant_method": "compressed-tensors"},
        {"quant_method": "mxfp4"},
    ],
)
def test_a_quantised_model_is_not_trained(folder, config):
    edit(folder / "config.json", quantization_config=config)
    with pytest.raises(InputError, match=rf"quantization_config \({config['quant_method']}\).* was quantised from"):
        USERS["training"](settings(folder))


def test_a_padding_token_or_a_vocabulary_outside_the_embedding(folder):
    edit(folder / "config.json", pad_token_id=9999)
    with pytest.raises(InputError, match=r"pad_token_id 9999 beyond the 1346 tokens: correct it in config\.json"):
        USERS["training"](settings(folder))
    edit(folder / "config.json", pad_token_id=0)
    tokenizer = load_tokenizer(settings(folder))
    tokenizer.add_special_tokens({"pad_token": "<|pad2|>"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=r"1 of the tokenizer's 1347 tokens have no row .*<\|pad2\|>.*resize"):
        USERS["training"](settings(folder))


def test_no_tokenizer_files(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer files in .*take those of the model's own folder"):
        USERS["training"](settings(folder))


def test_named_chat_templates(folder):
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    named = [{"name": name, "template": template} for name in ("tool_use", "rag")]
    edit(folder / "tokenizer_config.json", chat_template=named)
    with pytest.raises(InputError, match=r"named \['rag', 'tool_use'\] and none named default.*chat_template\.jinja"):
        load_tokenizer(settings(folder))
    edit(folder / "tokenizer_config.json", chat_template=[*named, {"name": "default", "template": template}])
    assert load_tokenizer(settings(folder)).chat_template == template


SHAPE = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "older"),
    [
        (LlamaConfig(**SHAPE, rope_theta=5000.0), {"rope_theta": 5000.0, "rope_scaling": None}),
        (LlamaConfig(**SHAPE, rope_theta=5e5, rope_scaling=dict(LLAMA3)), {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
        (
            Phi3Config(**SHAPE, partial_rotary_factor=0.5),
            {"rope_theta": 10000.0, "rope_scaling": None, "partial_rotary_factor": 0.5},
        ),
    ],
)
def test_rotary_positions_are_written_for_older_programs_too(tmp_path, config, older):
    network = AutoModelForCausalLM.from_config(config)
    expected = network.config.to_dict()["rope_parameters"]
    save_network(network, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {key: value for key, value in written.items() if key in ("rope_theta", "rope_scaling", *older)} == older
    assert written["rope_parameters"] == expected
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.to_dict()["rope_parameters"] == expected
    tokens = torch.arange(1, 31).unsqueeze(0)
    assert torch.equal(loaded(tokens).logits, network(tokens).logits)
