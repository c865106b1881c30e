import json
from typing import Literal

import pyarrow.parquet
import pytest
from pydantic import BaseModel, ConfigDict

from raft_tasks import artifacts
from raft_tasks.artifacts import (
    atomic_file,
    atomic_folder,
    count_rows,
    digest,
    digest_path,
    read_rows,
    read_yaml,
    row_writer,
    write_json,
    write_rows,
)
from raft_tasks.errors import InputError
from raft_tasks.schemas import TrainingPair

ROWS = [TrainingPair(id="a", question="q?", answer="Größe\u2028x"), TrainingPair(id="b", question="r?", answer="s")]


def test_rows_round_trip_with_equal_bytes(tmp_path):
    write_rows(tmp_path / "deep" / "rows.jsonl", ROWS)
    first = (tmp_path / "deep" / "rows.jsonl").read_bytes()
    assert read_rows(tmp_path / "deep" / "rows.jsonl", TrainingPair) == ROWS
    write_rows(tmp_path / "deep" / "rows.jsonl", ROWS)
    assert (tmp_path / "deep" / "rows.jsonl").read_bytes() == first


class Everything(BaseModel):
    model_config = ConfigDict(extra="forbid")
    id: str
    number: int | None
    share: float
    sure: bool
    kind: Literal["a", "b"]
    words: list[str]
    scores: dict[str, float]
    parts: list[TrainingPair]
    either: int | str


def test_rows_in_shards_are_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "SHARD_ROWS", 4)
    rows = [
        Everything(
            id=str(n), number=n if n % 2 else None, share=n / 7, sure=n > 3, kind="a", words=["x"] * (n % 3),
            scores={"é": 0.1}, parts=ROWS[: n % 2], either=n if n % 2 else "ü",
        )
        for n in range(10)
    ]  # fmt: skip
    path = tmp_path / "deep" / "rows.parquet"
    write_rows(path, iter(rows))
    assert sorted(shard.name for shard in path.iterdir()) == [f"part-0000{n}.parquet" for n in range(3)]
    assert read_rows(path, Everything) == rows
    assert count_rows(path) == 10
    table = pyarrow.parquet.read_table(path)
    assert [str(table.schema.field(name).type) for name in ("number", "share", "sure", "kind")] == [
        "int64", "double", "bool", "string",
    ]  # fmt: skip
    before = digest_path(path)
    with row_writer(tmp_path / "rows.parquet", Everything) as write:
        for row in rows:
            write(row.model_dump_json())
    assert digest_path(tmp_path / "rows.parquet") == before
    with pytest.raises(InputError, match=r"part-00000\.parquet:1: not a TrainingPair row"):
        read_rows(path, TrainingPair)


def test_no_rows_in_shards(tmp_path):
    write_rows(tmp_path / "rows.parquet", [])
    assert read_rows(tmp_path / "rows.parquet", TrainingPair) == []
    assert count_rows(tmp_path / "rows.parquet") == 0


def test_a_wrong_row_is_named_by_file_and_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(ROWS[0].model_dump_json() + "\n" + json.dumps({"id": "b"}) + "\n")
    with pytest.raises(InputError, match=r"rows\.jsonl:2: not a TrainingPair row"):
        read_rows(path, TrainingPair)


def test_a_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match="dvc repro"):
        read_rows(tmp_path / "none.jsonl", TrainingPair)


def write_half(path, then):
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        raise then


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, 1)
    with pytest.raises(KeyboardInterrupt):
        write_half(path, KeyboardInterrupt())
    assert path.read_text() == "1\n"
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_nan_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "value.json", float("nan"))
    assert list(tmp_path.iterdir()) == []


def fill_folder(path, fail):
    with atomic_folder(path) as folder:
        (folder / "new").write_text("new")
        if fail:
            raise RuntimeError("no")


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(RuntimeError):
        fill_folder(path, fail=True)
    assert [p.name for p in path.iterdir()] == ["old"]
    fill_folder(path, fail=False)
    assert [p.name for p in path.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_digest_sees_content_not_identity():
    assert digest([ROWS, {"b": 1, "a": 2}]) == digest([list(ROWS), {"a": 2, "b": 1}])
    assert digest(ROWS) != digest(ROWS[::-1])
    with pytest.raises(TypeError, match="cannot digest"):
        digest(object())


def test_digest_path_sees_names_and_bytes(tmp_path):
    (tmp_path / "a").write_text("x")
    first = digest_path(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = digest_path(tmp_path)
    (tmp_path / "b").write_text("y")
    assert len({first, second, digest_path(tmp_path)}) == 3
    with pytest.raises(FileNotFoundError):
        digest_path(tmp_path / "none")


def test_a_conflict_in_a_file_of_yaml_is_named(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("a: 1\n<<<<<<< HEAD\nb: 1\n=======\nb: 2\n>>>>>>> new\n")
    with pytest.raises(InputError, match=r"params\.yaml:2: a conflict of a git merge; keep one of its two versions"):
        read_yaml(path)
