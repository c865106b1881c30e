"""The task of the stage `distill`, where it does more than train: targets that the base writes itself."""

import json

import pytest
from tiny import TEACHER, pairs, save_tiny

from raft_tasks.artifacts import read_rows
from raft_tasks.config import Method, Mixing, Model, Train
from raft_tasks.distill import train, with_mixed_targets
from raft_tasks.errors import InputError
from raft_tasks.fuse import training_pairs
from raft_tasks.schemas import Fused, TrainingPair
from raft_tasks.training.job import TrainingJob
from raft_tasks.training.preparation import prepare


def quiet(done, total, shown):
    """No progress."""


METHOD = Method(mixing=Mixing(naive_share=0.5, max_new_tokens=30))


@pytest.fixture
def job(tmp_path):
    model = Model(path=str(save_tiny(tmp_path / "model")), revision=None, dtype="float32", system=None)
    return TrainingJob(
        pairs=pairs()[:6], model=model, method=METHOD, train=Train(batch_size=2, epochs=1, precision="float32"),
        template_text=TEACHER, seed=0, output=tmp_path / "output", checkpoints=tmp_path / "checkpoints",
    )  # fmt: skip


def test_the_targets_are_mixed_once_and_learned(job, monkeypatch):
    mixed = with_mixed_targets(job, {}, quiet)
    assert mixed.mixed
    assert {pair.id for pair in mixed.pairs} <= {pair.id for pair in job.pairs}
    assert [pair.answer for pair in mixed.pairs] != [pair.answer for pair in job.pairs]
    monkeypatch.setattr("raft_tasks.generation.mixing.mix_answers", None)  # from here on they are read
    assert with_mixed_targets(job, {}, quiet).pairs == mixed.pairs
    (file,) = job.checkpoints.glob("targets-*.jsonl")
    assert read_rows(file, TrainingPair) == mixed.pairs
    summary = train.fn(job, {}, quiet, quiet)
    assert summary["rows"] == len(mixed.pairs)
    assert "reference, rewritten token by token by the base (MixSD)" in (job.output / "model/README.md").read_text()


def test_rows_without_a_right_answer_are_counted(job, monkeypatch, capsys):
    monkeypatch.setattr("raft_tasks.generation.mixing.mix_answers", lambda pairs, *_: pairs[:-2])
    summary = train.fn(job, {}, quiet, quiet)
    assert (summary["rows"], summary["rows_left_out"]) == (4, 2)
    assert "mixing left out 2 of 6 rows" in capsys.readouterr().out


def test_unmixed_targets_are_not_trained_on(job):
    with pytest.raises(InputError, match="got unmixed pairs with mixing"):
        prepare(job)


def test_only_a_method_that_mixes_is_told_what_is_right():
    row = Fused.model_construct(id="a", question="?", answer="rope", chosen="b", fused="c", expected=["rope"])
    (told,) = training_pairs([row], METHOD)
    (other,) = training_pairs([row], Method())
    assert (told.expected, other.expected) == (["rope"], [])
    assert json.loads(told.model_dump_json())["answer"] == "rope"
