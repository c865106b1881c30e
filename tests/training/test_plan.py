from pathlib import Path

import pytest
from tiny import METHODS, distillation, job, pairs, train

from raft_tasks.training import plan as module
from raft_tasks.training.plan import plan, report


def test_a_dry_run_counts_and_takes_two_steps_of_a_copy(tiny_model, tmp_path):
    before = (Path(tiny_model.path) / "model.safetensors").read_bytes()
    result = plan(job(tiny_model, tmp_path), tmp_path)
    assert result["rows"] == 12
    assert result["steps"] == 6
    assert result["parameters"] == result["trainable"] > 10_000
    assert result["tokens_per_epoch"]["answers"] == sum(len(pair.answer.split()) + 1 for pair in pairs())
    assert result["tokens_per_epoch"]["rollouts_at_most"] == 12 * 6
    assert result["lengths"]["answer"]["longest"] == 8
    assert result["lengths"]["answer"]["median"] == 8
    assert 0 < result["seconds_per_step"] < 5
    assert result["measured"]
    assert result["would_fit"] == []
    assert not list(tmp_path.glob("checkpoint-*"))
    assert (Path(tiny_model.path) / "model.safetensors").read_bytes() == before
    text = report(result)
    assert "rows              12, 2 epochs, 6 optimiser steps" in text
    assert "measured in 2 real steps" in text
    assert "rollout cache" in text


def test_a_training_that_does_not_fit_is_not_tried(tiny_model, tmp_path, monkeypatch):
    """Time then comes from FLOPs; it grows as the work does."""
    monkeypatch.setattr(module, "available_bytes", lambda device: 1000)
    monkeypatch.setattr(module.RaftTrainer, "train", lambda self: pytest.fail("a step was taken"))
    result = plan(job(tiny_model, tmp_path), tmp_path)
    assert not result["measured"]
    assert result["would_fit"][0] == "train.micro_batch_size: 2"
    assert "TOO MUCH; change in params.yaml: train.micro_batch_size: 2" in report(result)
    alone = plan(job(tiny_model, tmp_path, "on_policy_sdft"), tmp_path)  # its answers go through no student
    assert alone["tokens_per_epoch"]["answers"] == 0
    assert 0 < alone["seconds_per_step"] < result["seconds_per_step"]
    longer = METHODS["raft"].model_copy(update={"distillation": distillation(rollout_max_new_tokens=60)})
    more = plan(job(tiny_model, tmp_path, longer, train=train(max_length=200)), tmp_path)
    assert more["seconds_per_step"] > 1.5 * result["seconds_per_step"]
