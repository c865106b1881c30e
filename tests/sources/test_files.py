from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from raft_tasks.schemas import Reject
from raft_tasks.sources.files import CONTENT_CHARACTERS, RawRow, SourceError, find_files, read_file

COLUMNS = {"question": "q", "answer": "a", "expected": "say"}
ROWS = [{"q": "What?", "a": 'It, "this".', "say": ["this"]}, {"q": "Où ?", "a": "Là-bas\n漢字", "say": None}]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parquet(path: Path, rows: list[dict]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def read(path: Path) -> list[RawRow | Reject]:
    return list(read_file(path, COLUMNS))


def values(path: Path) -> list[dict]:
    return [row.values if isinstance(row, RawRow) else {"reject": row.reason} for row in read(path)]


def test_jsonl_csv_and_parquet_hold_the_same_rows(tmp_path: Path) -> None:
    lines = '{"q": "What?", "a": "It, \\"this\\".", "say": ["this"]}\n\n{"a": "Là-bas\\n漢字", "q": "Où ?"}\n'
    table = '\ufeffq,a,say\nWhat?,"It, ""this"".","[""this""]"\nOù ?,"Là-bas\n漢字",\n'
    expected = [{"question": r["q"], "answer": r["a"], **({"expected": r["say"]} if r["say"] else {})} for r in ROWS]
    assert values(write(tmp_path / "x.jsonl", lines)) == expected
    assert values(parquet(tmp_path / "x.parquet", ROWS)) == expected
    as_text = [expected[0] | {"expected": '["this"]'}, expected[1]]
    assert values(write(tmp_path / "x.CSV", table)) == as_text
    assert [row.line for row in read(tmp_path / "x.jsonl")] == [1, 3]
    assert [row.line for row in read(tmp_path / "x.CSV")] == [2, 3]
    assert [row.line for row in read(tmp_path / "x.parquet")] == [1, 2]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"q": "What?", "a": }', "broken JSON: Expecting value"),
        ('["q", "a"]', "got a JSON list, expected an object"),
        ("7", "got a JSON int, expected an object"),
        ("[" * 100_000, "broken JSON: maximum recursion"),
        ('{"q": ' + "9" * 5000 + "}", "broken JSON: Exceeds the limit"),
    ],
)
def test_a_broken_json_line_is_rejected_alone(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path / "x.jsonl", f'{{"q": "1", "a": "2", "say": "3"}}\n{line}\n{{"q": "4", "a": "5"}}\n')
    first, bad, last = read(path)
    assert isinstance(bad, Reject)
    assert (bad.file, bad.line) == (str(path), 2)
    assert reason in bad.reason
    assert bad.content.startswith(line[:CONTENT_CHARACTERS])
    assert len(bad.content) < CONTENT_CHARACTERS + 10
    assert isinstance(first, RawRow)
    assert isinstance(last, RawRow)


@pytest.mark.parametrize(
    ("body", "line", "reason"),
    [
        ("1,2,3\n1,2,3,4\n5,6,7\n", 3, "got 4 fields, expected 3"),
        ("1,2,3\n1,2\n5,6,7\n", 3, "got 2 fields, expected 3"),
        ('1,2,3\n1,2,"3\nand more\n', 3, "broken CSV: unexpected end of data"),
        ('1,"2"x,3\n5,6,7\n', 2, "broken CSV: ',' expected after '\"'"),
    ],
)
def test_a_broken_csv_record_is_rejected_with_its_first_line(tmp_path: Path, body: str, line: int, reason: str) -> None:
    rejects = [row for row in read(write(tmp_path / "x.csv", "q,a,say\n" + body)) if isinstance(row, Reject)]
    assert [(row.line, row.reason) for row in rejects] == [(line, rejects[0].reason)]
    assert reason in rejects[0].reason


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    if ending == "parquet":
        parquet(path, [{"q": "1", "answer": "2", "say": "3"}])
    else:
        write(path, '{"q": "1", "answer": "2", "say": "3"}\n' if ending == "jsonl" else "q,answer,say\n1,2,3\n")
    with pytest.raises(SourceError) as error:
        read(path)
    assert str(error.value) == (
        f"{path}: no column 'a' (for answer); the columns there are 'q', 'answer', 'say'; "
        "correct `columns` in params.yaml"
    )


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
@pytest.mark.parametrize(
    ("content", "line", "byte"),
    [("q,a,say\n1,2,3\ncaf\xe9,2,3\n".encode("latin-1"), 3, "0xe9 at 4"), ("q,a\n".encode("utf-16"), 1, "0xff at 1")],
)
def test_another_encoding_names_file_line_and_byte(
    tmp_path: Path, ending: str, content: bytes, line: int, byte: str
) -> None:
    path = write(tmp_path / f"x.{ending}", content)
    with pytest.raises(SourceError, match=rf"x\.{ending}:{line}: not UTF-8 \(byte {byte}\); save the whole file"):
        read(path)


def test_what_is_no_file_of_a_known_kind_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"got the ending '\.txt', expected one of \.jsonl, \.csv, \.parquet"):
        read(write(tmp_path / "x.txt", "q"))
    with pytest.raises(SourceError, match=r"cannot be read: .*No such file"):
        read(tmp_path / "x.jsonl")
    with pytest.raises(SourceError, match="not readable as Parquet after row 0"):
        read(write(tmp_path / "x.parquet", "q,a\n1,2\n"))
    with pytest.raises(SourceError, match="column 'q' stands twice"):
        read(write(tmp_path / "x.csv", "q,a,say,q\n1,2,3,4\n"))


def test_files_come_in_the_order_of_the_patterns_and_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.jsonl", "a.jsonl", "c.csv"):
        write(tmp_path / name, "")
    (tmp_path / "d.jsonl").mkdir()
    assert list(map(str, find_files(["c.*", "*.jsonl", "a.jsonl"], Path()))) == ["c.csv", "a.jsonl", "b.jsonl"]
    assert list(map(str, find_files(["*.{jsonl,tsv,csv}"], Path()))) == ["a.jsonl", "b.jsonl", "c.csv"]
    with pytest.raises(SourceError, match=r"no file matches '\*\.tsv' in .*; correct `files`"):
        find_files(["*.tsv"], Path())


def test_empty_files_have_no_rows(tmp_path: Path) -> None:
    assert read(write(tmp_path / "x.jsonl", "\n\n")) == []
    assert read(write(tmp_path / "x.csv", "")) == []
