import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from qa import decided, domain

from raft_tasks.config import Hub
from raft_tasks.errors import InputError
from raft_tasks.schemas import Example
from raft_tasks.sources.files import find_files

ROWS = [
    {"q": f"q{n}", "a": f"a{n}", "split": "test" if n % 3 == 0 else "train", "kind": "law" if n % 2 else "web"}
    for n in range(12)
]


def hub(**changes: Any) -> Hub:
    values = {
        "id": "data/set", "config": None, "data_files": None, "split": "train", "revision": None, "streaming": True,
        "where": {}, "limit": None,
    }  # fmt: skip
    return Hub(**values | changes)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data" / "set").mkdir(parents=True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def questions(workspace: Path, found: Hub) -> list[str]:
    ingested = decided(workspace, domain([], hub=found))
    rows = list(ingested)
    ingested.close()
    assert all(isinstance(row, Example) for row in rows), rows
    return [row.question for row in rows if isinstance(row, Example)]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_data_set_is_read_filtered_and_bounded(workspace: Path, ending: str, streaming: bool) -> None:
    path = workspace / "data" / "set" / f"train.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert questions(workspace, hub(streaming=streaming)) == [f"q{n}" for n in range(12)]
    bounded = hub(streaming=streaming, where={"kind": ["law"]}, limit=4, data_files=[f"train.{ending}"])
    assert questions(workspace, bounded) == ["q1", "q3", "q5", "q7"]


@pytest.mark.parametrize("streaming", [True, False])
def test_csv_is_text_as_in_a_file(workspace: Path, streaming: bool) -> None:
    answers = {"NA": "q1", "null": "q2", "007": "q3", "True": "q4", "1.50": "q5"}
    lines = ["q,a,split", *(f"{q},{a},train" for a, q in answers.items()), "q6,x,test"]
    (workspace / "data" / "set" / "train.csv").write_text("\n".join(lines))
    ingested = decided(workspace, domain([], hub=hub(streaming=streaming)))
    rows = {row.answer: row.question for row in ingested if isinstance(row, Example)}
    ingested.close()
    assert rows == answers | {"x": "q6"}


def test_rejects_name_the_data_set_and_the_row(workspace: Path) -> None:
    rows = [*ROWS, {**ROWS[0], "q": ""}]
    (workspace / "data" / "set" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ingested = decided(workspace, domain([], hub=hub()))
    reject = list(ingested)[-1]
    ingested.close()
    assert (reject.file, reject.line, reject.reason) == ("data/set/train", 13, "question is blank")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "owner/name"}, "hub.revision: got None, expected the 40 hexadecimal digits of a commit of owner/name"),
        ({"id": "owner/name", "revision": "main"}, "got 'main', expected the 40 hexadecimal digits"),
        ({"id": "../elsewhere"}, "leads to"),
        ({"id": "/etc"}, "leads to /etc, outside of"),
        ({"id": "not a name"}, "hub.id: got 'not a name', expected a data set's owner/name, or a folder"),
        ({"revision": "0" * 40}, "for the folder data/set, expected null"),
        ({"split": "dev"}, "data/set/dev cannot be read: "),
        ({"where": {"language": ["en"]}}, "no column 'language'; the columns there are"),
        ({"data_files": ["none.parquet"]}, "cannot be read: "),
    ],
)
def test_what_cannot_be_read_is_said(workspace: Path, changes: dict[str, Any], message: str) -> None:
    (workspace.parent / "elsewhere").mkdir(exist_ok=True)
    (workspace / "data" / "set" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        decided(workspace, domain([], hub=hub(**changes)))


def test_an_unreachable_hub_is_a_clear_error(workspace: Path) -> None:
    """In a process of its own, with a hub at a closed port: huggingface_hub reads its address on import.

    The hub's client tries six times; the 23 seconds between its tries are skipped.
    """
    code = (
        "from pathlib import Path; import sys, time; sys.path.insert(0, 'tests/sources')\n"
        "time.sleep = lambda seconds: None\n"
        "from test_hub import hub; from raft_tasks.sources.hub import records\n"
        "from raft_tasks.errors import InputError\n"
        "try: list(records(hub(id='owner/name', revision='0' * 40), ['q'], Path()))\n"
        "except InputError as error: print(error)\n"
    )
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(workspace), "PATH": "", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, check=True, timeout=90
    )
    assert done.stdout.startswith("owner/name@000000000000/train cannot be read: ")
    assert "the network" in done.stdout


def test_no_file_outside_of_the_workspace_is_read(tmp_path: Path) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    home.mkdir()
    outside.mkdir()
    (outside / "x.jsonl").write_text("{}")
    (home / "link.jsonl").symlink_to(outside / "x.jsonl")
    (home / "folder").symlink_to(outside)
    (home / "good.jsonl").write_text("{}")
    (home / "inner.jsonl").symlink_to(home / "good.jsonl")
    (home / "bad\nname.jsonl").write_text("{}")
    assert find_files(["good.jsonl", str(home / "inner.jsonl")], home) == [home / "good.jsonl", home / "inner.jsonl"]
    for pattern in (
        "link.jsonl",
        "../outside/*.jsonl",
        str(outside / "*.jsonl"),
        "folder/*",
        "**/x.jsonl",
        "/etc/pass*",
    ):
        with pytest.raises(InputError, match="outside of"):
            find_files([pattern], home)
    for pattern in ("bad*", "x\x00y"):
        with pytest.raises(InputError, match="control characters"):
            find_files([pattern], home)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.csv", "q,a,split\nq1,a1,train\nq2,12,test\n", ["q1", "q2"]),
        ("x.tsv", "q\ta\tsplit\nq1\t1,5\ttrain\nq2\tb\ttest\n", ["q1", "q2"]),
        ("x.csv", "q,a,split\nq1,a1,train\nq,a,split\nq2,a2,test\n", ["q1", "x.csv:3: the header again", "q2"]),
        ("x.csv", "q,a,split\nq1,a1,train\nq2,a2,test\nq3,a3\n", ["q1", "q2", "x.csv:4: got 2 fields, expected 3"]),
        # pandas takes the first field of each row as its index, and the second as q
        ("x.csv", "q,a,split\nq1,a1,train,\nq2,a2,test,\n", "no row for train and test"),
        ("x.csv", "q,a,split,a\nq1,a1,train,b\n", "column 'a' stands twice"),
        ("x.csv", 'q,a,split\nq1,"a1,train\nq2,a2,test\n', r"x\.csv:2: broken CSV"),
        ("x.csv", 'q,a,split\nq1,"a \\" b",train\nq2,a2,test\n', r"x\.csv:2: broken CSV"),
        ("x.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"x\.csv:1: a Git LFS pointer"),
    ],
)
def test_tables_are_read_as_files_are(
    workspace: Path, name: str, content: str, expected: list[str] | str, streaming: bool
) -> None:
    (workspace / "data" / "set" / name).write_text(content)
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            decided(workspace, domain([], hub=hub(streaming=streaming)))
        return
    ingested = decided(workspace, domain([], hub=hub(streaming=streaming)))
    outcomes = [
        row.question if isinstance(row, Example) else f"{row.file.rpartition(':')[2]}:{row.line}: {row.reason}"
        for row in ingested
    ]
    ingested.close()
    assert len(outcomes) == len(expected)
    assert all(map(str.startswith, outcomes, expected)), outcomes
