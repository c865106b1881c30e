"""Whole trainings of a tiny model: the step against a plain implementation, interruption, determinism, bad input."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny import METHODS, TEACHER, distillation, job, pairs, train
from tiny import method as method_row
from transformers.utils import logging as transformers_logging

from raft_tasks.config import LossSpike
from raft_tasks.errors import InputError
from raft_tasks.model_loading import load_model
from raft_tasks.seeds import derive_seed
from raft_tasks.training.checkpoints import CheckpointError
from raft_tasks.training.conversations import ConversationError, Encoder, end_of_turn
from raft_tasks.training.interruption import TrainingInterrupted
from raft_tasks.training.preparation import TrainingData, teacher_turn, training_arguments
from raft_tasks.training.probe import StaleRollouts
from raft_tasks.training.rollouts import Rollout, RolloutSampling
from raft_tasks.training.step_metrics import COLUMNS, TrainingDiverged
from raft_tasks.training.teacher import FrozenCopy
from raft_tasks.training.train import train_model
from raft_tasks.training.trainer import RaftTrainer
from raft_tasks.training.transformers_rollouts import GenerateSampler

TIMES = {"seconds", "tokens_per_second", "model_flops_utilisation"} | {c for c in COLUMNS if c.endswith("_share")}


def run(model, folder, method="raft", settings=None, seed=0, progress=None, rows=None, template=TEACHER):
    changes = {"pairs": rows or pairs(), "train": settings or train(), "template_text": template, "seed": seed}
    return train_model(job(model, folder, method, **changes), progress)


def weights(folder):
    return load_file(folder / "output" / "model" / "model.safetensors")


def same_weights(a, b):
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def steps(folder):
    with (folder / "output" / "steps.csv").open(newline="") as table:
        return list(csv.DictReader(table))


def numbers(folder):
    """steps.csv without what a clock says."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in steps(folder)]


# --- one optimiser step against a plain implementation ---


def make_trainer(model, folder, method, settings, rollouts):
    student, tokenizer = load_model(model, torch.float32)
    teacher = FrozenCopy(load_model(model, torch.float32)[0]) if method.distillation else None
    limit = method.distillation.rollout_max_new_tokens if method.distillation else 0
    if method.distillation:  # these rollouts were never sampled
        method = method.model_copy(
            update={"distillation": method.distillation.model_copy(update={"sampling_logprob_tolerance": 9.0})}
        )
    rows = Encoder(tokenizer, settings.max_length, teacher_turn(method, TEACHER), limit)(pairs())
    row = job(model, folder, method, train=settings, output=folder, checkpoints=folder)
    return RaftTrainer(
        row, student, teacher, TrainingData(tokenizer, rows), training_arguments(row, len(rows)),
        sampler=lambda prompts, seeds: rollouts[: len(prompts)],
    )  # fmt: skip


def one_step(trainer, rows):
    loss = trainer.training_step(trainer.model, rows).item()
    return loss, {name: parameter.grad for name, parameter in trainer.student.named_parameters()}


def plain_step(student, teacher, rows, rollouts, k, temperature, bound, tail):
    """Eqs. 6-12 written down plainly: full logits, row by row, float32, autograd of L_SFT + lambda L_KL."""
    losses = []
    for row in rows:
        logits = student(input_ids=torch.tensor([row.prompt_ids + row.completion_ids])).logits[0]
        losses.append(
            F.cross_entropy(logits[len(row.prompt_ids) - 1 : -1], torch.tensor(row.completion_ids), reduction="none")
        )
    l_sft = torch.cat(losses).mean()
    samples = []
    for row, z in zip(rows, [rollout.tokens for rollout in rollouts], strict=True):
        v = student(input_ids=torch.tensor([row.prompt_ids + z])).logits[0, len(row.prompt_ids) - 1 : -1]
        with torch.no_grad():
            u = teacher(input_ids=torch.tensor([row.teacher_prompt_ids + z])).logits[
                0, len(row.teacher_prompt_ids) - 1 : -1
            ]
        q, p = F.softmax(u / temperature, -1), F.softmax(v / temperature, -1)
        ids = q.topk(k).indices
        q, p = q.gather(-1, ids), p.gather(-1, ids)
        if tail:
            q, p = (torch.cat([side, 1 - side.sum(-1, keepdim=True)], -1) for side in (q, p))
        else:
            q, p = (side / side.sum(-1, keepdim=True) for side in (q, p))
        samples.append((q * (q.log() - p.log())).sum(-1).mean())
    l_kl = temperature**2 * torch.stack(samples).mean()
    weight = min((l_sft / l_kl).item(), bound)
    (l_sft + weight * l_kl).backward()
    return l_sft.item(), l_kl.item(), weight


def rollout(tokens, truncated):
    return Rollout(tokens, truncated, [-1.0] * len(tokens))


ROLLOUTS = [
    rollout([7, 8, 9, 2], False),
    rollout([2], False),
    rollout([11, 12, 13, 14, 15, 16], True),
    rollout([20, 2], False),
]


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
    l_sft, l_kl, weight = plain_step(plain, trainer.teacher.network, rows, ROLLOUTS, 8, 1.5, 3.0, tail)

    loss, gradients = one_step(trainer, rows)
    assert trainer.metrics.sums["l_sft"] == pytest.approx(l_sft, abs=1e-5)
    assert trainer.metrics.sums["l_kl"] == pytest.approx(l_kl, abs=1e-5)
    assert trainer.metrics.sums["lambda"] == pytest.approx(weight, rel=1e-4)
    assert loss == pytest.approx(l_sft + weight * l_kl, rel=1e-5)
    for name, parameter in plain.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, atol=2e-5), name


def moved(trainer):
    """The student away from the teacher."""
    with torch.no_grad():
        for parameter in trainer.student.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return trainer


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


def test_the_teacher_is_frozen_and_in_evaluation_mode(tiny_model, tmp_path):
    trainer = make_trainer(tiny_model, tmp_path, METHODS["raft"], train(), ROLLOUTS)
    before = {name: value.clone() for name, value in trainer.teacher.network.state_dict().items()}
    one_step(trainer, trainer.train_dataset[:4])
    assert not trainer.teacher.network.training
    assert trainer.student.training
    assert all(parameter.grad is None for parameter in trainer.teacher.network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in trainer.teacher.network.state_dict().items())


# --- whole trainings ---


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
    assert result["answer_tokens_trained"] == 2 * sum(len(pair.answer.split()) + 1 for pair in pairs())
    assert result["distance"]["total"] > 0
    assert json.loads(json.dumps(result)) == result
    assert (result["lambda"] is not None) == distils

    files = {path.name for path in (tmp_path / "output" / "model").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "README.md"} <= files
    network, tokenizer = load_model(
        tiny_model.model_copy(update={"path": str(tmp_path / "output/model")}), torch.float32
    )
    assert tokenizer.chat_template
    assert network.config.use_cache
    assert network.config.tie_word_embeddings
    card = (tmp_path / "output" / "model" / "README.md").read_text()
    assert METHODS[method].answers in card
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


# --- interruption ---


class Stop(Exception):
    pass


def stop_at(step):
    def progress(done, total, shown):
        if done == step:
            raise Stop

    return progress


@pytest.mark.parametrize("method", ["sft", "raft"])
@pytest.mark.parametrize("micro", [4, 2])
def test_interrupted_equals_uninterrupted(tiny_model, tmp_path, method, micro):
    """Stopped at step 3 (checkpoint 2, in the middle of an epoch) and again at step 5 (checkpoint 4)."""
    settings = train(micro_batch_size=micro)
    run(tiny_model, tmp_path / "whole", method, settings)
    for step in (3, 5):
        with pytest.raises(Stop):
            run(tiny_model, tmp_path / "parts", method, settings, progress=stop_at(step))
        (tmp_path / "parts" / "output" / "steps.csv").unlink()  # the caller's temporary folder is gone
        torch.rand(7)
    result = run(tiny_model, tmp_path / "parts", method, settings)
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")
    assert result["steps"] == 6


def test_interrupted_at_the_end_of_an_epoch_and_after_the_last_step(tiny_model, tmp_path):
    settings = train(checkpoint_steps=3)
    run(tiny_model, tmp_path / "whole", "raft", settings)
    with pytest.raises(Stop):
        run(tiny_model, tmp_path / "parts", "raft", settings, progress=stop_at(4))
    run(tiny_model, tmp_path / "parts", "raft", settings)
    again = run(tiny_model, tmp_path / "parts", "raft", settings, progress=stop_at(1))  # nothing is left to train
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")
    assert again["steps"] == 6


def test_dropout_draws_the_same_after_a_resumption(tiny_folder, tmp_path):
    from tiny import save_tiny

    from raft_tasks.config import Model

    model = Model(
        path=str(save_tiny(tmp_path / "model", attention_dropout=0.3)), revision=None, dtype="float32", system=None
    )
    run(model, tmp_path / "whole", "raft")
    with pytest.raises(Stop):
        run(model, tmp_path / "parts", "raft", progress=stop_at(3))
    run(model, tmp_path / "parts", "raft")
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


def test_a_half_written_checkpoint_is_skipped(tiny_model, tmp_path):
    run(tiny_model, tmp_path / "whole", "raft")
    with pytest.raises(Stop):
        run(tiny_model, tmp_path / "parts", "raft", progress=stop_at(5))
    newest = tmp_path / "parts" / "ck" / "checkpoint-4"
    assert (newest / "complete.json").exists()
    (newest / "complete.json").unlink()
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:100])
    run(tiny_model, tmp_path / "parts", "raft")
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tiny import job
from raft_tasks.config import Model
from raft_tasks.training import trainer
from raft_tasks.training.train import train_model

def kill_while_saving(self, folder):
    (Path(folder) / "rng_state.pth").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

def progress(done, total, shown):
    if done == 4:
        trainer.RaftTrainer._save_rng_state = kill_while_saving

folder = Path(sys.argv[2])
model = Model(path=sys.argv[1], revision=None, dtype="float32", system=None)
train_model(job(model, folder), progress)
"""


def test_sigkill_while_saving_a_checkpoint(tiny_model, tmp_path):
    run(tiny_model, tmp_path / "whole", "raft")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, tiny_model.path, str(tmp_path / "parts"), str(Path(__file__).parent)],
        cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "parts" / "ck" / "checkpoint-4" / "rng_state.pth").read_bytes() == b"half"
    run(tiny_model, tmp_path / "parts", "raft")
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")


def test_a_checkpoint_that_cannot_be_written(tiny_model, tmp_path, monkeypatch):
    run(tiny_model, tmp_path / "whole", "sft")

    def full(self, folder):
        if folder.endswith("checkpoint-4"):
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 5620480 vs 5620372")

    monkeypatch.setattr(RaftTrainer, "_save_rng_state", full)
    with pytest.raises(CheckpointError, match=r"ck: a checkpoint could not .*unexpected pos.* \d+ MB are free there"):
        run(tiny_model, tmp_path / "parts", "sft")
    monkeypatch.undo()
    run(tiny_model, tmp_path / "parts", "sft")
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


def test_only_two_checkpoints_are_kept(tiny_model, tmp_path):
    run(tiny_model, tmp_path, "sft", train(checkpoint_steps=1))
    assert {path.name for path in (tmp_path / "ck").iterdir()} == {"checkpoint-5", "checkpoint-6"}


@pytest.mark.parametrize("change", ["data", "settings", "method"])
def test_checkpoints_of_another_training_are_refused(tiny_model, tmp_path, change):
    run(tiny_model, tmp_path, "sft")
    with pytest.raises(CheckpointError, match="other data, settings or base weights"):
        run(
            tiny_model, tmp_path, "raft" if change == "method" else "sft",
            train(learning_rate=1e-4) if change == "settings" else None,
            rows=pairs()[:-1] if change == "data" else None,
        )  # fmt: skip


# --- what goes wrong ---


def test_divergence_stops_names_the_rows_and_keeps_the_batch(tiny_model, tmp_path):
    with pytest.raises(
        TrainingDiverged, match=r"at step \d+, rows row-\d+, row-\d+, .* earlier checkpoints are intact"
    ):
        run(tiny_model, tmp_path, "raft", train(learning_rate=1e30, warmup_ratio=0.0, checkpoint_steps=1, epochs=30))
    [kept] = (tmp_path / "ck").glob("diverged-step-*.json")
    batch = json.loads(kept.read_text())
    assert len(batch["rows"]) == 4
    assert batch["rows"][0]["id"].startswith("row-")
    assert not math.isfinite(float(batch["value"]))
    for checkpoint in (tmp_path / "ck").glob("checkpoint-*"):
        assert int(checkpoint.name.split("-")[1]) < batch["step"]
        assert all(value.isfinite().all() for value in load_file(checkpoint / "model.safetensors").values())


def test_rows_that_do_not_fit_stop_before_training(tiny_model, tmp_path):
    with pytest.raises(ConversationError, match=r"row-1: teacher's prompt \+ rollout has 36 tokens"):
        run(tiny_model, tmp_path, "raft", train(max_length=30))
    assert not (tmp_path / "output").exists()
    assert run(tiny_model, tmp_path, "sft", train(max_length=30))["steps"] == 6  # without a teacher they fit


def test_max_length_is_also_what_the_model_can_read(tmp_path):
    from tiny import save_tiny

    from raft_tasks.config import Model

    model = Model(
        path=str(save_tiny(tmp_path / "m", max_position_embeddings=16)), revision=None, dtype="float32", system=None
    )
    with pytest.raises(ConversationError, match="A sequence may have 16 tokens"):
        run(model, tmp_path, "sft", train(max_length=1000))


@pytest.mark.parametrize(("tail", "largest"), [(False, 36), (True, 35)])
def test_top_k_beyond_the_vocabulary(tiny_model, tmp_path, tail, largest):
    row = method_row(distillation=distillation(top_k=512, tail_bucket=tail, teacher="plain", kl_weight="ema"))
    with pytest.raises(InputError, match=f"distillation.top_k is 512, expected at most {largest}"):
        run(tiny_model, tmp_path, row)


def test_a_broken_teacher_template_stops_before_training(tiny_model, tmp_path):
    with pytest.raises(ConversationError, match="expected Jinja over"):
        run(tiny_model, tmp_path, "raft", template="{{ context }}")
    assert run(tiny_model, tmp_path, "on_policy", template="")["steps"] == 6  # it is not this method's business


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


# --- long runs: the buffer of rollouts, signals, a loss that runs away, the probe ---


def with_distill(method, **changes):
    return METHODS[method].model_copy(update={"distillation": distillation(**changes)})


def test_a_buffer_serves_several_steps_and_ends_with_its_epoch(tiny_model, tmp_path):
    """Two epochs of three steps, two steps to a buffer: sampled at steps 0, 2 | 3, 5; seeds are those of one step."""
    calls = []

    class Watched(GenerateSampler):
        def __call__(self, prompts, seeds):
            calls.append((len(prompts), set(seeds)))
            return super().__call__(prompts, seeds)

    method = with_distill("raft", rollout_steps=2)
    trainer = make_trainer(tiny_model, tmp_path, method, train(), [])
    trainer.rollout_buffer.sampler = Watched(trainer.student, RolloutSampling([3], 1.0, 6), 64)
    trainer.train()
    assert [number for number, _ in calls] == [8, 4, 8, 4]
    assert calls[0][1] >= {derive_seed(f"rollouts/0/0/{row.id}") for row in trainer.rows} & calls[0][1]
    drawn = set().union(*(seeds for _, seeds in calls))
    assert drawn <= {derive_seed(f"rollouts/0/{step}/{row.id}") for step in range(6) for row in trainer.rows}
    assert len(drawn) == 24
    for step, row in enumerate(trainer.steps()):  # probed at fresh rollouts alone, here at all of them
        assert (
            (row["sampling_logprob_difference"] is not None)
            == (row["kl_to_base"] is not None)
            == (step in (0, 2, 3, 5))
        )
        assert row["sampling_logprob_difference"] is None or row["sampling_logprob_difference"] < 1e-5


@pytest.mark.parametrize("stop", [3, 5])
def test_interrupted_in_the_middle_of_a_buffer(tiny_model, tmp_path, stop):
    """Checkpoints 2 and 4 of three steps an epoch: after step 2 and after step 1 of their buffers of three."""
    method = with_distill("raft", rollout_steps=3)
    run(tiny_model, tmp_path / "whole", method)
    with pytest.raises(Stop):
        run(tiny_model, tmp_path / "parts", method, progress=stop_at(stop))
    run(tiny_model, tmp_path / "parts", method)
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_after_the_step_and_the_next_run_goes_on(tiny_model, tmp_path, number):
    settings = train(checkpoint_steps=100)
    run(tiny_model, tmp_path / "whole", "raft", settings)
    before = signal.getsignal(number)

    def interrupt(done, total, shown):
        if done == 3:
            os.kill(os.getpid(), number)

    name = signal.Signals(number).name
    with pytest.raises(TrainingInterrupted, match=f"stopped by {name} after step 4 of 6; its checkpoint is complete"):
        run(tiny_model, tmp_path / "parts", "raft", settings, progress=interrupt)
    assert signal.getsignal(number) is before
    assert [path.name for path in (tmp_path / "parts" / "ck").iterdir()] == ["checkpoint-4"]
    run(tiny_model, tmp_path / "parts", "raft", settings)
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")


def test_a_signal_in_the_last_step_changes_nothing(tiny_model, tmp_path):
    settings = train(epochs=1)
    result = run(
        tiny_model, tmp_path, "sft", settings,
        progress=lambda done, total, shown: os.kill(os.getpid(), signal.SIGTERM) if done == 2 else None,
    )  # fmt: skip
    assert result["steps"] == 3


def test_a_second_signal_ends_the_process_as_ever(tiny_model, tmp_path):
    def interrupt(done, total, shown):
        for _ in range(2):  # two at once would count as one
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tiny_model, tmp_path, "sft", progress=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_loss_that_runs_away_stops_and_keeps_the_batch(tiny_model, tmp_path):
    """A learning rate that throws the model far away, to a finite loss."""
    settings = train(
        learning_rate=3.0, warmup_ratio=0.9, epochs=40, max_grad_norm=1e6, checkpoint_steps=1000,
        loss_spike=LossSpike(factor=3.0, steps=4),
    )  # fmt: skip
    with pytest.raises(TrainingDiverged, match="the loss has been above its bound for 4 steps: it is "):
        run(tiny_model, tmp_path, "sft", settings)
    [kept] = (tmp_path / "ck").glob("diverged-step-*.json")
    assert len(json.loads(kept.read_text())["rows"]) == 4
    assert [row["loss_spike_streak"] for row in steps(tmp_path)[-3:]] == ["1", "2", "3"]


def test_rollouts_of_stale_weights_are_found_out(tiny_model, tmp_path):
    """The sampler keeps the weights of the start, as a vLLM server would that never reads new ones."""
    method = with_distill("raft")
    trainer = make_trainer(tiny_model, tmp_path, method, train(learning_rate=0.03), [])
    trainer.distillation = method.distillation
    stale = load_model(tiny_model, torch.float32)[0]
    trainer.rollout_buffer.sampler = GenerateSampler(stale, RolloutSampling([3], 1.0, 6), 64)
    with pytest.raises(StaleRollouts, match=r"step 3: .*sampler \(generate\).* stale weights"):
        trainer.train()
    assert trainer.steps()[0]["sampling_logprob_difference"] < 1e-5
