"""A child of the stage host is what `raft stage` by itself would be, and ends with whatever ends first."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows import stage_host

ROOT = Path(__file__).resolve().parents[2]
# A host that imports next to nothing, and whose command `raft stage paths FILE` executes that file.
LIGHT = """
import sys, flows.cli, flows.stage_host as host
host.IMPORTS = ()
flows.cli.main = lambda: exec(open(sys.argv[3]).read(), {})
host.serve(int(sys.argv[1]), sys.argv[2:])
"""
SHOW = """
import json, os, sys, threading
mask = os.umask(0)
shown = {"folder": os.getcwd(), "mask": mask, "arguments": sys.argv[1:3], "stage": os.environ["DVC_STAGE"]}
shown |= {"host": "RAFT_STAGE_HOST" in os.environ, "single": "JE_ARROW_MALLOC_CONF" in os.environ}
shown |= {"leader": os.getsid(0) == os.getpid(), "input": sys.stdin.read()}
shown |= {"descriptors": len(os.listdir("/proc/self/fd"))}
print(json.dumps(shown))
print("to stderr", file=sys.stderr)
sys.exit("error: no rows" if os.environ["DVC_STAGE"] == "bad" else 7)
"""
# Says its number and that of a process of its own; a signal may be caught.
WAIT = """
import os, signal, subprocess, sys, time
def save(*_):
    os.write(1, b"saved\\n")  # print may be at work
    sys.exit(75)
signal.signal(signal.SIGINT, save)
inner = subprocess.Popen(["sleep", "60"])
print(os.getpid(), inner.pid, flush=True)
time.sleep(60)
"""
HOLD = """
import os, sys, time
from flows import stage_host
stage_host.SERVE = os.environ["SERVE"]
with stage_host.stage_host(dict(os.environ)) as environment:
    print(environment["RAFT_STAGE_HOST"], flush=True)
    time.sleep(60)
"""


@pytest.fixture
def plain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage_host, "SERVE", LIGHT)
    return {**os.environ, "PYTHONPATH": str(ROOT), "SERVE": LIGHT}


@pytest.fixture
def hosted(plain):
    with stage_host.stage_host(plain) as environment:
        yield environment


def start(environment, code, **options):
    Path("code.py").write_text(code)
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "stage", "paths", "code.py"],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def finish(process):
    output = process.communicate(timeout=60)
    return process.returncode, *output


def waiting(environment):
    """A client, and the processes of its stage."""
    client = start(environment, WAIT, start_new_session=True)
    return client, [psutil.Process(int(number)) for number in client.stdout.readline().split()]


def wait_until_gone(processes):
    deadline = time.monotonic() + 20
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
        assert time.monotonic() < deadline, processes
        time.sleep(0.05)


def test_a_child_has_all_that_its_client_has(hosted, tmp_path):
    environment = {**hosted, "DVC_STAGE": "a@b"}
    code, output, errors = finish(start(environment, SHOW, umask=0o027, stdin=subprocess.DEVNULL))
    assert (code, errors) == (7, "to stderr\n")
    shown = json.loads(output)
    assert shown.pop("descriptors") <= 5  # three streams, the client's connection, the listing itself
    assert shown == {
        "folder": str(tmp_path), "mask": 0o027, "arguments": ["stage", "paths"], "stage": "a@b", "host": False,
        "single": False, "leader": True, "input": "",
    }  # fmt: skip
    code, _, errors = finish(start(environment | {"DVC_STAGE": "bad"}, SHOW, stdin=subprocess.DEVNULL))
    assert (code, errors) == (1, "to stderr\nerror: no rows\n")
    code, _, errors = finish(start(environment, "1 / 0"))
    assert code == 1
    assert errors.endswith("ZeroDivisionError: division by zero\n")


def test_an_interrupt_reaches_the_stage_which_saves(hosted):
    client, processes = waiting(hosted)
    os.killpg(client.pid, signal.SIGINT)
    assert finish(client)[:2] == (75, "saved\n")
    wait_until_gone(processes)  # what a stage leaves behind ends with it


def test_a_signal_that_ends_the_stage_is_what_dvc_sees(hosted):
    client, processes = waiting(hosted)
    client.terminate()
    assert finish(client)[0] == -signal.SIGTERM
    wait_until_gone(processes)
    client, processes = waiting(hosted)
    processes[0].kill()
    assert finish(client)[0] == -signal.SIGKILL
    wait_until_gone(processes)
    assert finish(start({**hosted, "DVC_STAGE": "a"}, SHOW, stdin=subprocess.DEVNULL))[0] == 7  # the host goes on


def test_two_stages_run_side_by_side(hosted):
    (first, of_first), (second, of_second) = waiting(hosted), waiting(hosted)
    first.kill()
    wait_until_gone(of_first)
    assert all(process.is_running() for process in of_second)
    second.kill()
    wait_until_gone(of_second)
    assert (finish(first)[0], finish(second)[0]) == (-signal.SIGKILL, -signal.SIGKILL)


def test_a_killed_host_takes_its_stages_along_and_the_next_ones_run_by_themselves(hosted):
    client, processes = waiting(hosted)
    processes[0].parent().kill()
    code, _, errors = finish(client)
    assert (code, errors) == (
        1,
        "error: the stage host was killed, and this stage with it; run the same command again\n",
    )
    wait_until_gone(processes)
    code, output, errors = finish(start(hosted, SHOW))
    assert (code, output) == (2, "")  # `raft` itself knows no stage of this name
    assert "'paths' is not one of" in errors


def test_everything_ends_with_a_killed_pipeline(plain):
    pipeline = subprocess.Popen([sys.executable, "-c", HOLD], env=plain, stdout=subprocess.PIPE, text=True)
    socket_path = Path(pipeline.stdout.readline().strip())
    client, processes = waiting({**plain, stage_host.HOST: str(socket_path)})
    host = processes[0].parent()
    pipeline.kill()
    pipeline.communicate()
    wait_until_gone([host, *processes])
    assert finish(client)[0] == 1
    assert not socket_path.parent.exists()


@pytest.mark.parametrize(
    ("change", "serve", "reason"),
    [
        ({"HF_HOME": "/elsewhere"}, LIGHT, "HF_HOME of the environment differ from the host's"),
        ({}, LIGHT.replace("= ()", "= ('flows.nothing',)"), "ModuleNotFoundError: No module named 'flows.nothing'"),
        ({}, "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n" + LIGHT,
         "the imports have started 1 threads"),
    ],
)  # fmt: skip
def test_where_a_child_would_differ_the_stage_runs_by_itself(plain, monkeypatch, change, serve, reason):
    monkeypatch.setattr(stage_host, "SERVE", serve)
    with stage_host.stage_host(plain) as hosted:
        code, output, errors = finish(start(hosted | change, SHOW))
    assert output == f"raft stage: the stage host does not serve it, it runs by itself: {reason}\n"
    assert code == 2
    assert "'paths' is not one of" in errors


def test_another_folder_is_refused(hosted, tmp_path):
    (tmp_path / "inner").mkdir()
    code, output, _ = finish(start(hosted, SHOW, cwd="inner"))
    assert code == 2
    assert f"the host works in {tmp_path} with " in output


EDITED = """
import sys, flows, pathlib
flows.__path__.append("extra")
""" + LIGHT.replace("= ()", "= ('flows.edited',)")


def test_code_that_was_edited_meanwhile_is_not_the_hosts_to_run(plain, monkeypatch):
    monkeypatch.setattr(stage_host, "SERVE", EDITED)
    Path("extra").mkdir()
    Path("extra/edited.py").write_text("STATE = 1\n")
    show = "from flows.edited import STATE; print(STATE)"
    with stage_host.stage_host(plain) as hosted:
        assert finish(start(hosted, show))[:2] == (0, "1\n")
        Path("extra/edited.py").write_text("STATE = 22\n")
        code, output, _ = finish(start(hosted, show))
    assert code == 2
    assert "extra/edited.py changed since the host imported it" in output


def test_what_stages_need_is_imported_ahead(plain, monkeypatch):
    monkeypatch.setattr(stage_host, "SERVE", EDITED.replace("('flows.edited',)", "()"))
    Path("extra").mkdir()
    Path("extra/edited.py").write_text("open('imported', 'w').close()\n")
    with stage_host.stage_host(plain, ["edited", "missing"]) as hosted:
        deadline = time.monotonic() + 60
        while not Path("imported").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)  # it notes the file's state after the import
        Path("extra/edited.py").write_text("edited = True\n")
        code, output, _ = finish(start(hosted, "print()"))
    assert code == 2
    assert "extra/edited.py changed since the host imported it" in output


def test_a_pipeline_uses_the_host_that_is_there(monkeypatch):
    monkeypatch.setenv(stage_host.HOST, "/tmp/there")
    with stage_host.stage_host(dict(os.environ)) as environment:
        assert environment[stage_host.HOST] == "/tmp/there"


STATE = """
import json, os, numpy, scipy.linalg, sklearn, torch, threadpoolctl
torch.ones(300, 300) @ torch.ones(300, 300), numpy.ones((300, 300)) @ numpy.ones((300, 300))
pools = sorted((pool["filepath"], pool["num_threads"]) for pool in threadpoolctl.threadpool_info())
names = ("OPENBLAS_NUM_THREADS", "JE_ARROW_MALLOC_CONF", "PYTORCH_NVML_BASED_CUDA_CHECK")
torch_state = torch.get_num_threads(), torch.cuda.is_initialized()
print(json.dumps([pools, torch_state, [os.environ.get(name) for name in names]]))
"""
FULL = """
import sys, flows.cli, flows.stage_host as host
host.WITH_MODELS = ("paths",)
flows.cli.main = lambda: exec(open(sys.argv[3]).read(), {})
host.serve(int(sys.argv[1]), sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("limits", [{"OMP_NUM_THREADS": "2"}, {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}])
def test_all_imports_leave_one_thread_no_cuda_and_the_thread_pools_of_a_fresh_process(plain, monkeypatch, limits):
    monkeypatch.setattr(stage_host, "SERVE", FULL)
    plain = {name: value for name, value in plain.items() if not name.endswith("_NUM_THREADS")} | limits
    fresh = subprocess.run([sys.executable, "-c", STATE], env=plain, capture_output=True, text=True, check=True).stdout
    with stage_host.stage_host(plain) as hosted:
        code, output, errors = finish(start(hosted, STATE))
        draw = "import numpy, random, torch; print(numpy.random.rand(), random.random(), torch.rand(1).item())"
        first, second = (finish(start(hosted, draw))[1].split() for _ in range(2))
        assert all(one != other for one, other in zip(first, second, strict=True))
    assert code == 0, output + errors
    of_fresh, of_child = dict(json.loads(fresh)[0]), dict(json.loads(output)[0])
    assert of_child.items() >= of_fresh.items()  # the host has imported more
    if len(os.sched_getaffinity(0)) >= 2:
        assert {*of_child.values()} == {int(limit) for limit in limits.values()}
    assert json.loads(output)[1:] == json.loads(fresh)[1:]
