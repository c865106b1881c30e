"""Files that broke a reader once: each gives what a careful person would expect of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from qa import BY_COLUMN, decided, domain

from raft_tasks.config import Chat, Ingest, SplitBySource
from raft_tasks.errors import InputError
from raft_tasks.schemas import Example, Reject
from raft_tasks.sources.conversations import UnusableError
from raft_tasks.sources.examples import examples_of
from raft_tasks.sources.files import RawRow, read_file
from raft_tasks.sources.roles import Roles, roles_of

FAULTS = Path(__file__).parents[3] / "shared" / "data" / "faults"
PAIR = {"question": "question", "answer": "answer"}
pytestmark = pytest.mark.skipif(not FAULTS.is_dir(), reason="the files of faults are not beside the checkout")


def read(name: str, **columns: Any) -> list[RawRow | Reject]:
    return list(read_file(FAULTS / name, Roles(columns or PAIR)))


def answers(name: str) -> list[Any]:
    return [row.values.get("answer") if isinstance(row, RawRow) else row.reason for row in read(name)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alpaca.jsonl", r"alpaca\.jsonl: no column 'question'"),
        ("csv_stray_quote.csv", r"csv_stray_quote\.csv:102: broken CSV"),
        ("csv_stray_quote_phase.csv", r"csv_stray_quote_phase\.csv:7: broken CSV"),
        ("csv_backslash_quote.csv", r"csv_backslash_quote\.csv:2: broken CSV"),
        ("csv_cp1252.csv", r"csv_cp1252\.csv:2: not UTF-8 \(byte 0xe9"),
        ("csv_cr_only.csv", r"csv_cr_only\.csv:"),
        ("csv_semicolon.csv", r"csv_semicolon\.csv: no column .*not ';'"),
        ("csv_tab.csv", r"csv_tab\.csv: no column .*not '\\t'"),
        ("csv_utf16.csv", r"csv_utf16\.csv:1: not UTF-8"),
        ("jl_utf16.jsonl", r"jl_utf16\.jsonl:1: not UTF-8"),
        ("jl_array.jsonl", r"jl_array\.jsonl:1: a list of objects"),
        ("jl_pretty.jsonl", r"jl_pretty\.jsonl:1: JSON over several lines"),
        ("lfs.jsonl", r"lfs\.jsonl:1: a Git LFS pointer"),
        ("rows.json", r"got the ending '\.json'"),
        ("html.parquet", r"html\.parquet: not readable as Parquet"),
        ("not.parquet", r"not\.parquet: not readable as Parquet"),
        ("struct_cols.parquet", r"no column 'question' .*the columns there are 'data'"),
        ("dupcols.parquet", r"dupcols\.parquet: column '\w+' stands twice"),
    ],
)
def test_a_fault_of_the_file_is_named_with_its_line(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(name)


def test_a_second_column_belongs_to_the_question() -> None:
    with pytest.raises(InputError, match=r"alpaca\.jsonl:1: column 'input' has a value and nothing reads it"):
        read("alpaca.jsonl", question="instruction", answer="output")
    rows = read("alpaca.jsonl", question=["instruction", "input"], answer="output")
    assert {row.values["question"] for row in rows if isinstance(row, RawRow)} == {
        f"Translate to French.\n\n{word}" for word in ("Hello", "Dog", "Cat")
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("csv_bom_crlf_excel.csv", ['a "quoted" word', None]),
        ("csv_bom_quoted_header.csv", ["a"]),
        ("csv_header_space.csv", [" a"]),
        ("csv_na.csv", ["NA", "null", "TRUE", "5"]),
        ("csv_nul.csv", ["a"]),
        ("csv_sep_line.csv", ["a1"]),
        ("csv_single_col_quotes.csv", ['a "thick" one']),
        ("csv_trailing_commas.csv", ["a", "got 2 fields, expected 4 as in the header"]),
        ("empty.csv", []),
        ("empty.jsonl", []),
        ("header_only.csv", []),
        ("jl_concat_nonl.jsonl", ["a"]),
        ("jl_crlf.jsonl", ["a\r\nb", "a2"]),
        ("rows.jsonl.gz", ["a"]),
        ("zero.parquet", []),
    ],
)
def test_rows_are_as_the_file_has_them(name: str, expected: list[Any]) -> None:
    assert answers(name) == expected


def test_odd_json_lines_are_rows_or_rejects() -> None:
    rows = read("jl_misc.jsonl")
    lines = (FAULTS / "jl_misc.jsonl").read_text(encoding="utf-8-sig").split("\n")
    assert {row.line for row in rows} == {number for number, line in enumerate(lines, start=1) if line.strip()}
    assert [row.reason for row in rows if isinstance(row, Reject) and "twice" in row.reason] == [
        "broken JSON: the key 'answer' stands twice"
    ]


OUTCOMES = {  # columns, and what becomes of each row: its question, or the beginning of the reason
    "dates.parquet": ({}, ["answer: got datetime"]),
    "dup_ids.parquet": ({"id": "id"}, ["q1?", "q2?", "q1?"]),  # that two share an id, `ingest` sees
    "ids.parquet": ({"id": "id"}, ["id: got bytes"] * 3),
    "longid.jsonl": (
        {"id": "id"},
        ["id has 100000 characters, at most 500", "no id", "no id", "q4", "id: got bool True", "q6"],
    ),
    "pandas.parquet": ({}, ["q?"]),
    "qa_binary.parquet": ({}, ["question: got bytes"]),
    "qa_dictionary.parquet": ({}, ["q1?", "q1?"]),
    "qa_listans.parquet": ({}, ["answer: got list"]),
    "qa_types.parquet": ({"id": "id"}, ["id: got float", "no answer", "no question", "answer is blank"]),
    "squad.parquet": ({}, ["answer: got dict"]),
    "split.jsonl": (
        {"split": "s"},
        ["q0", "q1", "q2", *(f"split: got {name!r}" for name in ("valid", "dev", "val", "Train", "TRAIN")), "q8",
         "split: got 'eval'"],
    ),
    "expected.jsonl": (
        {"expected": "e"},
        ["expected is not a JSON list", "q2", "expected: got int 5", "an entry of expected: got int 1", "q5", "q6"],
    ),
    "jl_cr_only.jsonl": ({}, ["one of several JSON values in a line"] * 2),
    "jl_nested_deep.jsonl": ({}, ["broken JSON: maximum recursion depth"]),
    "chat.parquet": (
        {"chat": "messages"},
        ["q?", "messages: got NoneType", "messages: got list, expected a list of messages",
         "messages: a message of the assistant calls a tool"],
    ),
    "chat_columnar.parquet": ({"chat": "messages"}, ["q?"]),
    "chat_parts.parquet": ({"chat": "messages"}, ["q?"]),
    "chat_every_ids.jsonl": ({"chat": "messages", "id": "id"}, ["q1", "q2", "q3"]),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTCOMES)
def test_every_row_is_kept_or_rejected_with_its_reason(name: str) -> None:
    columns, expected = OUTCOMES[name]
    roles: dict[str, Any] = {"q": "question", "a": "answer"} if "chat" not in columns else {}
    roles = {"question": roles.get("q"), "answer": roles.get("a"), "split": None}
    roles |= {role: column for role, column in columns.items() if role != "chat"}
    chat = Chat(column="messages", conversation="all") if "chat" in columns else None
    split = BY_COLUMN if "split" in columns else SplitBySource(by="source", validation=0.2, test=0.3, seed=0)
    rows = domain([name], chat=chat, split=split, columns=roles)
    outcomes: list[str] = []
    for row in read_file(FAULTS / name, roles_of(rows)):
        try:
            outcomes += (
                [row.reason]
                if isinstance(row, Reject)
                else [example.question for example in examples_of(row, "d", rows, Ingest())]
            )
        except UnusableError as why:
            outcomes.append(str(why))
    assert len(outcomes) == len(expected)
    assert all(map(str.startswith, outcomes, expected)), outcomes


def test_every_file_of_faults_is_tried() -> None:
    text = Path(__file__).read_text()
    assert [path.name for path in sorted(FAULTS.iterdir()) if path.is_file() and f'"{path.name}"' not in text] == []


def chat_rows(tmp_path: Path, name: str) -> list[Example | Reject]:
    lines = (FAULTS / name).read_text().splitlines()
    lines += [
        json.dumps({"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]})
        for n in range(100, 110)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    split = SplitBySource(by="source", validation=0.2, test=0.3, seed=0)
    chat = Chat(column="messages", conversation="all")
    work = decided(tmp_path, domain(["rows.jsonl"], chat=chat, split=split, columns={"split": None}))
    rows = [row for row in work if isinstance(row, Reject) or not row.question.startswith("q1")]
    work.close()
    return rows


def test_conversations_do_not_leak_across_splits(tmp_path: Path) -> None:
    splits: dict[str, set[str]] = {}
    for row in chat_rows(tmp_path, "chat_every_leak.jsonl"):
        assert isinstance(row, Example)
        splits.setdefault(row.question.split(":")[0], set()).add(row.split)
    assert len(splits) == 30
    assert {len(several) for several in splits.values()} == {1}


def test_variants_of_conversations(tmp_path: Path) -> None:
    rows = chat_rows(tmp_path, "chat_variants.jsonl")
    learned = {row.question: row.answer for row in rows if isinstance(row, Example)}
    rejected = {row.line: row.reason for row in rows if isinstance(row, Reject)}
    assert len(learned) + len(rejected) == 26
    assert learned["No, really?"] == "A metal."
    assert learned["What is iodine?"] == "A halogen."
    assert not {"It is a bird.", "WRONG: a fruit.", "Let me look that up."} & {*learned.values()}
    for line, reason in {
        3: "calls a tool",
        4: "calls a tool",
        7: "is to be learned",
        8: "think block",
        9: "reasoning",
    }.items():
        assert reason in rejected[line]
