import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError

import pytest

from raft_tasks import file_digests
from raft_tasks.artifacts import digest_file, digest_path
from raft_tasks.file_digests import FileDigests


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "shards").mkdir(parents=True)
    for name in ("config.json", "shards/one.bin", "shards/two.bin"):
        (folder / name).write_text(name)
        age(folder / name, 100)
    return folder


def age(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.fixture
def read(monkeypatch):
    """The files whose bytes were read."""
    names = []
    monkeypatch.setattr(file_digests, "digest_file", lambda path: (names.append(path.name), digest_file(path))[1])
    return names


def digests_of(tmp_path, path):
    with FileDigests(tmp_path / "cache" / "digests.json") as digests:
        return digests.of(path)


def test_equals_digest_path_for_files_and_folders(tmp_path, model):
    assert digests_of(tmp_path, model) == digest_path(model)
    assert digests_of(tmp_path, model / "config.json") == digest_path(model / "config.json")


def test_reads_again_only_what_changed(tmp_path, model, read):
    first = digests_of(tmp_path, model)
    read.clear()
    assert digests_of(tmp_path, model) == first
    assert read == []
    (model / "config.json").write_text("other bytes")
    age(model / "config.json", 50)
    assert digests_of(tmp_path, model) == digest_path(model) != first
    assert read == ["config.json"]


def test_a_file_written_just_now_is_read_each_time(tmp_path, model, read):
    (model / "config.json").write_text("new")
    digests_of(tmp_path, model)
    read.clear()
    digests_of(tmp_path, model)
    assert read == ["config.json"]


def test_a_damaged_store_only_costs_time(tmp_path, model):
    digests_of(tmp_path, model)
    (tmp_path / "cache" / "digests.json").write_text("{half")
    assert digests_of(tmp_path, model) == digest_path(model)


def test_two_write_one_store(tmp_path, model, monkeypatch):
    both, rename = Barrier(2, timeout=1), os.replace

    def replace(*paths):
        with suppress(BrokenBarrierError):
            both.wait()
        rename(*paths)

    monkeypatch.setattr(os, "replace", replace)
    files = [model / "config.json", model / "shards/one.bin"]
    with ThreadPoolExecutor() as pool:
        assert [*pool.map(lambda path: digests_of(tmp_path, path), files)] == [*map(digest_path, files)]


def test_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        digests_of(tmp_path, tmp_path / "nothing")
