"""The term that holds the student to the base: what is kept of the base, which anchors a step has, the loss itself."""

import csv
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import ANCHORED, METHODS, job, save_anchors, some_anchors, train
from trainer_runs import ROLLOUTS, make_trainer, one_step, same_weights

from raft_tasks.config import Method
from raft_tasks.errors import InputError
from raft_tasks.model_loading import load_model
from raft_tasks.training.anchor_logits import (
    LOGITS,
    AnchorLogits,
    encode_anchors,
    is_encodable,
    load_anchors,
)
from raft_tasks.training.conversations import Encoder
from raft_tasks.training.train import train_model

K = 8


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A set as the stage writes it."""
    return save_anchors(tmp_path / "set", tiny_folder, K)


def base_logits(model, row):
    """The base's logits at the positions that predict the answer, one by one, [T, V]."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([row.prompt_ids + row.completion_ids])).logits[
            0, len(row.prompt_ids) - 1 : -1
        ]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_what_is_kept_is_what_the_base_says(tiny_model, batch_size):
    base, tokenizer = load_model(tiny_model, torch.float32)
    rows = encode_anchors(some_anchors(), Encoder(tokenizer, 64))
    kept = AnchorLogits.compute(base, rows, K, batch_size)
    assert kept.lengths.tolist() == [len(row.completion_ids) for row in rows]
    assert kept.logits.dtype == torch.float16
    expected = torch.cat([base_logits(base, row) for row in rows])
    values, ids = expected.topk(K)
    assert torch.equal(kept.ids.long().sort().values, ids.sort().values)
    torch.testing.assert_close(kept.logits.float(), values - values[:, :1], atol=2e-3, rtol=1e-3)


def test_what_is_kept_comes_back_and_other_anchors_are_refused(tiny_model, tmp_path, folder):
    base, tokenizer = load_model(tiny_model, torch.float32)
    rows = encode_anchors(some_anchors(), Encoder(tokenizer, 64))
    assert all(map(torch.equal, AnchorLogits.load(folder / LOGITS, rows), AnchorLogits.compute(base, rows, K, 3)))
    with pytest.raises(InputError, match=r"it has 8 anchors with \d+ positions, expected 7 with"):
        AnchorLogits.load(folder / LOGITS, rows[:7])
    with pytest.raises(InputError, match="run `dvc repro`"):
        AnchorLogits.load(tmp_path / "elsewhere", rows)


def test_every_anchor_comes_equally_often_and_a_step_always_has_the_same(tiny_model, folder):
    tokenizer = load_model(tiny_model, torch.float32)[1]
    batches = load_anchors(folder, ANCHORED.model_copy(update={"batch": 2}), Encoder(tokenizer, 64), seed=0)
    passes = [sorted(row for step in range(4 * one, 4 * one + 4) for row in batches.at(step)) for one in (0, 1, 2)]
    assert passes == [list(range(8))] * 3
    assert [batches.at(step) for step in range(12)] == [batches.at(step) for step in range(12)]
    assert [batches.at(step) for step in range(4)] != [batches.at(step) for step in range(4, 8)]
    first = batches.stored.top_k_at(batches.at(0), torch.device("cpu"))
    lengths = [len(batches.rows[row].completion_ids) for row in batches.at(0)]
    assert first.ids.shape == (sum(lengths), K)


def test_an_answer_that_the_tokenizer_does_not_read_is_not_encodable(tiny_model):
    tokenizer = load_model(tiny_model, torch.float32)[1]
    good = some_anchors()[0]
    assert is_encodable(good, Encoder(tokenizer, 64))
    assert not is_encodable(good.model_copy(update={"answer": "unheard of"}), Encoder(tokenizer, 64))
    assert not is_encodable(good, Encoder(tokenizer, 4))


def test_fewer_anchors_than_a_step_needs(tiny_model, folder):
    tokenizer = load_model(tiny_model, torch.float32)[1]
    with pytest.raises(InputError, match=r"got 8 anchors, expected at least anchors.batch = 9"):
        load_anchors(folder, ANCHORED.model_copy(update={"batch": 9}), Encoder(tokenizer, 64), seed=0)


def plain_anchor_loss(student, base, rows, kind):
    """The term written down plainly: full logits, row by row."""
    parts = []
    for row in rows:
        logits = student(input_ids=torch.tensor([row.prompt_ids + row.completion_ids])).logits[
            0, len(row.prompt_ids) - 1 : -1
        ]
        if kind == "ce":
            parts.append(F.cross_entropy(logits, torch.tensor(row.completion_ids), reduction="none"))
            continue
        q = F.softmax(base_logits(base, row), -1)
        q, ids = q.topk(K)
        p = F.softmax(logits, -1).gather(-1, ids)
        q, p = q / q.sum(-1, keepdim=True), p / p.sum(-1, keepdim=True)
        parts.append((q * (q.log() - p.log())).sum(-1))
    return torch.cat(parts).mean()


@pytest.mark.parametrize("micro", [4, 2, 1])
@pytest.mark.parametrize(
    ("name", "kind", "logits"),
    [("sft", "kl", "stored"), ("sft", "ce", "stored"), ("raft", "kl", "stored"), ("raft", "kl", "teacher"),
     ("on_policy_sdft", "kl", "stored")],
)  # fmt: skip
def test_the_step_adds_the_weighted_gradient_of_the_anchors(tiny_model, tmp_path, folder, name, kind, logits, micro):
    settings = train(micro_batch_size=micro)
    hold = ANCHORED.model_copy(update={"loss": kind, "logits": logits})
    method = METHODS[name].model_copy(update={"anchors": hold})
    trainers = {}
    for which, row in (("without", METHODS[name]), ("with", method)):
        trainers[which] = trainer = make_trainer(tiny_model, tmp_path / which, row, settings, ROLLOUTS)
        with torch.no_grad():  # a student that has moved: at the base itself the term is 0
            for number, parameter in enumerate(trainer.student.parameters()):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    base, tokenizer = load_model(tiny_model, torch.float32)
    held = load_anchors(folder, hold, Encoder(tokenizer, 64), seed=0)
    trainers["with"].anchors = held
    loss, gradients = one_step(trainers["with"], trainers["with"].rows[:4])
    without, plain = one_step(trainers["without"], trainers["without"].rows[:4])
    student = trainers["without"].student
    before = {key: gradient.clone() for key, gradient in plain.items()}
    student.zero_grad()
    term = plain_anchor_loss(student, base, [held.rows[row] for row in held.at(0)], kind)
    term.backward()
    assert term.item() > 0.01
    assert trainers["with"].metrics.sums["l_anchor"] == pytest.approx(term.item(), rel=2e-3)
    assert loss == pytest.approx(without + 0.5 * term.item(), rel=1e-3)
    for key, parameter in student.named_parameters():
        torch.testing.assert_close(gradients[key], before[key] + 0.5 * parameter.grad, atol=2e-4, rtol=2e-3)


def run(model, place, method, folder, progress=None):
    return train_model(job(model, place, method, anchors=folder), progress)


def table(place: Path):
    with (place / "output" / "steps.csv").open(newline="") as rows:
        return list(csv.DictReader(rows))


class Stop(Exception):
    pass


@pytest.mark.parametrize(("name", "weight"), [("fused_sft", "ema"), ("raft", 0.5), ("raft", "ema"), ("sft_lora", 0.5)])
def test_a_training_starts_at_the_base_and_resumes_as_if_nothing_had_happened(
    tiny_model, tmp_path, folder, name, weight
):
    method = METHODS[name].model_copy(update={"anchors": ANCHORED.model_copy(update={"weight": weight})})
    run(tiny_model, tmp_path / "whole", method, folder)
    column = [float(row["l_anchor"]) for row in table(tmp_path / "whole")]
    assert column[0] == pytest.approx(0, abs=1e-5)  # float16 of the base's logits
    assert max(column[1:]) > 1e-4
    weights = [float(row["anchor_weight"]) for row in table(tmp_path / "whole")]
    assert weights[0] == (1.0 if weight == "ema" else 0.5)
    assert weights[1] == (ANCHORED.weight_max if weight == "ema" else 0.5)  # L_anchor is hardly more than 0 yet
    for row in table(tmp_path / "whole"):
        assert float(row["anchor_share"]) > 0
        assert sum(float(row[name] or 0) for name in row if name.endswith("_share")) == pytest.approx(1)
        assert float(row["optimiser_share"]) > 0
        parts = [
            float(row[name]) * float(row[u])
            for name, u in (("l_anchor", "anchor_weight"), ("l_kl", "lambda"))
            if row[name]
        ]
        assert float(row["loss"]) == pytest.approx(float(row["l_sft"]) + sum(parts))

    def stop(done, total, shown):
        if done == 3:
            raise Stop

    with pytest.raises(Stop):
        run(tiny_model, tmp_path / "cut", method, folder, stop)
    run(tiny_model, tmp_path / "cut", method, folder)
    assert [row["l_anchor"] for row in table(tmp_path / "cut")] == [
        row["l_anchor"] for row in table(tmp_path / "whole")
    ]
    assert same_weights(tmp_path / "whole", tmp_path / "cut")


def test_anchors_hold_the_student(tiny_model, tmp_path, folder):
    """Over a whole training the distance on the anchors stays smaller with the term than without."""
    distances = {}
    base, tokenizer = load_model(tiny_model, torch.float32)
    rows = encode_anchors(some_anchors(), Encoder(tokenizer, 64))
    for name, hold in (("free", None), ("held", ANCHORED.model_copy(update={"weight": 3.0}))):
        run(tiny_model, tmp_path / name, METHODS["sft"].model_copy(update={"anchors": hold}), folder)
        model = tiny_model.model_copy(update={"path": str(tmp_path / name / "output" / "model")})
        with torch.no_grad():
            distances[name] = plain_anchor_loss(load_model(model, torch.float32)[0], base, rows, "kl").item()
    assert distances["held"] < 0.5 * distances["free"]


def test_the_weight_is_balanced_against_a_cross_entropy_only():
    row = {**METHODS["on_policy_sdft"].model_dump(), "anchors": {**ANCHORED.model_dump(), "weight": "ema"}}
    with pytest.raises(ValueError, match=r"anchors\.weight 'ema' with sft false"):
        Method.model_validate(row)


def test_a_method_with_anchors_needs_their_folder(tiny_model, tmp_path):
    method = METHODS["sft"].model_copy(update={"anchors": ANCHORED})
    with pytest.raises(InputError, match=r"uses the anchor set 'some', and got no folder"):
        run(tiny_model, tmp_path, method, None)
