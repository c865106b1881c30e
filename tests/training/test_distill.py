"""The task of the stage `distill`, where it does more than train: targets that the base writes itself."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event

import pytest
from tiny import TEACHER, pairs, save_tiny

from raft_tasks.artifacts import read_rows
from raft_tasks.config import Interpolate, Method, Mixing, Model, Train
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


def test_targets_are_mixed_once_by_two_at_a_time(job, monkeypatch):
    calls = []

    def mix(pairs, *_):
        calls.append(pairs)
        time.sleep(0.5)
        return pairs

    monkeypatch.setattr("raft_tasks.generation.mixing.mix_answers", mix)
    with ThreadPoolExecutor() as pool:
        one, two = pool.map(lambda job: with_mixed_targets(job, {}, quiet), [job, job])
    assert one.pairs == two.pairs == job.pairs
    assert len(calls) == 1


class Work:
    """In the place of a training: leaves a checkpoint, and goes on when it may."""

    def __init__(self, monkeypatch):
        self.begun, self.may_end, self.folders = Event(), Event(), []
        monkeypatch.setattr("raft_tasks.distill.run_training", self.run)

    def run(self, job, progress):
        (job.checkpoints / "checkpoint-1").mkdir(parents=True)  # an error where another one's lies
        self.folders.append(job.checkpoints)
        self.begun.set()
        assert self.may_end.wait(60)
        return {}


def test_methods_that_differ_in_merge_alone_train_side_by_side(job, monkeypatch):
    work = Work(monkeypatch)
    work.may_end.set()
    for merge in (None, Interpolate()):
        train.fn(
            replace(job, method=Method(merge=merge), output=job.output / str(merge and merge.kind)), {}, quiet, quiet
        )
    assert len(set(work.folders)) == 2


def test_the_same_training_waits_for_the_one_at_work(job, monkeypatch, capsys):
    """A `raft run` and a `raft retrain` of the same data: the checkout shares .cache."""
    work, printed = Work(monkeypatch), ""
    job = replace(job, method=Method())
    with ThreadPoolExecutor() as pool:
        try:
            first = pool.submit(train.fn, job, {}, quiet, quiet)
            assert work.begun.wait(60)
            second = pool.submit(train.fn, job, {}, quiet, quiet)
            while not second.done() and "waiting for it" not in printed:
                printed += capsys.readouterr().out
            assert not second.done()
            assert len(work.folders) == 1
        finally:
            work.may_end.set()
        assert first.result() == second.result() == {"rows_left_out": 0}
    assert len(work.folders) == 2
    assert not list(job.checkpoints.iterdir())


def test_unmixed_targets_are_not_trained_on(job):
    with pytest.raises(InputError, match="got unmixed pairs with mixing"):
        prepare(job)


def test_only_a_method_that_mixes_is_told_what_is_right():
    row = Fused.model_construct(id="a", question="?", answer="rope", chosen="b", fused="c", expected=["rope"])
    (told,) = training_pairs([row], METHOD)
    (other,) = training_pairs([row], Method())
    assert (told.expected, other.expected) == (["rope"], [])
    assert json.loads(told.model_dump_json())["answer"] == "rope"
