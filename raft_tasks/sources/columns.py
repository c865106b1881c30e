"""Which columns of a question-answer file are the question and the answer, for `raft init`.

Of a file with the columns `instruction`, `input` (empty in every row) and `output`:

    Recognised(columns={"question": "instruction", "answer": "output"}, chat=None,
               text="took `instruction` as the question, `output` as the answer; not used: 'input'")
"""

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any

from raft_tasks.artifacts import unique_keys
from raft_tasks.errors import InputError
from raft_tasks.sources.files import csv_records, open_bytes
from raft_tasks.sources.marks import MARKS, find_mark, plain_key
from raft_tasks.sources.roles import GROUPS, INPUTS

QUESTIONS = ("question", "prompt", "instruction", "query", "problem", "input")  # `input` only where no other one is
ANSWERS = ("answer", "response", "completion", "output", "target")
CHATS = ("messages", "conversations", "conversation")
HEAD_ROWS = 2000  # rows that are looked at
NAME_THEM = "name them: --question COLUMN --answer COLUMN"


@dataclass(frozen=True)
class Recognised:
    """What a domain of params.yaml says about a file: `columns`, or `chat` for conversations; and both in words."""

    columns: dict[str, str | list[str]]
    chat: dict[str, str] | None
    text: str


def recognise_columns(path: Path, question: str | None = None, answer: str | None = None) -> Recognised:
    """Take the question and the answer from the user, or from the columns' usual names.

    Args:
        question: the question's column, or several with commas between; None: by its name.
        answer: the answer's column; None: by its name.

    Raises:
        InputError: no column, or several, have such names; a column that is not there, or holds no text.
    """
    rows = list(islice(read_head(path), HEAD_ROWS))
    if not rows:
        raise InputError(f"{path}: got no rows, expected question-answer pairs")
    names = list(dict.fromkeys(name for row in rows for name in row))
    listed = f"{path} has the columns {', '.join(map(repr, names))}"
    chats = [name for name in _named(names, CHATS) if any(_may_be_turns(row.get(name)) for row in rows)]
    if len(chats) == 1 and question is None and answer is None:
        text = f"took `{chats[0]}` as conversations, of each every answer, with what comes before it"
        text += _others([name for name in names if name not in chats], rows, chats[0])
        return Recognised({}, {"column": chats[0], "conversation": "all"}, text)
    questions = _question_columns(names, rows) if question is None else [question.split(",")]
    answers = _named(names, ANSWERS) if answer is None else [answer]
    if len(questions) != 1 or len(answers) != 1:
        alike = [" and ".join(columns) for columns in questions]
        raise InputError(
            f"{listed}: expected one that looks like the question and one that looks like the answer, got "
            f"{alike or 'none'} and {answers or 'none'}; {NAME_THEM}"
        )
    used = [*questions[0], answers[0]]
    for name in used:
        if name not in names:
            raise InputError(f"{listed}, but not {name!r}; {NAME_THEM}")
        wrong = [row[name] for row in rows if not isinstance(row.get(name), str | None)]
        if wrong:
            raise InputError(f"{listed}: {name!r} holds a {type(wrong[0]).__name__}, expected text; {NAME_THEM}")
    text = f"took {' and '.join(f'`{name}`' for name in questions[0])} as the question, `{answers[0]}` as the answer"
    unused = [name for name in names if name not in used]
    inputs = [name for name in unused if plain_key(name) in INPUTS and any(row.get(name) for row in rows)]
    if inputs and question is None:
        whole = ",".join([*inputs, *questions[0]])
        raise InputError(f"{listed}: {inputs} may belong to the question; {NAME_THEM}, such as --question {whole}")
    columns: dict[str, str | list[str]] = {"question": questions[0] if len(questions[0]) > 1 else questions[0][0]}
    columns |= {"answer": answers[0]} | ({"unused": inputs} if inputs else {})
    return Recognised(columns, None, text + _others(unused, rows))


def _may_be_turns(value: Any) -> bool:
    """Not an id or a number: a list, messages by columns, or JSON of one."""
    return isinstance(value, list | dict) or (isinstance(value, str) and value.lstrip().startswith(("[", "{")))


def _others(names: list[str], rows: list[dict[str, Any]], chat: str | None = None) -> str:
    """What the columns without a role do, as `Roles.take` reads them; `chat`: the column of the conversations."""
    parts: dict[str, list[str]] = {"marks": [], "source": [], "input": [], "unused": []}
    for name in names:
        key = plain_key(name)
        marks = key in MARKS and any(find_mark({name: row[name]}) for row in rows if row.get(name) is not None)
        source = key in GROUPS and not chat and not parts["source"]
        left = chat and key in INPUTS and any(row.get(name) for row in rows)
        parts["marks" if marks else "source" if source else "input" if left else "unused"].append(name)
    quoted = {what: ", ".join(map(repr, of_it)) for what, of_it in parts.items()}
    texts = {
        "marks": f"rows marked as not learned, or as cut, by {quoted['marks']} are rejected",
        "source": f"rows of one {quoted['source']} share a split",
        "input": f"`raft run` stops at {quoted['input']} until it stands in `{chat}`, or in columns.unused",
        "unused": f"not used: {quoted['unused']}",
    }
    return "".join(f"; {texts[what]}" for what, of_it in parts.items() if of_it)


def _question_columns(names: list[str], rows: list[dict[str, Any]]) -> list[list[str]]:
    """The candidates for the question, each a column or two: an instruction and its input, where it has one."""
    candidates = _named(names, QUESTIONS)
    inputs = [name for name in candidates if name.lower() == "input"]
    others = [name for name in candidates if name not in inputs]
    if not (inputs and others):
        return [[name] for name in candidates]
    if not any(str(row.get(inputs[0]) or "").strip() for row in rows):
        return [[name] for name in others]
    return [[*others, *inputs]] if len(others) == 1 else [[name] for name in candidates]


def _named(names: list[str], usual: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.strip().lower() in usual]


def read_head(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl, .csv, .json (a list of objects; all three also .gz, .zst) or .parquet file.

    Rows that `ingest` will reject as unreadable are left out.

    Raises:
        InputError: another ending, or a file that cannot be read so.
    """
    kind = Path(path.name.lower().removesuffix(".gz").removesuffix(".zst")).suffix
    with _read_as(path, kind):
        if kind == ".parquet":
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(path) as table:
                for batch in table.iter_batches(batch_size=256):
                    yield from batch.to_pylist()
        elif kind == ".csv":
            with open_bytes(path) as content:
                for _, record, _ in csv_records(str(path), content, (), lambda place, header: None):
                    if isinstance(record, dict):
                        yield {name: value for name, value in record.items() if name}
        elif kind == ".json":
            yield from (row for entry in json_entries(path) if isinstance(row := _parsed(entry), dict))
        elif kind == ".jsonl":
            with open_bytes(path) as content, TextIOWrapper(content, encoding="utf-8-sig", newline="\n") as lines:
                yield from (row for line in lines if isinstance(row := _parsed(line), dict))
        else:
            raise InputError(f"{path}: got the ending {kind!r}, expected .jsonl, .json, .csv or .parquet")


def json_entries(path: Path) -> Iterator[str]:
    """The entries of a .json list as they are written there, each in one line: what is wrong with one stays so.

    Raises:
        InputError: the file is no list, or cannot be read.
    """
    with _read_as(path, ".json"):
        with open_bytes(path) as content:
            text = content.read().decode("utf-8-sig").strip()
        if not (text.startswith("[") and text.endswith("]")):
            raise ValueError("expected a list of objects; the ending of a file with an object in each line is .jsonl")
        decoder, at, last = json.JSONDecoder(), 0, len(text) - 1
        while at < last and (at := _blanks_end(text, at + 1)) < last:
            _, end = decoder.raw_decode(text, at)
            yield text[at:end].replace("\n", " ").replace("\r", " ")
            at = _blanks_end(text, end)
            if at < last and text[at] != ",":
                raise ValueError(f"expected a comma at character {at + 1}")


@contextmanager
def _read_as(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except (
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        RecursionError,
    ) as error:  # pyarrow's are ValueErrors or OSErrors
        raise InputError(f"{path} cannot be read as {kind[1:]}: {error}") from error


def _blanks_end(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _parsed(line: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError):
        return None
