import importlib.util

import pytest
from tiny import job, train

from raft_tasks.errors import InputError
from raft_tasks.training.train import train_model


def run(model, folder, trackers):
    tracking = folder / "curves" / "archive" / "raft-0"
    return train_model(job(model, folder, train=train(epochs=1), trackers=tuple(trackers), tracking=tracking))


@pytest.mark.filterwarnings("default::DeprecationWarning")  # of tensorboard's own code
def test_tensorboard_gets_every_step_outside_of_the_artifact(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")  # what the training sets is forgotten after this test
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tiny_model, tmp_path, ["tensorboard"])
    events = EventAccumulator(str(tmp_path / "curves" / "archive" / "raft-0"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"train/l_kl", "train/lambda", "train/kl_to_base", "train/rollout_share"} <= set(tags)
    assert [event.step for event in events.Scalars("train/l_sft")] == [1, 2, 3]
    assert {path.name for path in (tmp_path / "output").iterdir()} == {"model", "steps.csv", "curve.csv"}


@pytest.mark.filterwarnings("default")  # W&B's own
def test_wandb_gets_the_steps_offline(tiny_model, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_PROJECT": "raft"}.items():
        monkeypatch.setenv(name, value)
    run(tiny_model, tmp_path, ["wandb"])
    summary = dict(wandb.run.summary)
    wandb.finish()
    assert summary["train/global_step"] == 3
    assert {"train/l_sft", "train/l_kl", "train/lambda", "train/kl_to_base", "train/rollout_share"} <= set(summary)
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"train/l_kl" in log.read_bytes()


@pytest.mark.filterwarnings("default")  # MLflow's own
def test_mlflow_gets_the_steps_in_a_local_store(tiny_model, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "archive")
    run(tiny_model, tmp_path, ["mlflow"])
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "store").as_uri())
    (tracked,) = client.search_runs([client.get_experiment_by_name("archive").experiment_id])
    assert tracked.info.run_name == "archive/raft-0"
    assert [point.step for point in client.get_metric_history(tracked.info.run_id, "l_sft")] == [1, 2, 3]
    assert {"l_kl", "lambda", "kl_to_base", "rollout_share"} <= set(tracked.data.metrics)


def test_a_tracker_that_is_not_installed_stops_before_training(tiny_model, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "mlflow" else find_spec(name, *rest)
    )
    with pytest.raises(InputError, match=r"resources.trackers names mlflow.*pip install mlflow"):
        run(tiny_model, tmp_path, ["tensorboard", "mlflow"])
    assert not (tmp_path / "output").exists()


def test_without_trackers_nothing_is_written(tiny_model, tmp_path):
    run(tiny_model, tmp_path, [])
    assert not (tmp_path / "curves").exists()
