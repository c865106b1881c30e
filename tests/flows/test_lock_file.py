"""dvc.lock by stages: the bytes and the errors are DVC's, whatever the file's form, and no kill leaves half of it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.dvcfile import Lockfile
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.utils.serialize import load_yaml, modify_yaml

from flows import lock_file
from flows.lock_file import modify_by_stage, read_by_stage, read_whole

ROOT = Path(__file__).resolve().parents[2]
LOCK = """\
schema: '2.0'
stages:
  backbone:
    cmd: raft stage backbone
    deps:
    - path: data/archive
      hash: md5
      md5: 19bbad36665ce72782e7368e4b223646.dir
      size: 8399
      nfiles: 1
    outs:
    - path: models/a
      hash: md5
      md5: 8e11ceec36d70af44de09a204c6306ea
      size: 15324
  report:
    cmd: raft stage report
    params:
      params.yaml:
        report.flips: 200
"""


def change(data):
    data["stages"]["backbone"]["cmd"] = "it's: another"
    outs = [{"path": "ä b", "hash": "md5", "md5": "012e5", "size": 3, "isexec": True}]
    data["stages"]["new@0"] = {
        "cmd": "a\nb",
        "params": {"params.yaml": {"x": None, "y": 1.5e-7, "z": "1.0"}},
        "outs": outs,
    }


def remove(data):
    del data["stages"]["backbone"]


def nothing(data):
    pass


def add_a_data_set(data):
    data["datasets"] = [{"name": "a", "type": "dvc"}]


@pytest.fixture
def lock(tmp_path):
    path = tmp_path / "ours" / "dvc.lock"
    path.parent.mkdir()
    path.write_text(LOCK)
    return path


@pytest.mark.parametrize("modification", [change, remove, nothing, add_a_data_set])
def test_the_lock_is_what_dvc_would_write(lock, tmp_path, modification):
    theirs = tmp_path / "theirs"
    theirs.write_text(LOCK)
    for path, modify in ((theirs, modify_yaml), (lock, modify_by_stage)):
        for _ in range(2):  # what it wrote is read
            with modify(str(path)) as data:
                modification(data)
            if modification is remove:
                break
    assert lock.read_bytes() == theirs.read_bytes()
    assert [path.name for path in lock.parent.iterdir()] == ["dvc.lock"]


def test_an_empty_and_an_absent_lock_become_what_dvc_would_write(tmp_path):
    def fill(data):
        assert not data
        data.update({"schema": "2.0"})
        data["stages"] = {"a": {"cmd": "b"}}

    for name, modify in (("theirs", modify_yaml), ("dvc.lock", modify_by_stage)):
        with modify(str(tmp_path / name)) as data:
            fill(data)
    assert (tmp_path / "dvc.lock").read_bytes() == (tmp_path / "theirs").read_bytes()
    (tmp_path / "dvc.lock").write_text("")
    with modify_by_stage(str(tmp_path / "dvc.lock")) as data:
        fill(data)
    assert (tmp_path / "dvc.lock").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_only_the_changed_stage_is_dumped_and_an_equal_file_is_not_replaced(lock, monkeypatch):
    dumped = []
    dump = lock_file.dumps_yaml
    monkeypatch.setattr(lock_file, "dumps_yaml", lambda data: dumped.append(list(data["stages"])) or dump(data))
    with lock.open() as before:
        with modify_by_stage(str(lock)) as data:
            data["stages"]["report"] = dict(data["stages"]["report"])  # equal, as of a stage that ran for the same
        assert os.path.samestat(os.fstat(before.fileno()), lock.stat())
    assert dumped == []
    with modify_by_stage(str(lock)) as data:
        change(data)
    assert dumped == [["backbone"], ["new@0"]]


OTHER_FORMS = {
    "comment": LOCK.replace("  report:", "# by hand\n  report:"),
    "data set": LOCK + "datasets:\n- name: a\n  type: dvc\n",
    "stages in flow style": "schema: '2.0'\nstages:\n  {a: {cmd: b}, c: {cmd: d}}\n",
    "flow style": "{schema: '2.0', stages: {a: {cmd: b}}}\n",
    "no end of line": LOCK.rstrip(),
    "anchor": LOCK.replace("size: 8399", "size: &size 8399").replace("size: 15324", "size: *size"),
    "anchor across stages": LOCK.replace("cmd: raft stage backbone", "cmd: &cmd b").replace(
        "cmd: raft stage report", "cmd: *cmd"
    ),
    "text over two lines": LOCK.replace("cmd: raft stage report", 'cmd: "raft stage\n  report"'),
    "literal": LOCK.replace("cmd: raft stage report", "cmd: |\n      raft\n\n      stage"),
    "marker": "---\n" + LOCK,
}
FAULTS = {
    "conflict": LOCK.replace("  report:", "<<<<<<< HEAD\n  report:"),
    "cut": LOCK[: LOCK.index("15324")] + "'",
    "twice": LOCK + "  report:\n    cmd: another\n",
    "unknown key": LOCK + "  new:\n    cmd: a\n    wdir: b\n",
    "without command": LOCK + "  new:\n    deps: []\n",
    "no stage": "schema: '2.0'\nstages:\n",
    "old": LOCK.replace("'2.0'", "'1.0'"),
    "tab": LOCK.replace("    cmd", "\tcmd"),
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Repo.init(no_scm=True) as repo:
        yield Lockfile(repo, str(tmp_path / "dvc.lock"))


@pytest.mark.parametrize("form", ["as DVC writes it", *OTHER_FORMS])
def test_a_lock_of_any_form_is_read_as_dvc_reads_it(project, form):
    path = Path("dvc.lock")
    path.write_text(OTHER_FORMS.get(form, LOCK))
    assert read_by_stage(project) == read_whole(project)
    expected = load_yaml("dvc.lock")
    expected["stages"]["new"] = {"cmd": "c"}
    with modify_by_stage("dvc.lock") as data:
        data["stages"]["new"] = {"cmd": "c"}
    assert load_yaml("dvc.lock") == expected


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_lock_is_refused_in_dvcs_words(project, fault):
    Path("dvc.lock").write_text(FAULTS[fault])
    with pytest.raises(DvcException) as theirs:
        read_whole(project)
    with pytest.raises(DvcException) as ours:
        read_by_stage(project)
    assert (type(ours.value), str(ours.value)) == (type(theirs.value), str(theirs.value))


def test_what_a_reader_changes_is_not_in_the_next_ones_hands(lock):
    with modify_by_stage(str(lock)) as data:
        data["stages"]["backbone"]["deps"].clear()
        data["stages"]["backbone"] = load_yaml(str(lock))["stages"]["backbone"]
    assert lock.read_text() == LOCK


def test_a_lock_that_is_not_written_to_the_end_stays_as_it_was(lock):
    with pytest.raises(Exception, match="cannot represent an object"), modify_by_stage(str(lock)) as data:
        data["stages"]["new"] = {"cmd": object()}
    assert lock.read_text() == LOCK


KILLED = """\
import sys, os
from flows.lock_file import modify_by_stage
number = 0
while True:
    number += 1
    with modify_by_stage("dvc.lock") as data:
        data["stages"][f"stage@{number % 50}"] = {"cmd": "x" * 20000 + str(number)}
    print(number, flush=True)
"""


def test_a_kill_while_it_is_written_leaves_a_whole_lock(lock, monkeypatch):
    monkeypatch.chdir(lock.parent)
    command = [sys.executable, "-c", KILLED]
    for last in (60, 71, 82):  # lines that it wrote before the kill
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        ) as process:
            for line in process.stdout:
                if int(line) == last:
                    process.send_signal(signal.SIGKILL)
                    break
        stages = load_yaml("dvc.lock")["stages"]
        assert len(stages) == 52  # two of LOCK, fifty of the writer: nothing is lost
        assert max(int(stages[f"stage@{number}"]["cmd"].lstrip("x")) for number in range(50)) >= last


def test_other_files_keep_their_comments(tmp_path):
    path = tmp_path / "dvc.yaml"
    path.write_text("stages:  # all\n  a: {cmd: b}\n")
    with modify_by_stage(str(path)) as data:
        data["stages"]["a"]["cmd"] = "c"
    assert path.read_text() == "stages:  # all\n  a: {cmd: c}\n"
