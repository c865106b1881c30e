"""The stage `ingest` as a user runs it, with its rows in Parquet shards."""

import json

from project_copies import copy_project

from raft_tasks.artifacts import count_rows, read_json, read_rows
from raft_tasks.schemas import Example, Flag, Reject


def test_rows_end_in_shards_rejects_and_flags(tmp_path, raft):
    project = copy_project(tmp_path, {"run": {"rows": "parquet"}, "ingest": {"max_rejected": 0.1}})
    pairs = project / "data" / "archive" / "pairs.jsonl"
    row = json.loads(pairs.read_text().split("\n", 1)[0])
    bad = {**row, "id": "bad", "answer": " "}
    private = {
        **row,
        "id": "private",
        "question": "Who knows more?",
        "answer": "Ask migin@example.org.",
        "split": "test",
    }
    with pairs.open("a") as out:
        out.write(json.dumps(bad) + "\n" + json.dumps(private) + "\n")
    (pairs.parent / "more.xlsx").write_text("no reader")
    done = raft(project, "stage", "ingest", "archive")
    assert done.returncode == 0, done.stderr
    folder = project / "artifacts" / "archive" / "examples"
    train = read_rows(folder / "train.parquet", Example)
    assert train[0].id == "registry-0000"
    assert read_rows(folder / "test.parquet", Example)[-1].id == "private"
    assert [reject.line for reject in read_rows(folder / "rejects.jsonl", Reject)] == [421]
    assert [flag.id for flag in read_rows(folder / "flags.jsonl", Flag)] == ["private"]
    assert "migin@" not in (folder / "flags.jsonl").read_text()
    assert read_json(project / "artifacts" / "archive" / "ingest.json") == {
        "rows": 422,
        "train": len(train),
        "validation": count_rows(folder / "validation.parquet"),
        "test": count_rows(folder / "test.parquet"),
        "left_out": 0,
        "rejected": 1,
        "rejected_by_rule": {"missing": 1},
        "flagged_by_rule": {"e-mail address": 1},
        "unread_columns": [],
        "unread_files": ["more.xlsx"],
    }
    assert sorted(path.name for path in folder.iterdir()) == [
        "curve.jsonl", "flags.jsonl", "rejects.jsonl", "test.parquet", "train.parquet", "validation.parquet",
    ]  # fmt: skip
