"""A stop that is not a kill: stages get the time to save, the exit code says that the next run goes on."""

import os
import signal
import subprocess
import sys

import pytest

from flows import distill, pipeline, stage
from flows.cli import main
from flows.dvc_worker import DvcWorker
from flows.pipeline import PipelineRun
from raft_tasks.config import load_config
from raft_tasks.errors import INTERRUPTED, Interrupted

PATIENT = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: (open(sys.argv[1], "w").write("saved"), sys.exit(75)))
print("ready", flush=True)
time.sleep(60)
"""
DEAF = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"


def busy_worker(code, *arguments):
    """One whose stage is the program `code`."""
    dvc = DvcWorker({})
    pipe = subprocess.PIPE
    dvc.process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=pipe, stdout=pipe, text=True, start_new_session=True
    )
    dvc.busy = True
    assert dvc.process.stdout.readline() == "ready\n"
    return dvc


def stop(dvc, capsys):
    PipelineRun(1, [dvc]).stop()
    assert "stopping 1 stage(s); a training saves a checkpoint first" in capsys.readouterr().out
    dvc.process.stdout.close()
    return dvc.process.wait(10)


def test_a_stopped_pipeline_lets_its_stages_save(tmp_path, capsys):
    assert stop(busy_worker(PATIENT, str(tmp_path / "checkpoint")), capsys) == 75
    assert (tmp_path / "checkpoint").read_text() == "saved"


def test_a_stage_that_does_not_listen_is_killed(monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "STOP_SECONDS", 0.2)
    assert stop(busy_worker(DEAF), capsys) == -signal.SIGKILL


def test_time_that_stages_share_is_work_once():
    run = PipelineRun(3, [])
    assert run.work() == 0.0
    run.work_intervals = [(20.0, 21.0), (1.0, 5.0), (2.0, 3.0), (4.0, 9.0)]
    assert run.work() == 9.0


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_lines_in_a_log_and_one_line_on_a_terminal(monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setattr(stage, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(stage, "TERMINAL_SECONDS", 0.0)
    monkeypatch.setattr(stage, "get_terminal_size", lambda: os.terminal_size((70, 20)))
    progress = stage.Progress("distill@a", 0, "steps")
    progress(1, 4, "loss 2.5")
    progress(4, 4)
    out = capsys.readouterr().out
    if terminal:
        assert out.startswith("\r\033[Kdistill@a [#####...............] 1/4 steps, about 0 s left; loss 2.5\r")
        assert out.count("\n") == 1
        assert out.endswith("[####################] 4/4 steps, about 0 s left\n")
    else:
        assert out == "distill@a: 1/4 steps, about 0 s left; loss 2.5\ndistill@a: 4/4 steps, about 0 s left\n"


def test_what_an_earlier_run_has_done_is_no_speed_of_this_one(monkeypatch, capsys):
    clock = iter([0.0, 60.0, 60.0, 120.0, 120.0])
    monkeypatch.setattr(stage.time, "monotonic", lambda: next(clock))
    progress = stage.Progress("distill@a", 32, "steps")
    progress(11)
    progress(12)
    assert capsys.readouterr().out.endswith("distill@a: 12/32 steps, about 1200 s left\n")


class StoppedStage:
    """A stage's flow that a signal stops."""

    def fn(self, domain, method, seed):
        """What is run, without Prefect."""

    def with_options(self, **options):
        return self

    def __call__(self, *arguments):
        raise Interrupted("stopped by SIGTERM after step 2 of 30")


@pytest.fixture
def command(monkeypatch):
    """`raft stage distill archive raft 0`, whose flow a signal stops."""
    monkeypatch.setattr(distill, "distill", StoppedStage())
    monkeypatch.setattr(sys, "argv", ["raft", "stage", "distill", "archive", "raft", "0"])


def test_a_stopped_stage_has_an_exit_code_of_its_own(command, capsys):
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == INTERRUPTED == 75
    assert capsys.readouterr().err == "distill archive-raft-0: stopped by SIGTERM after step 2 of 30\n"


def test_a_lost_gpu_stops_a_stage_before_it_starts(command, monkeypatch):
    config = load_config()
    resources = config.resources.model_copy(update={"gpus": 2})
    monkeypatch.setattr(stage, "load_config", lambda: config.model_copy(update={"resources": resources}))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(SystemExit, match=r"error: distill archive-raft-0: resources\.gpus is 2, this machine has 1"):
        main()
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(SystemExit) as end:
        main()  # it begins, and is stopped
    assert end.value.code == INTERRUPTED
