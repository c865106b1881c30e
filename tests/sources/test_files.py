import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis.strategies import characters, lists, sampled_from, text

from raft_tasks.errors import InputError
from raft_tasks.schemas import Reject
from raft_tasks.sources.files import CONTENT_CHARACTERS, RawRow, find_files, read_file
from raft_tasks.sources.roles import Roles

COLUMNS = {"question": "q", "answer": "a", "expected": "say"}
ROWS = [{"q": "What?", "a": 'It, "this".', "say": ["this"]}, {"q": "Où ?", "a": "Là-bas\n漢字", "say": None}]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parquet(path: Path, rows: list[dict]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def read(path: Path) -> list[RawRow | Reject]:
    return list(read_file(path, Roles(COLUMNS)))


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
    ],
)
def test_a_record_with_other_fields_is_rejected_with_its_line(
    tmp_path: Path, body: str, line: int, reason: str
) -> None:
    rejects = [row for row in read(write(tmp_path / "x.csv", "q,a,say\n" + body)) if isinstance(row, Reject)]
    assert [(row.line, row.reason) for row in rejects] == [(line, rejects[0].reason)]
    assert reason in rejects[0].reason


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ('1,2,3\n1,2,"3\nand more\n', 3),  # to the end of the file
        ('1,"2"x,3\n5,6,7\n', 2),
        ('1,"two\nlines",3\n4,"5,6\n7,"8, 9",10\n', 4),  # up to a quote that opens
        ('1,2,3\n4,"5,6\n7,8",9,"10"\n', 3),  # up to a quote that closes: one record of four fields
        ('"1\n2,3,4\n"5",6,7\n', 2),
        ('1,"2 \\"two\\" 2",3\n', 2),
    ],
)
def test_an_unclosed_quote_is_the_files_fault_with_the_line_where_it_opens(
    tmp_path: Path, body: str, line: int
) -> None:
    with pytest.raises(InputError, match=rf"x\.csv:{line}: broken CSV: .*a quote that opens here has no end"):
        read(write(tmp_path / "x.csv", "q,a,say\n" + body))


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ('{"q": "1", "a": "2", "say": "3"}\n[\n', 2, "JSON over several lines"),
        ('{\n "q": "1"\n}\n', 1, "JSON over several lines"),
        ('[{"q": "1", "a": "2"}, {"q": "3", "a": "4"}]\n', 1, "a list of objects"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:aa\n", 1, "run `git lfs pull`"),
    ],
)
def test_a_file_whose_lines_are_no_rows_is_refused_whole(tmp_path: Path, content: str, line: int, reason: str) -> None:
    with pytest.raises(InputError) as error:
        read(write(tmp_path / "x.jsonl", content))
    assert f"x.jsonl:{line}: " in str(error.value)
    assert reason in str(error.value)


def test_several_values_of_a_line_are_rejected_one_by_one(tmp_path: Path) -> None:
    values = ['{"q": "1", "a": "2"}', '{"q": "3", "a": "4"}', '{"q": 5']
    rows = read(write(tmp_path / "x.jsonl", "\r".join(values)))
    assert [row.content.strip() for row in rows] == values
    reasons = [row.reason for row in rows if isinstance(row, Reject)]
    assert [reason.split(":")[0].split(" several")[0] for reason in reasons] == ["one of", "one of", "broken JSON"]


def test_a_key_that_stands_twice_is_rejected(tmp_path: Path) -> None:
    content = '{"q": "1", "a": "first", "a": "second", "say": null}\n'
    [bad] = read(write(tmp_path / "x.jsonl", content))
    assert isinstance(bad, Reject)
    assert bad.reason == "broken JSON: the key 'a' stands twice"
    twins = pyarrow.table([pyarrow.array(["x"])] * 4, names=["q", "a", "a", "say"])
    pyarrow.parquet.write_table(twins, tmp_path / "x.parquet")
    with pytest.raises(InputError, match="column 'a' stands twice"):
        read(tmp_path / "x.parquet")


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_compressed_rows_are_read_and_cut_ones_refused(tmp_path: Path, ending: str) -> None:
    lines = "".join(json.dumps({"q": str(n), "a": str(n * n), "say": None}) + "\n" for n in range(5000))
    path = tmp_path / f"x.jsonl.{ending}"
    with pyarrow.output_stream(str(path), compression={"gz": "gzip", "zst": "zstd"}[ending]) as out:
        out.write(lines.encode())
    assert [row.values["question"] for row in read(path) if isinstance(row, RawRow)] == [str(n) for n in range(5000)]
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="cannot be read"):
        read(path)


def test_a_question_of_several_columns(tmp_path: Path) -> None:
    rows = [
        {"q": "Translate.", "in": "Hello", "a": "Salut"},
        {"q": "Sing.", "in": "", "a": "La"},
        {"in": "x", "a": "y"},
    ]
    path = write(tmp_path / "x.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def questions(question: str | list[str]) -> list[str]:
        return [row.values["question"] for row in read_file(path, Roles({"question": question, "answer": "a"}))]

    assert questions(["q", "in"]) == ["Translate.\n\nHello", "Sing.", "x"]
    assert questions("{{ q }}{% if text %}: {{ text }}{% endif %}".replace("text", "a")) == [
        "Translate.: Salut", "Sing.: La", ": y",
    ]  # fmt: skip


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_an_input_that_nothing_reads_stops_and_other_columns_are_named(tmp_path: Path, ending: str) -> None:
    rows = [{"q": "1", "a": "2", "Context": "", "note": "n"}, {"q": "1", "a": "2", "Context": "long", "note": ""}]
    path = tmp_path / f"x.{ending}"
    if ending == "jsonl":
        write(path, "".join(json.dumps(row) + "\n" for row in rows))
    elif ending == "csv":
        write(path, "q,a,Context,note\n1,2,,n\n1,2,long,\n")
    else:
        parquet(path, rows)
    columns = {"question": "q", "answer": "a"}
    with pytest.raises(InputError, match=r"column 'Context' has a value and nothing reads it.*columns\.unused"):
        list(read_file(path, Roles(columns)))
    roles = Roles(columns, unused=["Context"])
    assert len(list(read_file(path, roles))) == 2
    assert list(roles.unread) == ["note"]


@settings(max_examples=200, deadline=None)
@given(rows=lists(lists(text(characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=2, max_size=2)))
def test_what_csv_writes_is_read_back_row_by_row(tmp_path_factory, rows: list[list[str]]) -> None:
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    with path.open("w", newline="", encoding="utf-8") as out:
        csv.writer(out, quoting=csv.QUOTE_ALL).writerows([["q", "a"], *rows])
    expected = [row for row in rows if any(field.strip() for field in row)]
    assert [
        [row.values.get("question", ""), row.values.get("answer", "")]
        for row in read_file(path, Roles({"question": "q", "answer": "a"}))
        if isinstance(row, RawRow)
    ] == expected


@settings(max_examples=200, deadline=None)
@given(lines=lists(text('ab,"\n\r{}[]:\\ 1', max_size=12), max_size=6), ending=sampled_from(["csv", "jsonl"]))
def test_no_row_begins_inside_another(tmp_path_factory, lines: list[str], ending: str) -> None:
    """Whatever the bytes: every row stands on lines of its own, in order, or the file is refused."""
    path = tmp_path_factory.mktemp("any") / f"x.{ending}"
    head = "q,a\n" if ending == "csv" else '{"q": "1", "a": "2"}\n'
    path.write_text(head + "\n".join(lines), encoding="utf-8", newline="")
    try:
        rows = list(read_file(path, Roles({"question": "q", "answer": "a"})))
    except InputError:
        return
    content = path.read_bytes().decode().split("\n")
    numbers = [row.line for row in rows]
    assert numbers == sorted(numbers)
    assert ending == "jsonl" or len(set(numbers)) == len(numbers)
    for row in rows:
        text, begin = "\n".join(content[row.line - 1 :]).lstrip(), row.content.split(" [...]")[0][:5].strip()
        assert text.startswith(begin) or (
            ending == "jsonl" and begin in content[row.line - 1]
        )  # a second object of a line
    taken = sum(row.content.count("\n") + 1 for row in rows)
    blank = sum(not line.strip(' ,"\r') for line in content)
    assert taken + blank >= len(content) - (ending == "csv")  # the counts add up: no line is lost


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    if ending == "parquet":
        parquet(path, [{"q": "1", "answer": "2", "say": "3"}])
    else:
        write(path, '{"q": "1", "answer": "2", "say": "3"}\n' if ending == "jsonl" else "q,answer,say\n1,2,3\n")
    with pytest.raises(InputError) as error:
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
    with pytest.raises(InputError, match=rf"x\.{ending}:{line}: not UTF-8 \(byte {byte}\); save the whole file"):
        read(path)


def test_what_is_no_file_of_a_known_kind_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"got the ending '\.txt', expected one of \.jsonl, \.csv"):
        read(write(tmp_path / "x.txt", "q"))
    with pytest.raises(InputError, match=r"cannot be read: .*No such file"):
        read(tmp_path / "x.jsonl")
    with pytest.raises(InputError, match="not readable as Parquet after row 0"):
        read(write(tmp_path / "x.parquet", "q,a\n1,2\n"))
    with pytest.raises(InputError, match="column 'q' stands twice"):
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
    with pytest.raises(InputError, match=r"no file matches '\*\.tsv' in .*; correct `files`"):
        find_files(["*.tsv"], Path())


def test_empty_files_have_no_rows(tmp_path: Path) -> None:
    assert read(write(tmp_path / "x.jsonl", "\n\n")) == []
    assert read(write(tmp_path / "x.csv", "")) == []
