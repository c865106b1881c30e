"""The DVC process that stays: several stages, a failing one, a killed one, its end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.dvc_worker import DvcWorker

ROOT = Path(__file__).resolve().parents[2]
GRAPH = """\
stages:
  first: {cmd: "echo working; echo one > one.txt", outs: [one.txt]}
  second: {cmd: "cat one.txt > two.txt; read line || echo no input", deps: [one.txt], outs: [two.txt]}
  broken: {cmd: "echo 'error: no rows'; exit 3"}
  killed: {cmd: "kill -9 $PPID"}
  patient: {cmd: "echo ready; sleep 60"}
  binary: {cmd: "printf 'caf\\\\351\\\\n'"}
"""


@pytest.fixture
def dvc(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    Repo.init().close()
    Path("dvc.yaml").write_text(GRAPH)
    dvc = DvcWorker({**os.environ, "PYTHONPATH": str(ROOT)})
    yield dvc
    dvc.interrupt()
    dvc.end(10)
    assert dvc.process.poll() is not None


def outcome(dvc, stage):
    return list(dvc.reproduce(stage)), dvc.code


def test_one_process_reproduces_stage_after_stage(dvc):
    output, code = outcome(dvc, "first")
    assert (code, dvc.busy) == (0, False)
    assert "working" in output
    process = dvc.process
    with open("dvc.lock") as before:
        output, code = outcome(dvc, "second")
        assert not os.path.samestat(os.fstat(before.fileno()), os.stat("dvc.lock"))  # another file, not written into
    assert (code, "no input" in output) == (0, True)  # the names on its standard input are not the stages' to read
    assert Path("two.txt").read_text() == "one\n"
    status = subprocess.run([sys.executable, "-m", "dvc", "status", "first", "second"], capture_output=True, text=True)
    assert status.stdout == "Data and pipelines are up to date.\n", status.stderr  # as DVC alone reads the lock
    output, code = outcome(dvc, "second")
    assert (code, output[0]) == (0, "Stage 'second' didn't change, skipping")
    Path("dvc.yaml").write_text(GRAPH.replace("echo one", "echo two"))  # it reads the graph anew each time
    assert outcome(dvc, "first")[1] == 0
    assert outcome(dvc, "second")[1] == 0
    assert Path("two.txt").read_text() == "two\n"
    assert dvc.process is process


def test_a_failing_stage_is_said_and_the_next_one_runs(dvc):
    output, code = outcome(dvc, "broken")
    assert code == 255
    assert output[-2:] == [
        "error: no rows",
        "ERROR: failed to reproduce 'broken': failed to run: echo 'error: no rows'; exit 3, exited with 3",
    ]
    assert outcome(dvc, "first")[1] == 0


def test_a_killed_dvc_fails_its_stage_and_the_next_one_has_another(dvc):
    assert outcome(dvc, "killed")[1] == -signal.SIGKILL
    assert outcome(dvc, "first")[1] == 0
    dvc.process.kill()  # while it waits
    dvc.process.wait()
    assert outcome(dvc, "second")[1] == 0


@pytest.mark.parametrize("ignored", [False, True])
def test_an_interrupt_reaches_the_stage_and_ends_the_process(dvc, ignored):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL)  # a background job ignores it
    try:
        interrupt_patient(dvc)
    finally:
        signal.signal(signal.SIGINT, before)


def interrupt_patient(dvc):
    for line in dvc.reproduce("patient"):
        if line == "ready":
            dvc.interrupt()
    assert dvc.code in (252, 255)  # DVC was interrupted, or its command was
    dvc.end(10)
    assert dvc.process.returncode == 0


def test_an_error_between_a_stages_lines_ends_its_process(dvc):
    output = dvc.reproduce("patient")
    assert "ready" in output  # as far as that line
    process = dvc.process
    with pytest.raises(ValueError, match="unreadable"):
        output.throw(ValueError("unreadable"))
    assert (process.poll(), dvc.busy) == (-signal.SIGKILL, False)
    output, code = outcome(dvc, "first")
    assert (code, "ready" in output, "working" in output) == (0, False, True)


def test_bytes_that_are_no_text_are_shown(dvc):
    output, code = outcome(dvc, "binary")
    assert (code, "caf\\xe9" in output) == (0, True)
