"""Two processes (gloo, CPU) learn what one does: losses, weights, rollouts; with DDP, FSDP2, LoRA; resumed."""

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tiny import ANCHORED, METHODS, REPLAY, TEACHER, pairs, save_anchors, save_tiny, train
from trainer_runs import TIMES

from raft_tasks.config import Launch, Model, TargetKl
from raft_tasks.errors import InputError
from raft_tasks.training import worker
from raft_tasks.training.conversations import ConversationError
from raft_tasks.training.job import TrainingJob
from raft_tasks.training.launch import check_devices, train_in_processes
from raft_tasks.training.train import train_model

LOOKS = {"student_mass_in_k", "kl_to_base", "sampling_logprob_difference"}  # at some positions only, by micro-batch
HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
ROWS = METHODS | {
    "raft_replay": METHODS["raft"].model_copy(update={"replay": REPLAY}),
    "asft": METHODS["dft"].model_copy(update={"target_kl": TargetKl(weight=0.5, top_k=8)}),
    "talr": METHODS["sft"].model_copy(update={"token_weighting": "talr"}),
    "raft_lora_anchored": METHODS["raft_lora"].model_copy(update={"anchors": ANCHORED}),
}
SETTINGS = {"batch_size": 8, "micro_batch_size": 2, "epochs": 2}  # steps of 8 and 4 rows; one with 5 of 8 and 4 micros
SETTINGS["checkpoint_steps"] = 100  # but where a training is stopped: a sharded one is written slowly


def job(folder, name, strategy, rows=None, **changes):
    """A training of the tiny model; 13 rows: a step of 8 rows and one of 5, which two processes do not share evenly."""
    launch = Launch(processes=1 if strategy == "none" else 2, strategy=strategy)
    row = changes.pop("row", None) or ROWS[name]
    learned = rows or [*pairs(), pairs()[1].model_copy(update={"id": "one more"})]
    general = [pair.model_copy(update={"id": f"general-{pair.id}", "replay": True}) for pair in pairs()[:5]]
    return TrainingJob(
        pairs=[*learned, *(general if row.replay else [])],
        model=Model(path=str(folder / "model"), revision=None, dtype="float32", system=None), method=row,
        train=train(launch=launch, **(SETTINGS | changes)), template_text=TEACHER, seed=0,
        output=folder / name / strategy, checkpoints=folder / name / f"{strategy}-checkpoints",
        tracking=folder / "tracking", anchors=folder / "set" if row.anchors else None,
    )  # fmt: skip


def steps(folder):
    with (folder / "steps.csv").open(newline="") as table:
        return [{name: row[name] for name in row if name not in TIMES} for row in csv.DictReader(table)]


def run_together(folder, groups):
    """Groups of jobs (by file name), each group in two processes."""
    arguments = []
    for jobs in groups:
        arguments += ["--"] if arguments else []
        for name, each in jobs.items():
            arguments.append(str(folder / f"{name}.json"))
            each.save(Path(arguments[-1]))
    done = subprocess.run(
        [sys.executable, str(HERE / "several_jobs.py"), *arguments],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def assert_same(one, two):
    """Equal up to the order in which sums are taken."""
    first, second = steps(one), steps(two)
    assert len(first) == len(second) == 4
    for a, b in zip(first, second, strict=True):
        for name, value in a.items():
            if name in ("rollout_length", "rollouts_empty", "rollouts_truncated", "step", "epoch"):
                assert value == b[name], name  # the rollouts are the same
            elif value and name not in LOOKS:
                assert float(value) == pytest.approx(float(b[name]), rel=1e-4, abs=1e-6), name
    whole, parts = (load_file(next((folder / "model").glob("*.safetensors"))) for folder in (one, two))
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.allclose(value, parts[name], atol=1e-5), name


NAMES = ["sft", "raft", "raft_lora", "raft_lora_anchored", "raft_replay", "on_policy_sdft", "asft", "talr"]
STRATEGIES = ["ddp", "fsdp2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trainings by one process and by two."""
    folder = tmp_path_factory.mktemp("trained")
    save_anchors(folder / "set", save_tiny(folder / "model"))
    groups = []
    for strategy in STRATEGIES:
        jobs = {f"{name}-{strategy}": job(folder, name, strategy) for name in NAMES}
        resumed = elsewhere(job(folder, "raft", strategy, checkpoint_steps=2), "resumed")
        jobs |= {f"{strategy}-stopped": resumed, f"{strategy}-resumed": resumed}
        jobs[f"{strategy}-half"] = elsewhere(job(folder, "raft", strategy, precision="bfloat16"), "half")
        jobs[f"{strategy}-again"] = elsewhere(job(folder, "raft", strategy, gradient_checkpointing=True), "again")
        groups.append(jobs)
    run_together(folder, groups)
    for name in NAMES:
        train_model(job(folder, name, "none"))
    return folder


def elsewhere(of, name):
    output = of.output.with_name(f"{of.output.name}-{name}")
    return replace(of, output=output, checkpoints=output.with_name(f"{output.name}-checkpoints"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_learn_what_one_learns(trained, name, strategy):
    assert_same(trained / name / "none", trained / name / strategy)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resumed_in_two_processes(trained, strategy):
    assert_same(trained / "raft" / strategy, trained / "raft" / f"{strategy}-resumed")
    last = trained / "raft" / f"{strategy}-resumed-checkpoints" / "checkpoint-4"
    kinds = {path.name for path in last.iterdir()}
    assert ("pytorch_model_fsdp_0" in kinds) == (strategy == "fsdp2")
    assert {"rng_state_0.pth", "rng_state_1.pth", "complete.json"} <= kinds


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradient_checkpointing_in_two_processes(trained, strategy):
    assert_same(trained / "raft" / strategy, trained / "raft" / f"{strategy}-again")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bfloat16_in_two_processes(trained, strategy):
    exact, rounded = steps(trained / "raft" / strategy), steps(trained / "raft" / f"{strategy}-half")
    assert float(rounded[0]["l_sft"]) == pytest.approx(float(exact[0]["l_sft"]), rel=0.02)
    assert float(rounded[0]["l_sft"]) != float(exact[0]["l_sft"])
    assert float(rounded[0]["grad_norm"]) == pytest.approx(float(exact[0]["grad_norm"]), rel=0.3)


# --- the launcher itself ---


@pytest.fixture
def folder(tmp_path):
    save_tiny(tmp_path / "model")
    return tmp_path


@pytest.mark.slow
def test_a_whole_launch_of_an_anchored_row(trained, tmp_path):
    """Through `accelerate launch`: every field of the job reaches the workers, and two learn what one learns."""
    steps_done = []
    wanted = job(trained, "raft_lora_anchored", "ddp")
    wanted = replace(wanted, output=tmp_path / "output", checkpoints=tmp_path / "checkpoints")
    summary = train_in_processes(wanted, tmp_path / "job", lambda done, total, _: steps_done.append((done, total)))
    assert TrainingJob.load(tmp_path / "job" / "job.json") == wanted
    assert steps_done == [(step, 4) for step in (1, 2, 3, 4)]
    assert summary["steps"] == 4
    assert summary["final"]["l_anchor"] > 0
    assert_same(trained / "raft_lora_anchored" / "none", tmp_path / "output")
    assert (wanted.output / "model" / "adapter_model.safetensors").exists()


def test_what_a_worker_refuses_reaches_the_user(folder, monkeypatch):
    too_long = job(folder, "raft", "none", max_length=30)
    too_long.save(folder / "job.json")
    with pytest.raises(ConversationError, match="has 36 tokens"):
        worker.main(folder / "job.json")
    said = (folder / "error-0.json").read_text()
    fails = f"from pathlib import Path; Path({str(folder / 'job' / 'error-1.json')!r}).write_text({said!r}); 1 / 0"
    monkeypatch.setattr("raft_tasks.training.launch.launch_command", lambda *_: [sys.executable, "-c", fails])
    with pytest.raises(InputError, match=r"row-1: .* has 36 tokens"):
        train_in_processes(job(folder, "raft", "ddp"), folder / "job")


@pytest.mark.slow
def test_the_workers_end_with_the_process_that_asked(folder):
    """Killed with -9: nobody is there to clean up, and nothing is left."""
    endless = job(folder, "raft", "ddp", epochs=10_000)
    endless.save(folder / "job.json")
    ask = (
        "import sys; from pathlib import Path; from raft_tasks.training.job import TrainingJob;"
        "from raft_tasks.training.launch import train_in_processes;"
        "folder = Path(sys.argv[1]);"
        "train_in_processes(TrainingJob.load(folder / 'job.json'), folder / 'job')"
    )
    asking = subprocess.Popen([sys.executable, "-c", ask, str(folder)], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    table = endless.output / "steps.csv"
    wait_for(lambda: (table.exists() and len(table.read_text().splitlines()) > 2) or asking.poll() is not None)
    family = psutil.Process(asking.pid).children(recursive=True)
    assert sum("raft_tasks.training.worker" in " ".join(process.cmdline()) for process in family) >= 2
    asking.send_signal(signal.SIGKILL)
    asking.wait()
    wait_for(lambda: not any(alive(process) for process in family))


def alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_other_errors_come_with_the_end_of_the_output(folder, monkeypatch):
    monkeypatch.setattr("raft_tasks.training.launch.launch_command", lambda *_: [sys.executable, "-c", "1 / 0"])
    with pytest.raises(RuntimeError, match=r"ended with code 1:\n(.*\n)*ZeroDivisionError"):
        train_in_processes(job(folder, "sft", "ddp"), folder / "job")


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"processes is 2, this machine has 1 GPU\(s\)"):
        check_devices(Launch(processes=2, strategy="fsdp2"))


@pytest.mark.parametrize(("processes", "strategy"), [(1, "ddp"), (2, "none")])
def test_a_strategy_is_for_several_processes(processes, strategy):
    with pytest.raises(ValueError, match="exactly where there is more than one process"):
        Launch(processes=processes, strategy=strategy)
    with pytest.raises(ValueError, match="leaves some of 9 processes without a row"):
        train(batch_size=8, micro_batch_size=8, launch=Launch(processes=9, strategy="ddp"))
