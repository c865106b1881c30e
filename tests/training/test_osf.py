"""OSF: peft's gradients against the definition, the saved model, and what cannot be had with it."""

import pytest
import torch
from tiny import METHODS, distillation, job, method, train
from trainer_runs import Stop, numbers, run, same_weights, stop_at

from raft_tasks.config import Osf
from raft_tasks.errors import InputError
from raft_tasks.model_loading import load_model
from raft_tasks.training.adapters import teacher_mode, with_adapter
from raft_tasks.training.memory import Shape
from raft_tasks.training.preparation import make_pair

IDS = torch.tensor([[5, 6, 7, 8, 9]])
ROW = method(osf=Osf(preserved=0.5))


def loss_of(model):
    logits = model(input_ids=IDS).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, IDS[0, 1:])


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"])  # square, wide, wide
def test_gradients_are_those_of_the_definition(tiny_model, name):
    """W = U_h S_h V_h + U_l S_l V_l; of the gradient of U_l (V_l) what lies in U_h (V_h) is taken away."""
    plain, student = (load_model(tiny_model, torch.float32)[0] for _ in range(2))
    student = with_adapter(student, Osf(preserved=0.25), None)
    assert torch.allclose(student(input_ids=IDS).logits, plain(input_ids=IDS).logits, atol=1e-5)
    loss_of(plain).backward()
    loss_of(student).backward()
    weight = plain.get_submodule(f"model.layers.1.{name}").weight
    left, values, right = torch.linalg.svd(weight.detach(), full_matrices=False)
    kept = int(0.25 * min(weight.shape))
    u_high, v_high, u, v, s = left[:, :kept], right[:kept], left[:, kept:], right[kept:], values[kept:]
    of_u, of_v = weight.grad @ v.T * s, (u * s).T @ weight.grad
    expected = {
        "U_low": of_u - u_high @ (u_high.T @ of_u),
        "S_low": (u.T @ weight.grad @ v.T).diag(),
        "V_low": of_v - (of_v @ v_high.T) @ v_high,
    }
    factors = student.get_submodule(f"base_model.model.model.layers.1.{name}").osf_svd_params["default"]
    for factor, gradient in expected.items():
        assert torch.allclose(factors[factor].grad, gradient, atol=2e-5), factor
    assert all(p.grad is None for n, p in student.named_parameters() if "osf_svd_params" not in n)


def test_the_saved_model_is_the_trained_one_and_its_teacher_the_base(tiny_model, tmp_path):
    result = run(tiny_model, tmp_path, method(osf=Osf(), distillation=distillation(), target="fused"))
    assert result["trainable_parameters"] > 0
    assert result["distance"]["embed_tokens"] == 0 < result["distance"]["total"]
    folder = tmp_path / "output" / "model"
    assert "50% of the singular directions (OSF)" in (folder / "README.md").read_text()
    assert not (folder / "adapter").exists()
    base = load_model(tiny_model, torch.float32)[0]
    student = with_adapter(load_model(tiny_model, torch.float32)[0], Osf(), None)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        moved = student(input_ids=IDS).logits
        expected = base(input_ids=IDS).logits
        assert not torch.allclose(moved, expected, atol=1e-2)
        with teacher_mode(student, False):
            assert torch.allclose(student(input_ids=IDS).logits, expected, atol=1e-5)
        assert torch.allclose(student.merge_and_unload()(input_ids=IDS).logits, moved, atol=1e-4)


def test_the_largest_directions_stay(tiny_model, tmp_path):
    """Along them a step of plain gradient descent changes nothing; AdamW's element-wise steps do, by less than SFT."""
    run(tiny_model, tmp_path / "osf", ROW)
    run(tiny_model, tmp_path / "sft", "sft")
    base, osf, sft = (
        load_model(tiny_model.model_copy(update={"path": str(path)}), torch.float32)[0].model.layers[0].mlp.down_proj
        for path in (tiny_model.path, tmp_path / "osf/output/model", tmp_path / "sft/output/model")
    )
    left, _, right = torch.linalg.svd(base.weight.detach(), full_matrices=False)
    kept = len(right) // 2

    def moved_within(layer):
        change = layer.weight.detach() - base.weight.detach()
        return ((left[:, :kept].T @ change @ right[:kept].T).norm() / change.norm()).item()

    assert moved_within(osf) < 0.5 * moved_within(sft)


def test_interrupted_equals_uninterrupted(tiny_model, tmp_path):
    run(tiny_model, tmp_path / "whole", ROW)
    with pytest.raises(Stop):
        run(tiny_model, tmp_path / "parts", ROW, progress=stop_at(3))
    run(tiny_model, tmp_path / "parts", ROW)
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")


def test_its_frozen_copies_of_the_factors_count_as_memory(tiny_model, tmp_path):
    sizes = [
        Shape.of(
            make_pair(load_model(tiny_model, torch.float32)[0], job(tiny_model, tmp_path, row), "cpu")[0], "float32"
        )
        for row in (METHODS["sft"], ROW)
    ]
    assert sizes[1].weight_bytes > 1.5 * sizes[0].weight_bytes


def test_what_cannot_be_had_with_it(tiny_model, tmp_path):
    sharded = train(launch={"processes": 2, "strategy": "fsdp2"})
    network = load_model(tiny_model, torch.float32)[0]
    with pytest.raises(InputError, match=r"osf with train.launch.strategy fsdp2: expected none or ddp"):
        make_pair(network, job(tiny_model, tmp_path, ROW, train=sharded), torch.device("cpu"))
    with pytest.raises(ValueError, match="lora and osf"):
        method(osf={}, lora={})
    with pytest.raises(ValueError, match="takes LoRA alone"):
        method(osf={}, distillation=distillation(sampler={"kind": "vllm"}))
