import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from raft_tasks.config import Columns, Domain, Hygiene, Ingest, SplitByColumn, SplitBySource
from raft_tasks.errors import InputError
from raft_tasks.schemas import Example, Reject
from raft_tasks.sources.cleaning import normalised
from raft_tasks.sources.examples import split_of_source
from raft_tasks.sources.ingestion import ingest_rows

NO_COLUMN = dict.fromkeys(["id", "source", "split", "expected", "details"])
NOTHING_REMOVED = Hygiene(near_duplicates=None, contamination=None, language=None, privacy="flag")
BY_COLUMN = SplitByColumn(by="column", sources_may_straddle=False)
BY_SOURCE = SplitBySource(by="source", validation=0.2, test=0.3, seed=0)
FULL = [
    {"id": "one", "q": "What is one?", "a": "One :: 1", "source": "s1", "split": "train", "say": ["1"], "also": "uno"},
    {"id": 2, "q": " What is two? ", "a": "Two :: 2", "source": "s2", "split": "test"},
]


def ingest(
    folder: Path,
    rows: list[dict[str, Any]],
    columns: dict[str, str] | None = None,
    split: SplitByColumn | SplitBySource = BY_COLUMN,
    limit: int = 100,
) -> tuple[list[Example], list[Reject]]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    mapping = NO_COLUMN | {"question": "q", "answer": "a", "split": "split"} | (columns or {})
    domain = Domain(
        files=[str(path)], hub=None, columns=Columns(**mapping), chat=None, split=split, hygiene=NOTHING_REMOVED
    )
    bounds = Ingest(min_characters=1, max_characters=limit, max_rejected=1.0)
    work = folder / "work"
    work.mkdir(exist_ok=True)
    ingested = ingest_rows("numbers", domain, bounds, folder, work, None)
    found = list(ingested)
    ingested.close()
    return [row for row in found if isinstance(row, Example)], [row for row in found if isinstance(row, Reject)]


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {"q": f"What is {number}?", "a": f"No. {number}", "split": "train" if number % 2 else "test"} | changes


def reasons(folder: Path, *bad: dict[str, Any], **options: Any) -> list[str]:
    """Why the rows after two good ones are rejected."""
    examples, rejects = ingest(folder, [row(1), row(2), *bad], **options)
    assert [example.question for example in examples] == ["What is 1?", "What is 2?"]
    assert len(rejects) == len(bad)
    return [reject.reason for reject in rejects]


def test_rows_become_examples(tmp_path: Path) -> None:
    columns = {"id": "id", "source": "source", "expected": "say", "details": "also"}
    examples, rejects = ingest(tmp_path, FULL, columns)
    assert rejects == []
    assert [example.model_dump() for example in examples] == [
        {
            "id": "one", "domain": "numbers", "question": "What is one?", "answer": "One :: 1", "source": "s1",
            "split": "train", "expected": ["1"], "details": ["uno"], "explanation": "",
        },
        {
            "id": "2", "domain": "numbers", "question": "What is two?", "answer": "Two :: 2", "source": "s2",
            "split": "test", "expected": [], "details": [], "explanation": "",
        },
    ]  # fmt: skip


def test_an_id_from_the_content_is_stable_and_does_not_see_white_space(tmp_path: Path) -> None:
    first = ingest(tmp_path, [row(1), row(2)])[0]
    again = ingest(tmp_path, [row(2), row(1, q="What  is\n1?")])[0]
    assert {e.id for e in first} == {e.id for e in again} == {"numbers-36ace4f52f6f2b8e", "numbers-f8aea749cca6796c"}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"q": ""}, "question is blank"),
        ({"a": " \u00a0\n"}, "answer is blank"),
        ({"a": None}, "no answer"),
        ({"q": ["What?"]}, "question: got list, expected text"),
        ({"a": 7}, "answer: got int 7, expected text"),
        ({"a": "x" * 101}, "answer has 101 characters, at most 100 (ingest.max_characters)"),
        ({"a": "\ud800 lone"}, "answer is not valid Unicode (a lone surrogate at character 1)"),
        ({"split": "dev"}, "split: got 'dev', expected one of train, validation, test"),
        ({"split": None}, "split: got '', expected one of train, validation, test"),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason(tmp_path: Path, bad: dict[str, Any], reason: str) -> None:
    assert reasons(tmp_path, row(3, **bad)) == [reason]


@pytest.mark.parametrize(
    ("say", "strings", "reason"),
    [
        ("rope", ["rope"], None),
        ('["rope", "12"]', ["rope", "12"], None),
        (["rope "], ["rope"], None),
        ("", [], None),
        ("[rope]", None, "expected is not a JSON list of strings: Expecting value"),
        ("[12]", None, "an entry of expected: got int 12, expected text"),
        (12, None, "expected: got int 12, expected a list of strings"),
        (["rope", " "], None, "expected: a blank entry would be found in any answer"),
    ],
)
def test_expected_strings(tmp_path: Path, say: Any, strings: list[str] | None, reason: str | None) -> None:
    examples, rejects = ingest(tmp_path, [row(1), row(2), row(3, say=say)], {"expected": "say"})
    if strings is not None:
        assert examples[2].expected == strings
    else:
        assert rejects[0].reason.startswith(reason)


def test_of_duplicates_the_first_stays(tmp_path: Path) -> None:
    composed, decomposed = row(3, a="caf\u00e9"), row(3, a="cafe\u0301 ", split="test")
    examples, rejects = ingest(tmp_path, [row(1), row(2), composed, decomposed])
    assert len(examples) == 3
    assert rejects[0].line == 4
    assert rejects[0].reason == f"duplicate of {tmp_path / 'rows.jsonl'}:3"


def test_of_conflicting_ids_the_first_stays(tmp_path: Path) -> None:
    rows = [row(1, id="a"), row(2, id="b"), row(3, id="a"), row(4, id="")]
    examples, rejects = ingest(tmp_path, rows, {"id": "id"})
    assert [example.id for example in examples] == ["a", "b"]
    assert [(reject.line, reject.reason) for reject in rejects] == [
        (3, f"id 'a' has other content in {tmp_path / 'rows.jsonl'}:1"),
        (4, "no id: column 'id' is empty"),
    ]


def test_one_question_may_have_several_answers(tmp_path: Path) -> None:
    assert len(ingest(tmp_path, [row(1), row(1, a="another"), row(2)])[0]) == 3


def test_a_source_in_two_splits_is_named(tmp_path: Path) -> None:
    rows = [row(1, source="Figin"), row(2, source=" Figin"), row(3, source="Arlo")]
    with pytest.raises(InputError, match=r"1 source\(s\) in more than one split: 'Figin' \(test, train\); correct"):
        ingest(tmp_path, rows, {"source": "source"})
    may = SplitByColumn(by="column", sources_may_straddle=True)
    assert len(ingest(tmp_path, rows, {"source": "source"}, may)[0]) == 3


def test_without_sources_the_same_question_in_two_splits_is_a_leak(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'What is 1\?' \(test, train\)"):
        ingest(tmp_path, [row(1), row(2), row(1, a="another", q="What is  1?", split="test")])


def test_split_by_source_keeps_sources_together_and_rows_in_place_as_data_grows(tmp_path: Path) -> None:
    rows = [row(n, source=f"s{n // 3}") for n in range(600)]
    examples, _ = ingest(tmp_path, rows, {"source": "source", "split": None}, BY_SOURCE)
    assert [example.question for example in examples] == [row["q"] for row in rows]
    by_source: dict[str, set[str]] = {}
    for example in examples:
        by_source.setdefault(example.source, set()).add(example.split)
    assert all(len(splits) == 1 for splits in by_source.values())
    shares = Counter(example.split for example in examples)
    assert {split: round(count / 600, 1) for split, count in shares.items()} == {
        "train": 0.5,
        "validation": 0.2,
        "test": 0.3,
    }
    fewer, _ = ingest(tmp_path, rows[:300], {"source": "source", "split": None}, BY_SOURCE)
    assert fewer == examples[:300]


def test_the_seed_draws_another_split() -> None:
    other = BY_SOURCE.model_copy(update={"seed": 1})
    sources = [f"s{n}" for n in range(50)]
    assert [split_of_source(s, BY_SOURCE) for s in sources] != [split_of_source(s, other) for s in sources]
    everything = SplitBySource(by="source", validation=0.0, test=1.0, seed=0)
    assert {split_of_source(s, everything) for s in sources} == {"test"}


def test_an_empty_split_is_an_error_that_says_what_there_was(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        ingest(tmp_path, [row(1), row(3), row(5, a="")])
    assert str(error.value) == (
        "domains.numbers: no row for test: train 2, validation 0, test 0 from 2 source(s), 1 row(s) rejected; "
        f"first reject {tmp_path / 'rows.jsonl'}:3: answer is blank; correct column 'split'"
    )
    nothing = SplitBySource(by="source", validation=0.0, test=0.0, seed=0)
    with pytest.raises(InputError, match=r"no row for test: .*give more sources, other shares or another"):
        ingest(tmp_path, [row(1), row(2)], {"split": None}, nothing)


def test_split_by_column_needs_the_column(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"domains\.numbers: split\.by is 'column', but columns\.split is null"):
        ingest(tmp_path, [row(1)], {"split": None})  # type: ignore[dict-item]


def test_nothing_is_lost_and_a_second_reading_gives_the_same(tmp_path: Path) -> None:
    rows = [row(n % 40, a="" if n % 7 == 0 else f"No. {n % 40}") for n in range(200)]
    examples, rejects = ingest(tmp_path, rows)
    assert len(examples) + len(rejects) == 200
    assert (examples, rejects) == ingest(tmp_path, rows)


def test_normalised() -> None:
    assert normalised(" cafe\u0301 \n\u00a0 x ") == "caf\u00e9 x"


def test_reading_files_does_not_import_the_heavy_libraries() -> None:
    code = (
        "import sys, raft_tasks.sources.examples;"
        "print(sorted({'torch', 'transformers', 'pandas', 'pyarrow', 'prefect'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
