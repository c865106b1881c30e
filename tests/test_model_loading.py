"""One loader for generation, benchmarks and training: a model that is not whole is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from raft_tasks.config import Model
from raft_tasks.errors import InputError
from raft_tasks.evaluation.chat_model import ChatModel
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.model_loading import load_model

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


def test_a_quantised_model_is_not_trained(folder):
    edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(InputError, match=r"quantization_config \(gptq\)"):
        USERS["training"](settings(folder))
