import json
import multiprocessing
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raft_tasks.errors import InputError
from raft_tasks.generation.response_cache import (
    CachedCall,
    ResponseCache,
    Tally,
    open_session,
)


def _put(path, name, count):
    store = ResponseCache(path)
    for n in range(count):
        call = CachedCall(f"{name}-{n}", "rewrite", "m", False, 1, 1, 0.0, json.dumps(n))
        store.put([call], "run", Tally(calls=1, tokens=1))
    store.close()


def test_threads_and_processes_share_a_store(tmp_path):
    store = open_session(tmp_path / "responses.sqlite", "run", "rewrite")
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_put, args=(store.path, f"process {n}", 40)) for n in range(2)]
    for other in others:
        other.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: _put(store.path, f"thread {n}", 40), range(4)))
    for other in others:
        other.join()
        assert other.exitcode == 0
    assert store.tally("run") == Tally(calls=240, tokens=240)
    assert sum(row[1] for row in store.summary("role")) == 240


def _open_all(paths):
    for path in paths:
        ResponseCache(path).close()


def test_processes_that_open_a_new_store_at_once_wait_for_each_other(tmp_path):
    paths = [tmp_path / f"{number}.sqlite" for number in range(25)]
    with multiprocessing.get_context("spawn").Pool(6) as pool:
        pool.map(_open_all, [paths] * 6, chunksize=1)
    assert all(path.exists() for path in paths)


@pytest.mark.parametrize("damage", ["not a database", "torn"])
def test_a_damaged_file_is_told(tmp_path, damage):
    path = tmp_path / "responses.sqlite"
    _fill(path)
    head, rest = path.read_bytes()[:4096], path.stat().st_size - 4096
    path.write_bytes(b"hello " * 1000 if damage == "not a database" else head + b"\xff" * rest)
    with pytest.raises(InputError, match=r"responses\.sqlite is damaged .*move it away"):
        ResponseCache(path).summary("role")


def test_another_version_or_an_unusable_place_is_told(tmp_path):
    path = tmp_path / "responses.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(InputError, match="version 99, expected 1"):
        ResponseCache(path)
    with pytest.raises(InputError, match="must lie on a local disk"):
        ResponseCache(tmp_path)


def _fill(path: Path):
    """Ten calls a day apart, the newest last, each value 100 bytes."""
    store = ResponseCache(path)
    store.begin("run", "rewrite")
    for n in range(10):
        role, failed = ("judge", n == 5) if n % 2 else ("rewrite", False)
        store.put([CachedCall(str(n), role, "m", failed, 1, 1, 0.5, "x" * 100)], "run", Tally())
    store.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE calls SET made = made - (9 - CAST(key AS INTEGER)) * 86400")
    connection.commit()
    connection.execute("VACUUM")
    connection.close()


PRUNE = {"older_than": None, "role": None, "failed": False, "to_bytes": None}


@pytest.mark.parametrize(
    ("how", "left"),
    [
        ({"older_than": 3.5 * 86400}, "6789"),
        ({"role": "judge"}, "02468"),
        ({"failed": True}, "012346789"),
        ({"to_bytes": 350}, "789"),
        ({"role": "judge", "older_than": 3.5 * 86400}, "0246789"),
        ({"role": "judge", "to_bytes": 650}, "02456789"),
        ({"to_bytes": 10**6}, "0123456789"),
    ],
    ids=str,
)
def test_pruning(tmp_path, how, left):
    path = tmp_path / "responses.sqlite"
    _fill(path)
    store = ResponseCache(path)
    assert store.prune(**PRUNE | how) == 10 - len(left)
    keys = store._connection.execute("SELECT key FROM calls ORDER BY key")
    assert "".join(key for (key,) in keys) == left
