"""What stops a training, and how the next run goes on."""

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
from safetensors.torch import load_file
from tiny import pairs, train
from trainer_runs import Stop, make_trainer, numbers, run, same_weights, steps, stop_at, with_distill

from raft_tasks.config import LossSpike
from raft_tasks.errors import InputError, Interrupted
from raft_tasks.model_loading import load_model
from raft_tasks.seeds import derive_seed
from raft_tasks.training.conversations import ConversationError
from raft_tasks.training.rollouts import RolloutSampling
from raft_tasks.training.trainer import RaftTrainer
from raft_tasks.training.transformers_rollouts import GenerateSampler


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


@pytest.mark.slow
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
    with pytest.raises(InputError, match=r"ck: a checkpoint could not .*unexpected pos.* \d+ MB are free there"):
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
    with pytest.raises(InputError, match="other data, settings or base weights"):
        run(
            tiny_model, tmp_path, "raft" if change == "method" else "sft",
            train(learning_rate=1e-4) if change == "settings" else None,
            rows=pairs()[:-1] if change == "data" else None,
        )  # fmt: skip


def test_divergence_stops_names_the_rows_and_keeps_the_batch(tiny_model, tmp_path):
    with pytest.raises(InputError, match=r"at step \d+, rows row-\d+, row-\d+, .* earlier checkpoints are intact"):
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


def test_a_broken_teacher_template_stops_before_training(tiny_model, tmp_path):
    with pytest.raises(ConversationError, match="expected Jinja over"):
        run(tiny_model, tmp_path, "raft", template="{{ context }}")
    assert run(tiny_model, tmp_path, "on_policy", template="")["steps"] == 6  # it is not this method's business


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
    with pytest.raises(Interrupted, match=f"stopped by {name} after step 4 of 6; its checkpoint is complete"):
        run(tiny_model, tmp_path / "parts", "raft", settings, progress=interrupt)
    assert signal.getsignal(number) is before
    assert [path.name for path in (tmp_path / "parts" / "ck").iterdir()] == ["checkpoint-4"]
    run(tiny_model, tmp_path / "parts", "raft", settings)
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")


def test_slow_steps_are_saved_by_the_clock(tiny_model, tmp_path):
    settings = train(checkpoint_steps=100, checkpoint_minutes=1e-9)
    run(tiny_model, tmp_path / "whole", "raft", train())
    with pytest.raises(Stop):
        run(tiny_model, tmp_path / "parts", "raft", settings, progress=stop_at(4))
    assert (tmp_path / "parts" / "ck" / "checkpoint-3").is_dir()
    run(tiny_model, tmp_path / "parts", "raft", settings)
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


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
    with pytest.raises(InputError, match="the loss has been above its bound for 4 steps: it is "):
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
    with pytest.raises(InputError, match=r"step 3: .*sampler \(generate\).* stale weights"):
        trainer.train()
    assert trainer.steps()[0]["sampling_logprob_difference"] < 1e-5
