"""Any bytes: the readers end with rows, rejects or an InputError, never otherwise, and lose nothing."""

import csv
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from raft_tasks.config import Chat, Columns, Domain, Hygiene, Ingest, SplitBySource
from raft_tasks.errors import InputError
from raft_tasks.schemas import Example, Reject
from raft_tasks.sources.examples import UnusableError, examples_of
from raft_tasks.sources.files import RawRow, read_file
from raft_tasks.sources.ingestion import ingest_rows
from raft_tasks.sources.roles import Roles, roles_of

COLUMNS = Columns(id="i", question="q", answer="a", source="s", split=None, expected="e", details=None)
HYGIENE = Hygiene(near_duplicates=None, contamination=None, language=None, privacy="flag")
SPLIT = SplitBySource(by="source", validation=0.0, test=0.5, seed=0)
GOOD = [{"i": f"good-{n}", "q": f"q{n}", "a": "a", "s": f"s{n}", "e": "e"} for n in range(8)]

quick = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
records = st.dictionaries(st.sampled_from(["i", "q", "a", "s", "e", "x"]), json_values)
near_csv = st.text(alphabet='qaise,"\n\r \\\0é', max_size=80)


def ingest(path: Path) -> tuple[list[Example], list[Reject]]:
    domain = Domain(files=[str(path)], hub=None, columns=COLUMNS, chat=None, split=SPLIT, hygiene=HYGIENE)
    work = path.parent / "work"
    work.mkdir(exist_ok=True)
    bounds = Ingest(min_characters=1, max_characters=20, max_rejected=1.0)
    ingested = ingest_rows("fuzz", domain, bounds, path.parent, work, None)
    found = list(ingested)
    ingested.close()
    return [row for row in found if isinstance(row, Example)], [row for row in found if isinstance(row, Reject)]


@quick
@given(content=st.binary(max_size=200), ending=st.sampled_from(["jsonl", "csv", "parquet"]))
@example(content=b"\xff\xfe{\x00", ending="jsonl")
@example(content=b"PAR1PAR1PAR1", ending="parquet")
def test_any_bytes(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    path.write_bytes(content)
    with pytest.raises(InputError):  # at the least, bytes have no row for every split
        ingest(path)


@quick
@given(rows=st.lists(records, max_size=6))
@example(rows=[{"q": "\ud800", "i": True}, {"q": "q", "a": "a", "i": float("nan"), "e": [["deep"]]}])
def test_any_json_rows_among_good_ones(tmp_path: Path, rows: list[dict]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*GOOD, *rows]), encoding="utf-8")
    examples, rejects = ingest(path)
    assert len(examples) + len(rejects) == len(GOOD) + len(rows)
    for row in [*examples, *rejects]:
        row.model_dump_json()  # can be written
    assert len({row.id for row in examples}) == len(examples)


@quick
@given(tail=near_csv)
def test_any_csv_after_good_rows(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "x.csv"
    good = "".join(",".join(row.values()) + "\n" for row in GOOD)
    path.write_bytes(("i,q,a,s,e\n" + good + tail).encode())
    try:
        examples, rejects = ingest(path)
    except InputError:  # a quote without an end
        return
    assert [row.id for row in examples[: len(GOOD)]] == [row["i"] for row in GOOD]
    for row in [*examples, *rejects]:
        row.model_dump_json()


messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": json_values})
)


@quick
@given(
    values=st.fixed_dictionaries({"chat": json_values | messages | st.text(alphabet='[]{}":,roleuserx', max_size=40)})
)
@example(values={"chat": "[" * 100_000})
@example(values={"chat": [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "a"}]})
def test_any_conversation(values: dict) -> None:
    columns = Columns(id=None, question=None, answer=None, source=None, split=None, expected=None, details=None)
    chat = Chat(column="m", conversation="all")
    domain = Domain(files=["x"], hub=None, columns=columns, chat=chat, split=SPLIT, hygiene=HYGIENE)
    bounds = Ingest(min_characters=1, max_characters=20, max_rejected=1.0)
    with suppress(UnusableError):
        for row in examples_of(RawRow("x", 1, values, ""), "fuzz", domain, bounds):
            row.model_dump_json()


few = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
cells = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]) | st.sampled_from('",\n; '), max_size=12)
plain_cells = st.text(alphabet="abc ;é'", min_size=1, max_size=6).map(lambda text: f"x{text}x")
ROLES = {"question": "q", "answer": "a"}


@few
@given(rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=8))
def test_a_table_is_read_as_it_was_written(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    path = tmp_path / "x.csv"
    with path.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([("q", "a"), *rows])
    read = [row.values for row in read_file(path, Roles(ROLES)) if isinstance(row, RawRow)]
    written = [{role: text for role, text in zip(ROLES, row, strict=True) if text} for row in rows]
    kept = [values for values, row in zip(written, rows, strict=True) if any(text.strip() for text in row)]
    assert read == kept


@few
@given(rows=st.lists(st.tuples(plain_cells, plain_cells), min_size=2, max_size=8), data=st.data())
def test_no_row_comes_from_inside_another(tmp_path: Path, rows: list[tuple[str, str]], data: st.DataObject) -> None:
    """One stray quote anywhere: the file is refused, or every other row is as it was."""
    lines = [",".join(row) for row in [("q", "a"), *rows]]
    number = data.draw(st.integers(1, len(rows)))
    at = data.draw(st.integers(0, len(lines[number])))
    lines[number] = lines[number][:at] + '"' + lines[number][at:]
    path = tmp_path / "x.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    message = ""
    try:
        read = list(read_file(path, Roles(ROLES)))
    except InputError as error:
        message = str(error)
    if message:
        assert f":{number + 1}: broken CSV" in message
        return
    assert len(read) == len(rows)
    for row, (question, answer) in zip(read, rows, strict=True):
        assert row.line == number + 1 or (
            isinstance(row, RawRow) and row.values == {"question": question, "answer": answer}
        )


marked = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "assistant", "tool"]),
        "content": st.sampled_from(["x", "y", "", None]),
    },
    optional={
        "weight": st.sampled_from([0, 1, 0.5, None]),
        "masked": st.booleans(),
        "tool_calls": st.just([{"id": "c"}]),
    },
)


@few
@given(talks=st.lists(st.lists(marked, max_size=6), max_size=6))
def test_every_conversation_is_kept_or_rejected_and_nothing_marked_is_learned(
    tmp_path: Path, talks: list[list[dict]]
) -> None:
    rows = [
        {
            "i": f"c{n}",
            "m": [
                {**turn, "content": turn["content"] and f"{turn['content']}{n}-{place}"}
                for place, turn in enumerate(talk)
            ],
        }
        for n, talk in enumerate(talks)
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = Columns(id="i", question=None, answer=None, source=None, split=None, expected=None, details=None)
    chat = Chat(column="m", conversation="all")
    domain = Domain(files=["x"], hub=None, columns=columns, chat=chat, split=SPLIT, hygiene=HYGIENE)
    bounds = Ingest(min_characters=1, max_characters=20, max_rejected=1.0)
    for row, given_row in zip(read_file(tmp_path / "x.jsonl", roles_of(domain)), rows, strict=True):
        assert isinstance(row, RawRow)
        try:
            examples = list(examples_of(row, "fuzz", domain, bounds))
        except UnusableError:
            continue
        turns = {turn["content"]: turn for turn in given_row["m"]}
        assert examples
        assert len({(pair.source, pair.split) for pair in examples}) == 1
        for pair in examples:
            turn = turns[pair.answer]
            assert turn.get("weight") in (1, None)
            assert not turn.get("masked")
            assert not turn.get("tool_calls")
