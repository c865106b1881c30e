"""Which columns `raft init` takes for the question and the answer."""

import csv
import json
from pathlib import Path

import pandas as pd
import pytest

from raft_tasks.config import Domain
from raft_tasks.errors import InputError
from raft_tasks.sources.columns import recognise_columns
from raft_tasks.sources.files import read_file
from raft_tasks.sources.roles import Roles, roles_of


def written(folder: Path, *rows: dict[str, object]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "columns", "text"),
    [
        ({"question": "?", "answer": "!"}, ("question", "answer"), "took `question` as the question"),
        ({"prompt": "?", "completion": "!"}, ("prompt", "completion"), "took `prompt` as the question, `completion`"),
        ({"prompt": "?", "response": "!", "id": 1}, ("prompt", "response"), "not used: 'id'"),
        ({"Question": "?", "Answer": "!"}, ("Question", "Answer"), "took `Question`"),
        ({"instruction": "?", "input": "", "output": "!"}, ("instruction", "output"), "not used: 'input'"),
        ({"instruction": "?", "input": "x", "output": "!"}, (["instruction", "input"], "output"), "`instruction` and"),
        ({"input": "?", "output": "!"}, ("input", "output"), "took `input` as the question, `output` as the answer"),
    ],
)
def test_columns_are_taken_by_their_usual_names(tmp_path, row, columns, text):
    recognised = recognise_columns(written(tmp_path, row))
    assert recognised.columns == dict(zip(("question", "answer"), columns, strict=True))
    assert text in recognised.text
    assert recognised.chat is None


def test_columns_that_decide_on_rows_are_named(tmp_path):
    rows = [
        {"question": "?", "answer": "!", "weight": n, "label": bool(n), "thread_id": n, "chat_id": n, "n": n}
        for n in range(2)
    ]
    assert recognise_columns(written(tmp_path, *rows)).text == (
        "took `question` as the question, `answer` as the answer; rows marked as not learned, or as cut, by "
        "'weight', 'label' are rejected; rows of one 'thread_id' share a split; not used: 'chat_id', 'n'"
    )
    rows = [{"question": "?", "answer": "!", "label": "rope", "weight": 2.5}]  # a class, and a mass
    assert recognise_columns(written(tmp_path, *rows)).text.endswith("; not used: 'label', 'weight'")


def test_columns_beside_conversations_are_named_and_can_be_left_out(tmp_path):
    talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    row = {"messages": talk, "system": "Be brief.", "tools": None, "finish_reason": "length", "thread_id": 1}
    path = written(tmp_path, row)
    recognised = recognise_columns(path)
    assert recognised.text.endswith(
        "; rows marked as not learned, or as cut, by 'finish_reason' are rejected; `raft run` stops at 'system' until "
        "it stands in `messages`, or in columns.unused; not used: 'tools', 'thread_id'"
    )
    domain = Domain.model_validate({"files": ["rows.jsonl"], "chat": recognised.chat})
    with pytest.raises(InputError, match=r"'system' has a value .*add it to the messages, or to columns\.unused"):
        list(read_file(path, roles_of(domain)))
    domain = Domain.model_validate(
        {"files": ["rows.jsonl"], "chat": recognised.chat, "columns": {"unused": ["system"]}}
    )
    assert len(list(read_file(path, roles_of(domain)))) == 1


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_conversations_are_taken_as_such(tmp_path, column):
    recognised = recognise_columns(written(tmp_path, {column: [{"role": "user", "content": "?"}]}))
    assert recognised.chat == {"column": column, "conversation": "all"}
    assert recognised.text == f"took `{column}` as conversations, of each every answer, with what comes before it"


def test_a_column_of_that_name_without_turns_is_no_conversation(tmp_path):
    pair = {"question": "?", "answer": "!"}
    for name in ("c-17", 17, None):
        recognised = recognise_columns(written(tmp_path, pair | {"conversation": name}))
        assert (recognised.chat, recognised.columns) == (None, {"question": "question", "answer": "answer"})
    turns = [{"role": "user", "content": "?"}]
    for talk in (json.dumps(turns), {"role": ["user"], "content": ["?"]}):
        rows = [pair | {"conversation": talk}, pair | {"conversation": None}]
        assert recognise_columns(written(tmp_path, *rows)).chat == {"column": "conversation", "conversation": "all"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": "?", "b": "!"}, r"has the columns 'a', 'b': .* got none and none; name them: --question COLUMN"),
        ({"question": "?", "answer": "!", "response": "!"}, r"got \['question'\] and \['answer', 'response'\]"),
        ({"question": "?", "query": "?", "input": "x", "answer": "!"}, r"got \['question', 'query', 'input'\]"),
        ({"question": "?", "context": "x", "answer": "!"}, r"such as --question context,question"),
        ({"prompt": [{"role": "user"}], "completion": "!"}, r"'prompt' holds a list, expected text"),
    ],
)
def test_what_is_ambiguous_or_unknown_is_asked_for(tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        recognise_columns(written(tmp_path, row))


def test_columns_that_are_named_decide(tmp_path):
    path = written(tmp_path, {"question": "?", "context": "x", "answer": "!"})
    columns = recognise_columns(path, "question", "answer").columns
    assert columns == {"question": "question", "answer": "answer", "unused": ["context"]}
    path = written(tmp_path, {"a": "?", "b": "x", "answer": "!", "response": "!"})
    assert recognise_columns(path, "a,b", "response").columns == {"question": ["a", "b"], "answer": "response"}
    with pytest.raises(InputError, match="but not 'c'; name them"):
        recognise_columns(path, "c", "answer")


def test_an_input_that_later_rows_have_belongs_to_the_question(tmp_path):
    rows = [{"instruction": "?", "input": value, "output": "!"} for value in ("", "", "x")]
    assert recognise_columns(written(tmp_path, *rows)).columns["question"] == ["instruction", "input"]


def test_tables_and_lists_are_read(tmp_path):
    rows = [{"prompt": "a, b?", "completion": "c"}]
    with (tmp_path / "a.csv").open("w", encoding="utf-8-sig", newline="") as out:
        table = csv.DictWriter(out, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps(rows))
    for name in ("a.csv", "a.parquet", "a.json"):
        assert recognise_columns(tmp_path / name).columns == {"question": "prompt", "answer": "completion"}


@pytest.mark.parametrize(
    "table",
    [
        "\nprompt,completion\n?,!\n",
        "sep=,\r\nprompt,completion\r\n?,!\r\n",
        f"prompt,completion,\n?,{'x' * 200_000},1\n?,!,\n",
        " prompt ,completion\n?\n?,!\n",
    ],
    ids=["blank first line", "Excel's mark", "a long cell", "a row too short"],
)
def test_a_table_is_read_as_ingest_reads_it(tmp_path, table):
    (tmp_path / "a.csv").write_text(table)
    recognised = recognise_columns(tmp_path / "a.csv")
    assert recognised.columns == {"question": "prompt", "answer": "completion"}
    assert recognised.text == "took `prompt` as the question, `completion` as the answer"
    assert [*read_file(tmp_path / "a.csv", Roles(recognised.columns))][-1].values == {"question": "?", "answer": "!"}


def test_lines_that_no_reader_takes_are_passed_over(tmp_path):
    nested = '{"a": ' * 100_000
    (tmp_path / "a.jsonl").write_text(f'{nested}\n{{"q": 1, "q": 2}}\n[]\n{{"prompt": "?", "completion": "!"}}\n')
    assert recognise_columns(tmp_path / "a.jsonl").columns == {"question": "prompt", "answer": "completion"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"x", "got the ending '.txt', expected"),
        ("a.jsonl", b"", "got no rows"),
        ("a.csv", b"prompt\n\xff\n", r"a\.csv:2: not UTF-8"),
        ("a.csv", b'prompt,answer\n"?,!\n', r"a\.csv:2: broken CSV"),
        ("a.csv.gz", b"x", "cannot be read as csv: Not a gzipped file"),
        ("a.parquet", b"x", "cannot be read as parquet"),
        ("a.json", b"{", "cannot be read as json: expected a list of objects; the ending of a file with an object in"),
        ("a.json", b"[", "cannot be read as json: expected a list"),
        ("a.json", b'[{"question": "?"} {"question": "?"}]', "expected a comma at character 20"),
        ("a.json", b'[{"question": }]', "cannot be read as json: Expecting value"),
        ("a.json", b"[" * 100_000 + b"]" * 100_000, "cannot be read as json: maximum recursion"),
        ("a.json", b'[{"question": "a\nb"}]', "cannot be read as json: Invalid control character"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        recognise_columns(tmp_path / name)
