"""Whole trainings of a tiny model: the step against a plain implementation, interruption, determinism, bad input."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import METHODS, distillation, pairs, train
from tiny import method as method_row
from trainer_runs import (
    ROLLOUTS,
    TIMES,
    make_trainer,
    moved,
    numbers,
    one_step,
    plain_step,
    run,
    same_weights,
    steps,
    teacher_network,
    weights,
)
from transformers.utils import logging as transformers_logging

from raft_tasks.chat import served_template
from raft_tasks.errors import InputError
from raft_tasks.model_loading import load_model, load_tokenizer
from raft_tasks.training.conversations import Encoder, end_of_turn
from raft_tasks.training.step_metrics import COLUMNS


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("micro", [4, 2, 1])
def test_one_step_is_equations_6_to_12(tiny_model, tmp_path, micro, tail):
    method = method_row(
        target="fused",
        distillation=distillation(tail_bucket=tail, kl_weight_max=3.0),
    )
    trainer = make_trainer(tiny_model, tmp_path, method, train(micro_batch_size=micro), ROLLOUTS)
    rows = trainer.train_dataset[:4]
    with torch.no_grad():  # move the student away from the teacher
        for parameter in trainer.student.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    plain = load_model(tiny_model, torch.float32)[0]
    plain.load_state_dict(trainer.student.state_dict())
    l_sft, l_kl, weight = plain_step(plain, teacher_network(trainer.teacher), rows, ROLLOUTS, 8, 1.5, 3.0, tail)

    loss, gradients = one_step(trainer, rows)
    assert trainer.metrics.sums["l_sft"] == pytest.approx(l_sft, abs=1e-5)
    assert trainer.metrics.sums["l_kl"] == pytest.approx(l_kl, abs=1e-5)
    assert trainer.metrics.sums["lambda"] == pytest.approx(weight, rel=1e-4)
    assert loss == pytest.approx(l_sft + weight * l_kl, rel=1e-5)
    for name, parameter in plain.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, atol=2e-5), name


@pytest.mark.parametrize("micro", [4, 2])
@pytest.mark.parametrize("kind", ["dft", "eaft"])
def test_one_step_of_weighted_cross_entropies(tiny_model, tmp_path, kind, micro):
    trainer = moved(make_trainer(tiny_model, tmp_path, METHODS[kind], train(micro_batch_size=micro), []))
    rows = trainer.train_dataset[:4]
    plain = load_model(tiny_model, torch.float32)[0]
    plain.load_state_dict(trainer.student.state_dict())
    losses, weights = [], []
    for row in rows:
        logits = plain(input_ids=torch.tensor([row.prompt_ids + row.completion_ids])).logits[
            0, len(row.prompt_ids) - 1 : -1
        ]
        losses.append(F.cross_entropy(logits, torch.tensor(row.completion_ids), reduction="none"))
        p = logits.topk(20).values.softmax(-1)
        of_entropy = -(p * p.log()).sum(-1) / math.log(20)
        weights.append((losses[-1].neg().exp() if kind == "dft" else of_entropy).detach())
    expected = (torch.cat(weights) * torch.cat(losses)).mean()
    expected.backward()

    loss, gradients = one_step(trainer, rows)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert trainer.metrics.sums["nll"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)
    for name, parameter in plain.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, atol=2e-5), name


@pytest.mark.parametrize("micro", [4, 2])
def test_one_step_without_a_cross_entropy_is_the_teachers_alone(tiny_model, tmp_path, micro):
    """on_policy_sdft with balance 2.5: L = 2.5 L_KL, the same L_KL as raft's at the same rollouts."""
    settings = train(micro_batch_size=micro)
    alone = method_row(
        target="fused", sft=False, distillation=distillation(teacher="answer_conditioned", kl_weight=2.5)
    )
    trainer = moved(make_trainer(tiny_model, tmp_path, alone, settings, ROLLOUTS))
    rows = trainer.train_dataset[:4]
    loss, gradients = one_step(trainer, rows)
    assert loss == pytest.approx(2.5 * trainer.metrics.sums["l_kl"])
    both = {}
    for weight in (1.0, 3.5):  # the difference of two trainings with a cross-entropy is 2.5 L_KL
        row = method_row(target="fused", distillation=distillation(teacher="answer_conditioned", kl_weight=weight))
        other = moved(make_trainer(tiny_model, tmp_path, row, settings, ROLLOUTS))
        both[weight] = one_step(other, rows)[1]
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, both[3.5][name] - both[1.0][name], atol=2e-5), name
    row = trainer.metrics.row(trainer.flops, 1)  # the references never go through the student, the rollouts do
    passed = sum(len(row.prompt_ids) for row in rows) + sum(len(rollout.tokens) for rollout in ROLLOUTS)
    assert row["tokens_per_second"] * row["seconds"] == pytest.approx(passed)


def test_the_teacher_is_frozen_and_in_evaluation_mode(tiny_model, tmp_path):
    trainer = make_trainer(tiny_model, tmp_path, METHODS["raft"], train(), ROLLOUTS)
    before = {name: value.clone() for name, value in teacher_network(trainer.teacher).state_dict().items()}
    one_step(trainer, trainer.train_dataset[:4])
    assert not teacher_network(trainer.teacher).training
    assert trainer.student.training
    assert all(parameter.grad is None for parameter in teacher_network(trainer.teacher).parameters())
    assert all(
        torch.equal(value, before[name]) for name, value in teacher_network(trainer.teacher).state_dict().items()
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_leaves_a_model_that_loads(tiny_model, tmp_path, method, capfd):
    seen, verbosity = [], transformers_logging.get_verbosity()
    result = run(tiny_model, tmp_path, method, progress=lambda done, total, shown: seen.append((done, total)))
    assert capfd.readouterr() == ("", "")
    assert transformers_logging.get_verbosity() == verbosity
    assert seen == [(step, 6) for step in range(1, 7)]
    table = steps(tmp_path)
    assert list(table[0]) == COLUMNS
    assert [int(row["step"]) for row in table] == [1, 2, 3, 4, 5, 6]
    assert float(table[-1]["epoch"]) == 2
    distils, learns = METHODS[method].distillation is not None, METHODS[method].sft
    assert not learns or float(table[-1]["nll"]) < float(table[0]["nll"])
    plain = METHODS[method].sft and METHODS[method].token_weighting == "none"
    for row in table:
        assert (row["lambda"] != "") == distils
        assert (row["l_sft"] != "") == (row["nll"] != "") == learns
        if learns:
            assert (float(row["l_sft"]) == pytest.approx(float(row["nll"]), abs=1e-5)) == plain
        if distils:
            weighed = float(row["lambda"]) * float(row["l_kl"])
            assert float(row["loss"]) == pytest.approx(float(row["l_sft"] or 0) + weighed)
            assert 0 < float(row["student_mass_in_k"]) < 1
            assert 0 < float(row["lambda"]) <= 10
            assert 1 <= float(row["rollout_length"]) <= 6
        assert sum(float(row[name] or 0) for name in TIMES if name.endswith("share")) == pytest.approx(1)
        assert float(row["optimiser_share"]) > 0
        assert float(row["model_flops_utilisation"]) > 0
        probed = distils and int(row["step"]) % 2 == 1
        assert (row["kl_to_base"] != "") == (row["sampling_logprob_difference"] != "") == probed
        assert not probed or float(row["sampling_logprob_difference"]) < 1e-5
        assert row["loss_spike_streak"] == "0"
        assert float(row["tokens_per_second"]) > 0
    assert result["steps"] == 6
    answers = sum(len(pair.answer.split()) + 1 for pair in pairs())
    assert result["answer_tokens_trained"] == (2 * answers if learns else 0)
    assert result["distance"]["total"] > 0
    assert json.loads(json.dumps(result)) == result
    assert (result["lambda"] is not None) == distils

    files = {path.name for path in (tmp_path / "output" / "model").iterdir()}
    whole, adapter = {"model.safetensors", "config.json"}, {"adapter_model.safetensors", "adapter_config.json"}
    assert {"tokenizer.json", "chat_template.jinja", "README.md"} | (
        adapter if METHODS[method].lora else whole
    ) <= files
    network, tokenizer = load_model(
        tiny_model.model_copy(update={"path": str(tmp_path / "output/model")}), torch.float32
    )
    assert tokenizer.chat_template == served_template(load_tokenizer(tiny_model).chat_template, tiny_model.system)
    assert network.config.use_cache
    assert network.config.tie_word_embeddings
    card = (tmp_path / "output" / "model" / "README.md").read_text()
    assert METHODS[method].target in card
    assert "12 (72 answer tokens)" in card
    assert "Not measured by training" in card


def test_identical_teacher_at_step_one_keeps_lambda_bounded(tiny_model, tmp_path):
    result = run(tiny_model, tmp_path, "on_policy")
    first = steps(tmp_path)[0]
    assert abs(float(first["l_kl"])) < 1e-6
    assert float(first["lambda"]) == 10.0
    assert result["lambda"]["max"] == 10.0
    assert first["student_mass_in_k"] == pytest.approx(first["teacher_mass_in_k"])


def test_distillation_pulls_towards_the_teacher(tiny_model, tmp_path):
    """With an overwhelming fixed lambda the student hardly leaves the base; with a tiny one it goes SFT's way."""
    moved = {}
    for weight in (1e-4, 300.0):
        row = method_row(distillation=distillation(teacher="plain", kl_weight=weight))
        result = run(tiny_model, tmp_path / str(weight), row, train(epochs=4))
        moved[weight] = result["final"]
        assert result["lambda"]["min"] == result["lambda"]["max"] == weight
    assert moved[300.0]["l_kl"] < moved[1e-4]["l_kl"]
    assert moved[300.0]["l_sft"] > moved[1e-4]["l_sft"]


def test_same_seed_same_weights_another_seed_others(tiny_model, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(3)  # what the process did before does not matter
        run(tiny_model, tmp_path / name, "raft", seed=seed)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")
    assert not same_weights(tmp_path / "a", tmp_path / "c")
    card = Path("output/model/README.md")
    assert (tmp_path / "a" / card).read_bytes() == (tmp_path / "b" / card).read_bytes()


@pytest.mark.parametrize("method", ["sft", "raft"])
def test_micro_batches_change_nothing_but_rounding(tiny_model, tmp_path, method):
    for micro in (8, 2):
        run(tiny_model, tmp_path / str(micro), method, train(batch_size=8, micro_batch_size=micro, epochs=1))
    whole, parts = numbers(tmp_path / "8"), numbers(tmp_path / "2")
    assert len(whole) == len(parts) == 2  # 8 rows, then 4
    for one, other in zip(whole, parts, strict=True):
        for name in ("l_sft", "loss", "grad_norm", "rollout_length", "student_mass_in_k"):
            if one[name]:
                assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-4, abs=1e-5)


def test_bfloat16_training(tiny_model, tmp_path):
    run(tiny_model, tmp_path / "full", "raft")
    half = tiny_model.model_copy(update={"dtype": "bfloat16"})
    run(half, tmp_path / "half", "raft", train(precision="bfloat16"))
    for one, other in zip(steps(tmp_path / "full")[:2], steps(tmp_path / "half")[:2], strict=True):
        assert float(one["l_sft"]) == pytest.approx(float(other["l_sft"]), rel=0.05)
    assert {value.dtype for value in weights(tmp_path / "half").values()} == {torch.bfloat16}


@pytest.mark.parametrize(("tail", "largest"), [(False, 36), (True, 35)])
def test_top_k_beyond_the_vocabulary(tiny_model, tmp_path, tail, largest):
    row = method_row(distillation=distillation(top_k=512, tail_bucket=tail, teacher="plain", kl_weight="ema"))
    with pytest.raises(InputError, match=f"distillation.top_k is 512, expected at most {largest}"):
        run(tiny_model, tmp_path, row)


def test_the_end_of_turn_token_is_learned(tiny_model, tmp_path):
    """pad == eos in the tokenizer hides the end of turn from losses that mask padding ids; ours counts by length."""
    run(tiny_model, tmp_path, "sft", train(epochs=30, learning_rate=1e-2))
    trained = tiny_model.model_copy(update={"path": str(tmp_path / "output" / "model")})
    network, tokenizer = load_model(trained, torch.float32)
    row = Encoder(tokenizer, 64)(pairs())[1]
    output = network.generate(torch.tensor([row.prompt_ids]), do_sample=False, max_new_tokens=20)[
        0, len(row.prompt_ids) :
    ]
    assert output.tolist() == row.completion_ids
    assert output[-1] == end_of_turn(tokenizer)
