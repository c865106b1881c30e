import os
import subprocess
import sys
import time

import psutil

from flows.runners import claim

HOLD = """
import pathlib, sys
from flows.runners import claim
print(claim(["0", "1"], pathlib.Path(sys.argv[1])), flush=True)
input()
"""
ORPHAN = """
import os, pathlib, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from flows.runners import prepare_worker
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("spawn"), prepare_worker, ([], pathlib.Path(sys.argv[1])))
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""


def test_a_gpu_belongs_to_one_process_as_long_as_it_lives(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    first, second = (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    assert {process.stdout.readline().strip() for process in (first, second)} == {"0", "1"}
    assert claim(["0", "1"], tmp_path) in ("0", "1")  # more workers than GPUs: they share
    for process in (first, second):
        process.communicate("done")
    assert claim(["7"], tmp_path) == "7"
    assert claim(["0", "1"], tmp_path) == "0"  # free again


def test_a_worker_ends_with_its_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(ORPHAN)
    environment = {**os.environ, "PYTHONPATH": "."}
    command = [sys.executable, str(script), str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 20
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
