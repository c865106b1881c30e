"""The forgetting curve: its numbers against plain ones, the checkpoint that it chooses, resumption, the early stop."""

import csv
import os
import signal
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from tiny import ANCHORED, LORA, METHODS, job, method, pairs, save_anchors, some_anchors, train
from trainer_runs import Stop, numbers, same_weights, stop_at

from raft_tasks.chat import prompt_ids
from raft_tasks.checks import score_answer
from raft_tasks.config import Curve, Model
from raft_tasks.errors import InputError, Interrupted
from raft_tasks.model_loading import load_model, load_tokenizer
from raft_tasks.schemas import Example
from raft_tasks.training import train as train_module
from raft_tasks.training.anchor_logits import AnchorLogits, encode_anchors
from raft_tasks.training.conversations import Encoder
from raft_tasks.training.forgetting import best_point, load_curve_data, preference
from raft_tasks.training.interruption import Interruption
from raft_tasks.training.job import CurveInputs
from raft_tasks.training.train import train_model

CURVE = Curve(steps=2, rows=5, sets=["held_out"], answer_max_new_tokens=6)


def examples():
    return [
        Example(
            id=pair.id, domain="d", question=pair.question, answer=pair.answer, source=pair.id, split="validation",
            expected=[pair.answer.split()[-2 if pair.answer.endswith(".") else -1]],
        )
        for pair in pairs()[:5]
    ]  # fmt: skip


def run(model, folder, anchors, curve=CURVE, row="sft", progress=None, **changes):
    settings = train(curve=curve, **changes)
    inputs = CurveInputs(examples(), {"held_out": anchors}) if curve else None
    return train_model(job(model, folder, row, train=settings, curve=inputs), progress)


def curve_of(folder):
    with (folder / "output" / "curve.csv").open(newline="") as table:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(table)]


def measures(points):
    return [{name: value for name, value in point.items() if name != "seconds"} for point in points]


@pytest.fixture(scope="module")
def anchors(tiny_folder, tmp_path_factory):
    return save_anchors(tmp_path_factory.mktemp("sets") / "held_out", tiny_folder)


def plain_measures(folder, base_folder, k=8):
    """Full logits, a row at a time, of the model that was saved."""
    trained, tokenizer = load_model(Model(path=str(folder), revision=None, dtype="float32", system=None), torch.float32)
    base = load_model(Model(path=str(base_folder), revision=None, dtype="float32", system=None), torch.float32)[0]

    def logits(model, row):
        with torch.no_grad():
            whole = model(input_ids=torch.tensor([row.prompt_ids + row.completion_ids])).logits[0]
        return whole[len(row.prompt_ids) - 1 : -1].double()

    terms = []
    for row in encode_anchors(some_anchors(), Encoder(tokenizer, 64))[:5]:
        p = logits(base, row).softmax(-1)
        ids = p.topk(k).indices
        p, q = (side.gather(-1, ids) for side in (p, logits(trained, row).softmax(-1)))
        p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
        terms.append((p * (p.log() - q.log())).sum(-1))
    losses, right = [], []
    for example in examples():
        prompt = prompt_ids(tokenizer, None, example.question)
        end = tokenizer.convert_tokens_to_ids("<end>")
        answer = [*tokenizer(example.answer, add_special_tokens=False)["input_ids"], end]
        with torch.no_grad():
            whole = trained(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].double()
        losses.append(F.cross_entropy(whole, torch.tensor(answer)))
        greedy = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                token = int(trained(input_ids=torch.tensor([greedy])).logits[0, -1].argmax())
            if token == end:
                break
            greedy.append(token)
        text = tokenizer.decode(greedy[len(prompt) :], skip_special_tokens=True)
        right.append(score_answer(text, example.answer, example.expected, [])["acc"])
    return torch.cat(terms).mean().item(), torch.stack(losses).mean().item(), sum(right) / len(right)


@pytest.mark.parametrize("micro", [4, 2])
def test_the_last_point_is_what_the_saved_model_gives(tiny_model, tiny_folder, tmp_path, anchors, micro):
    summary = run(tiny_model, tmp_path, anchors, micro_batch_size=micro, learning_rate=3e-2)
    points = curve_of(tmp_path)
    assert [point["step"] for point in points] == [0, 2, 4, 6]
    assert points[0]["kl_held_out"] == pytest.approx(0, abs=1e-5)
    kl, loss, accuracy = plain_measures(tmp_path / "output" / "model", tiny_folder)
    assert kl > 0.01
    assert points[-1]["kl_held_out"] == pytest.approx(kl, rel=2e-3)  # stored logits are float16
    assert points[-1]["domain_loss"] == pytest.approx(loss, rel=1e-5)
    assert points[-1]["domain_accuracy"] == accuracy > points[0]["domain_accuracy"]
    assert summary["curve"]["step"] == 6
    assert summary["curve"]["time_share"] == pytest.approx(
        sum(point["seconds"] for point in points) / summary["seconds"]
    )


@pytest.mark.parametrize("row", ["sft", "raft", "sft_lora"])
def test_the_curve_changes_no_step(tiny_model, tmp_path, anchors, row):
    dropped = {"sft_lora": method(lora=LORA.model_copy(update={"dropout": 0.2}))}.get(row, METHODS[row])
    run(tiny_model, tmp_path / "with", anchors, row=dropped)
    run(tiny_model, tmp_path / "without", anchors, curve=None, row=dropped)
    assert same_weights(tmp_path / "with", tmp_path / "without")
    assert numbers(tmp_path / "with") == numbers(tmp_path / "without")
    assert (tmp_path / "without" / "output" / "curve.csv").read_text().split() == ["step"]


BEST = Curve(steps=1, rows=5, answer_max_new_tokens=6, checkpoint="best", kl_max=0.5)


@pytest.mark.parametrize(("row", "kl_max"), [("sft", 0.5), ("sft_lora", 0.2)])
def test_the_best_checkpoint_is_kept(tiny_model, tmp_path, anchors, row, kl_max):
    curve = BEST.model_copy(update={"kl_max": kl_max})
    summary = run(tiny_model, tmp_path / "best", anchors, curve, row, learning_rate=3e-2)
    points = curve_of(tmp_path / "best")
    step = int(summary["curve"]["step"])
    assert 0 < step < 6
    assert points[step] == max(points, key=lambda point: preference(point, kl_max))
    assert 0.02 < points[step]["kl_held_out"] <= kl_max < points[-1]["kl_held_out"]
    kept = measure_again(tiny_model, tmp_path / "best", anchors)
    assert kept == pytest.approx(points[step]["kl_held_out"], rel=1e-3, abs=1e-6)
    assert summary["curve"]["within_kl_max"]


def measure_again(model, folder, anchors):
    """The KL on the curve's anchors of the model that was saved."""
    trained, tokenizer = load_model(model.model_copy(update={"path": str(folder / "output" / "model")}), torch.float32)
    rows = encode_anchors(some_anchors(), Encoder(tokenizer, 64))[:5]
    stored = AnchorLogits.load(anchors / "base.safetensors", encode_anchors(some_anchors(), Encoder(tokenizer, 64)))
    base = stored.top_k_at(range(5), torch.device("cpu"))
    with torch.no_grad():
        logits = torch.cat(
            [
                trained(input_ids=torch.tensor([row.prompt_ids + row.completion_ids])).logits[
                    0, len(row.prompt_ids) - 1 : -1
                ]
                for row in rows
            ]
        ).gather(-1, base.ids.long())
    p = base.logits.softmax(-1)
    return (p * (p.log() - logits.log_softmax(-1))).sum(-1).mean().item()


def test_interrupted_equals_uninterrupted(tiny_model, tmp_path, anchors):
    whole = run(tiny_model, tmp_path / "whole", anchors, BEST, learning_rate=3e-2)
    for step in (3, 5):
        with pytest.raises(Stop):
            run(tiny_model, tmp_path / "parts", anchors, BEST, progress=stop_at(step), learning_rate=3e-2)
    parts = run(tiny_model, tmp_path / "parts", anchors, BEST, learning_rate=3e-2)
    assert measures(curve_of(tmp_path / "whole")) == measures(curve_of(tmp_path / "parts"))
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert whole["curve"]["step"] == parts["curve"]["step"]


def test_a_signal_before_the_first_measurement_of_a_resumed_training(tiny_model, tmp_path, anchors, monkeypatch):
    curve = BEST.model_copy(update={"steps": 4})
    with pytest.raises(Stop):  # after the weights of step 4 were kept, before its checkpoint
        run(tiny_model, tmp_path, anchors, curve, progress=stop_at(4), checkpoint_steps=2)
    monkeypatch.setattr(Interruption, "received_anywhere", lambda self, args: "SIGTERM")
    with pytest.raises(Interrupted, match="SIGTERM"):
        run(tiny_model, tmp_path, anchors, curve, checkpoint_steps=2)


def test_an_early_stop(tiny_model, tmp_path, anchors):
    curve = BEST.model_copy(update={"patience": 2})
    summary = run(tiny_model, tmp_path, anchors, curve, learning_rate=3e-2)
    assert summary["steps"] == summary["curve"]["step"] + 2 < 6
    assert len(curve_of(tmp_path)) == summary["steps"] + 1
    answers = [len(pair.answer.split()) + 1 for pair in pairs()]
    assert summary["answer_tokens_trained"] == round(summary["steps"] / 3 * sum(answers))


@pytest.mark.parametrize("disturbed", ["after", "within"])
def test_a_disturbed_early_stop_comes_again_at_its_step(tiny_model, tmp_path, anchors, monkeypatch, disturbed):
    """One step more would have been better: a run that resumed from the last one would release another model."""
    curve = BEST.model_copy(update={"patience": 1, "kl_max": None})
    settings = {"learning_rate": 5e-3, "checkpoint_steps": 1}
    whole = run(tiny_model, tmp_path / "whole", anchors, curve, **settings)
    last = whole["steps"]
    assert whole["curve"]["step"] < last < 6

    def interrupt(done, total, shown):
        if disturbed == "within" and done == last - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    if disturbed == "after":
        monkeypatch.setattr(train_module, "save_model", Mock(side_effect=OSError("full")))
        with pytest.raises(OSError, match="full"):
            run(tiny_model, tmp_path / "parts", anchors, curve, **settings)
        monkeypatch.undo()
    parts = run(tiny_model, tmp_path / "parts", anchors, curve, progress=interrupt, **settings)
    assert (parts["steps"], parts["curve"]["step"]) == (last, whole["curve"]["step"])
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


def point(step, accuracy, kl, other=0.0):
    return {"step": step, "domain_accuracy": accuracy, "domain_loss": 1.0, "kl_a": kl, "kl_b": other}


def test_domain_first_within_the_bound():
    points = [point(0, 0.1, 0.0), point(1, 0.7, 0.04), point(2, 0.7, 0.03), point(3, 0.7, 0.03), point(4, 0.9, 0.2)]
    assert best_point(points, 0.05)["step"] == 2
    assert best_point(points, 0.3)["step"] == 4
    assert best_point([*points, point(5, 0.9, 0.01, other=0.06)], 0.05)["step"] == 2  # the larger of the sets counts
    assert best_point([point(1, 0.9, 0.4), point(2, 0.5, 0.2)], 0.05)["step"] == 2  # beyond it: the closest
    assert best_point([*points, point(5, 0.9, 0.3)], None)["step"] == 4  # without a bound, ties: the smaller KL


@pytest.mark.parametrize("kl_max", [None, 1e-9])
def test_the_base_is_never_the_best_checkpoint(tiny_model, tmp_path, anchors, kl_max):
    """Before the first step the KL is 0, so no bound excludes that point."""
    curve = BEST.model_copy(update={"kl_max": kl_max, "steps": 2})
    summary = run(tiny_model, tmp_path, anchors, curve, learning_rate=3e-2)
    assert summary["curve"]["step"] > 0
    assert summary["curve"]["within_kl_max"] == (kl_max is None)
    assert measure_again(tiny_model, tmp_path, anchors) > 1e-4


def test_anchors_that_are_learned_from_are_left_out(tiny_model, tiny_folder, tmp_path, anchors):
    learned = save_anchors(tmp_path / "learned", tiny_folder)
    row = method(anchors=ANCHORED)
    inputs = CurveInputs(examples(), {"held_out": anchors})
    given = job(tiny_model, tmp_path, row, train=train(curve=CURVE), curve=inputs, anchors=learned)
    with pytest.raises(InputError, match="got 8 anchors of 'held_out', each with the prompt of one that is learned"):
        train_model(given)


def test_validation_rows_keep_their_history_and_those_that_do_not_fit_are_counted(tiny_model, tmp_path, anchors):
    row = examples()[0]
    turns = [{"role": "user", "content": row.question}, {"role": "assistant", "content": row.answer}]
    chosen = [row, row.model_copy(update={"history": turns}), row.model_copy(update={"question": "what " * 100})]
    inputs = CurveInputs(chosen, {"held_out": anchors})
    tokenizer = load_tokenizer(tiny_model)
    data = load_curve_data(job(tiny_model, tmp_path, "sft", train=train(curve=CURVE), curve=inputs), tokenizer, 64)
    assert [encoded.prompt_ids for _, encoded in data.validation] == [
        prompt_ids(tokenizer, None, row.question),
        prompt_ids(tokenizer, None, [*turns, {"role": "user", "content": row.question}]),
    ]
    assert data.rows_left_out == 1


def test_wrong_settings_and_data(tiny_model, tmp_path, anchors):
    with pytest.raises(ValidationError, match="expected a number"):
        Curve(checkpoint="best")
    with pytest.raises(ValidationError, match="patience 2 with checkpoint 'last'"):
        Curve(patience=2)
    with pytest.raises(ValidationError, match=r"kl_max 0.1 with checkpoint 'last'"):
        Curve(kl_max=0.1)
    with pytest.raises(ValidationError, match="fsdp2"):
        train(curve=Curve(), launch={"processes": 2, "strategy": "fsdp2"})
    with pytest.raises(InputError, match="expected both or neither"):
        train_model(job(tiny_model, tmp_path, "sft", train=train(curve=CURVE)))
    with pytest.raises(InputError, match="no validation row"):
        train_model(
            job(tiny_model, tmp_path, "sft", train=train(curve=CURVE), curve=CurveInputs([], {"held_out": anchors}))
        )
