import shutil

import pytest
import torch
from tiny import tiny_llama

from raft_tasks.config import Model
from raft_tasks.errors import InputError
from raft_tasks.model_loading import load_model
from raft_tasks.training.divergence import distance_by, matrix_name, relative_distance, weights_digest


def test_loads_model_and_tokenizer(tiny_model):
    network, tokenizer = load_model(tiny_model, torch.bfloat16)
    assert network.dtype == torch.bfloat16
    assert tokenizer.chat_template


def test_missing_model_says_what_was_tried(tmp_path):
    with pytest.raises(InputError) as caught:
        load_model(Model(path=str(tmp_path / "nowhere"), revision=None, dtype="float32", system=None), torch.float32)
    assert f"there is no folder {tmp_path / 'nowhere'}" in str(caught.value)
    assert "dvc pull" in str(caught.value)


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_half_a_model_folder_names_what_is_missing(tiny_folder, tmp_path, lost):
    shutil.copytree(tiny_folder, tmp_path / "half")
    (tmp_path / "half" / lost).unlink()
    with pytest.raises(InputError, match="without config.json" if lost == "config.json" else "no weights in"):
        load_model(Model(path=str(tmp_path / "half"), revision=None, dtype="float32", system=None), torch.float32)


def test_distance_total_and_per_layer():
    base, trained = tiny_llama(40), tiny_llama(40)
    assert set(relative_distance(trained, base).values()) == {0.0}
    with torch.no_grad():
        trained.model.layers[1].mlp.up_proj.weight.mul_(1.5)
        trained.model.embed_tokens.weight.mul_(1.1)
    distance = relative_distance(trained, base)
    assert set(distance) == {"total", "embed_tokens", "layer 0", "layer 1", "norm"}
    assert distance["embed_tokens"] == pytest.approx(0.1, rel=1e-4)
    assert distance["layer 0"] == 0
    moved = base.model.layers[1].mlp.up_proj.weight.norm() * 0.5
    size = torch.cat([p.flatten() for p in base.model.layers[1].parameters()]).norm()
    assert distance["layer 1"] == pytest.approx((moved / size).item(), rel=1e-4)


def test_distance_of_a_matrix_in_every_layer():
    base, trained = tiny_llama(40), tiny_llama(40)
    with torch.no_grad():
        trained.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    distance = distance_by(trained, base, lambda name: (matrix_name(name), name))
    sizes = [layer.mlp.up_proj.weight.norm().item() for layer in base.model.layers]
    assert distance["up_proj"] == pytest.approx(0.5 * sizes[1] / (sizes[0] ** 2 + sizes[1] ** 2) ** 0.5, rel=1e-4)
    assert distance["model.layers.1.mlp.up_proj.weight"] == pytest.approx(0.5, rel=1e-4)
    assert distance["q_proj"] == distance["model.layers.0.mlp.up_proj.weight"] == 0


def test_digest_tells_weights_apart():
    assert weights_digest(tiny_llama(40)) == weights_digest(tiny_llama(40))
    assert weights_digest(tiny_llama(40)) != weights_digest(tiny_llama(40, seed=1))
