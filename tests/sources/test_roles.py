"""What decides on a row beside question and answer: marks, columns of the question, the document that it comes from."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pytest
from qa import GOOD, decided, domain

from raft_tasks.config import Chat, Check, Domain, Hub, SplitBySource
from raft_tasks.config.defaults import catalogue
from raft_tasks.errors import InputError
from raft_tasks.schemas import DocumentPair, Example, Reject
from raft_tasks.sources.files import find_files, read_file
from raft_tasks.sources.roles import roles_of

SPLIT = SplitBySource(by="source", validation=0.2, test=0.3, seed=0)


def written(folder: Path, reader: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """`rows` as this reader's file; returns how a domain names it."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if reader == "jsonl":
        (folder / "rows.jsonl").write_text(lines)
    elif reader == "jsonl.gz":
        (folder / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    elif reader == "jsonl.zst":
        with pyarrow.output_stream(str(folder / "rows.jsonl.zst"), compression="zstd") as out:
            out.write(lines.encode())
    elif reader == "parquet":
        pd.DataFrame(rows).to_parquet(folder / "rows.parquet")
    elif reader == "csv":
        texts = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]
        with (folder / "rows.csv").open("w", newline="") as out:
            table = csv.DictWriter(out, list(dict.fromkeys(name for row in texts for name in row)))
            table.writeheader()
            table.writerows(texts)
    else:
        (folder / "hub").mkdir()
        (folder / "hub" / "rows.jsonl").write_text(lines)
        return {"files": [], "hub": Hub(id="hub")}
    return {"files": [f"rows.{reader}"]}


READERS = ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "csv", "hub"]


def ingest(folder: Path, reader: str, rows: list[dict[str, Any]], **options: Any) -> tuple[list[Example], list[Reject]]:
    work = decided(folder, domain(**written(folder, reader, rows), **options))
    decisions = list(work)
    work.close()
    return [row for row in decisions if isinstance(row, Example)], [row for row in decisions if isinstance(row, Reject)]


def splits_by(examples: list[Example], word: int) -> dict[str, set[str]]:
    """The splits of the rows whose questions have the same word there."""
    splits: dict[str, set[str]] = {}
    for example in examples:
        splits.setdefault(example.question.split()[word], set()).add(example.split)
    return splits


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("names", [("role", "content", "user", "assistant"), ("from", "value", "human", "gpt")])
def test_a_conversation_is_one_source_in_every_reader(
    tmp_path: Path, reader: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    role, content, user, assistant = names
    rows = [
        {
            "m": [
                {
                    role: assistant if step % 2 else user,
                    content: f"Project {n} step {step}" if step % 2 == 0 else "Yes.",
                }
                for step in range(6)
            ]
        }
        for n in range(30)
    ]
    chat = Chat(column="m", conversation="all")
    examples, rejects = ingest(tmp_path, reader, rows, chat=chat, split=SPLIT, columns={"split": None})
    assert (len(examples), rejects) == (90, [])
    splits = splits_by(examples, 1)
    assert len(splits) == 30
    assert {len(several) for several in splits.values()} == {1}
    assert len({split for several in splits.values() for split in several}) == 3


@pytest.mark.parametrize("reader", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("source", ["source", None])
@pytest.mark.parametrize("without", [set(), {"agreement", "page", "start", "end"}])
def test_pairs_of_one_document_are_one_source(
    tmp_path: Path, reader: str, source: str | None, without: set[str]
) -> None:
    rows = [
        DocumentPair(
            id=f"{n}-{step}", question=f"Act {n} part {step}?", answer=f"{n} {step}", source=f"documents/law/{n}.md",
            chunk=f"{n}-{step // 2}", page=None, start=step, end=step + 1, agreement=1.0,
        ).model_dump(exclude=without)
        for n in range(30)
        for step in range(4)
    ]  # fmt: skip
    columns = {"question": "question", "answer": "answer", "split": None, "source": source}
    examples, rejects = ingest(tmp_path, reader, rows, split=SPLIT, columns=columns)
    assert (len(examples), rejects) == (120, [])
    assert {len(several) for several in splits_by(examples, 1).values()} == {1}
    assert examples[0].source == "documents/law/0.md"


def made_of_a_document(question: str, answer: str) -> dict[str, Any]:
    return DocumentPair(
        id=f"c-{question}", question=question, answer=answer, source="documents/law/act.md", chunk="c", page=None,
        start=0, end=9, agreement=1.0,
    ).model_dump()  # fmt: skip


@pytest.mark.parametrize("reader", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    "columns",
    [
        {"question": "{{ product }}: {{ question }}", "answer": "reply"},
        {"question": "{{ price / 2 }} {{ question }}", "answer": "question"},
        {"question": ["product", "question"], "answer": "chunk"},
        {"question": "answer", "answer": "question", "id": "chunk", "source": "answer"},
    ],
)
def test_a_pair_of_a_document_is_as_the_stage_wrote_it(tmp_path: Path, reader: str, columns: dict[str, Any]) -> None:
    pairs = [made_of_a_document(f"How long is warranty {n}?", f"{n} years.") for n in range(20)]
    what = domain(**written(tmp_path, reader, pairs), split=SPLIT, columns={"split": None, **columns})
    [path] = find_files(what.files, tmp_path)
    roles = ("id", "question", "answer", "source")
    taken = [{role: row.values[role] for role in roles} for row in read_file(path, roles_of(what))]  # type: ignore[union-attr]
    assert taken == [{role: pair[role] for role in roles} for pair in pairs]


LETTER = {"letter": Check(patterns=[r"\bclass (\w)\b"])}
HELD_OUT = "Which class has the permit of the Figin bridge in winter?"


@pytest.mark.parametrize("reader", ["jsonl", "csv", "parquet"])
def test_rows_and_documents_make_one_domain_and_no_pair_repeats_a_held_out_row(tmp_path: Path, reader: str) -> None:
    """The rows name id, split and meaning in columns of their own, and checks want a class: pairs have none of it."""
    (tmp_path / "pairs.jsonl").write_text(
        "".join(
            json.dumps({"code": f"r{n}", "device": question, "label": f"class {letter}", "part": part}) + "\n"
            for n, (question, letter, part) in enumerate(
                [("Which class has rope?", "A", "train"), (HELD_OUT, "B", "test"), ("And salt?", "C", "validation")]
            )
        )
    )
    pairs = [
        made_of_a_document("What is a permit for?", "A permit is for a bridge."),
        made_of_a_document("which class has the permit of the Figin bridge in winter", "The bridge has class B."),
        made_of_a_document(f"{HELD_OUT[:-1]} now?", "class B"),
        made_of_a_document("And salt?", "Salt has class C."),
    ]
    rows = domain(
        files=["pairs.jsonl", *written(tmp_path, reader, pairs)["files"]],
        columns={"id": "code", "question": "device", "answer": "label", "split": "part"},
        contamination=0.5,
        near_duplicates=0.6,
    ).model_copy(update={"checks": LETTER})
    work = decided(tmp_path, rows)
    decisions = list(work)
    work.close()
    assert [(row.id, row.split) for row in decisions if isinstance(row, Example)] == [
        ("r0", "train"), ("r1", "test"), ("r2", "validation"), ("c-What is a permit for?", "train"),
    ]  # fmt: skip
    reasons = [(row.rule, row.reason.split(" pairs.jsonl")[0]) for row in decisions if isinstance(row, Reject)]
    assert [rule for rule, _ in reasons] == ["contamination"] * 3
    assert [reason for _, reason in reasons] == [
        f"contamination: the question of the held-out row {tmp_path}/pairs.jsonl:2",
        f"contamination: near the held-out row {tmp_path}/pairs.jsonl:2 (0.64 of their word triples shared)",
        f"contamination: the question of the held-out row {tmp_path}/pairs.jsonl:3",
    ]


def test_fda_devices_out_of_rows_and_documents_tests_on_rows_that_no_pair_repeats(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "data" / "fda_devices" / "pairs.jsonl.gz"
    lines = gzip.decompress(source.read_bytes()).decode().splitlines()
    held_out = [row for row in map(json.loads, lines) if row["split"] != "train"]
    pairs = [made_of_a_document("What does a chronaximeter measure?", "It measures neuromuscular excitability.")]
    pairs += [made_of_a_document(row["question"], f"The answer is {row['explanation']}.") for row in held_out]
    (tmp_path / "pairs.jsonl.gz").write_bytes(source.read_bytes())
    files = ["pairs.jsonl.gz", *written(tmp_path, "jsonl", pairs)["files"]]
    work = decided(tmp_path, Domain.model_validate({"files": files, **catalogue()["domains"]["fda_devices"]}))
    decisions = list(work)
    work.close()
    rejects = [row for row in decisions if isinstance(row, Reject)]
    assert [row.rule for row in rejects if row.file.endswith("rows.jsonl")] == ["contamination"] * len(held_out)
    assert all("/pairs.jsonl.gz:" in row.reason for row in rejects)  # no row goes for a pair's sake
    kept = [row for row in decisions if isinstance(row, Example)]
    assert [row.split for row in kept if row.source == "documents/law/act.md"] == ["train"]
    assert {row.id for row in kept if row.split != "train"} <= {row["id"] for row in held_out}


def test_pairs_of_documents_keep_the_split_that_somebody_gave_them_and_then_need_their_checks(tmp_path: Path) -> None:
    pairs = [
        made_of_a_document("Which class has rope?", "Rope has class A.") | {"split": "test"},
        made_of_a_document("What is a permit for?", "A permit is for a bridge.") | {"split": "test"},
        made_of_a_document("Which class has salt?", "Salt has class C.") | {"source": "documents/law/salt.md"},
    ]
    rows = domain(**written(tmp_path, "jsonl", pairs), columns={"question": "question", "answer": "answer"})
    work = decided(tmp_path, rows.model_copy(update={"checks": LETTER}))
    decisions = list(work)
    work.close()
    assert [row.split for row in decisions if isinstance(row, Example)] == ["test", "train"]
    assert ["checks ['letter']" in row.reason for row in decisions if isinstance(row, Reject)] == [True]


def test_pairs_of_documents_stand_beside_conversations(tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": f"Case {n}?"}, {"role": "assistant", "content": "Yes."}] for n in range(30)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": own}) + "\n" for own in turns))
    files = ["chats.jsonl", *written(tmp_path, "jsonl", [made_of_a_document("Why?", "Because.")])["files"]]
    work = decided(tmp_path, domain(files, chat=Chat(), split=SPLIT, columns={"split": None}))
    decisions = list(work)
    work.close()
    assert len([row for row in decisions if isinstance(row, Example)]) == 31


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("column", ["conversation_id", "threadId"])
def test_turns_in_rows_of_their_own_are_one_source(
    tmp_path: Path, reader: str, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"q": f"Case {n} step {step}?", "a": "Yes.", column: f"c{n}"} for n in range(30) for step in range(4)]
    examples, rejects = ingest(tmp_path, reader, rows, split=SPLIT, columns={"split": None})
    assert (len(examples), rejects) == (120, [])
    assert {len(several) for several in splits_by(examples, 1).values()} == {1}


@pytest.mark.parametrize("reader", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize(
    ("column", "bad", "good"),
    [
        ("weight", 0, 1), ("weight", 0.0, 0.5), ("train", False, True), ("Training", False, True),
        ("masked", True, False),
        ("ignore", 1, 0), ("loss", False, True), ("label", False, True), ("finish_reason", "length", "stop"),
        ("finish_reason", "content_filter", "end_turn"), ("train", "part 2", "part 1"),
        ("stop_reason", "max_tokens", "end_turn"), ("finishReason", "MAX_TOKENS", "STOP"), ("loss mask", 0, 1),
        ("train_on_turn", "no", "yes"), ("truncated", True, False), ("weight", -1, 2), ("finished", False, True),
        ("loss_mask", [1, 0], [1, 1]),
    ],
)  # fmt: skip
def test_a_row_that_is_marked_as_not_learned_is_rejected(
    tmp_path: Path, reader: str, column: str, bad: Any, good: Any
) -> None:
    if column == "label" and reader == "csv":
        bad, good = "class a", "class b"  # a text is a class, no mark
    rows = [row | {column: good} for row in GOOD] + [{"q": "Whose is it?", "a": "WRONG", "split": "train", column: bad}]
    examples, rejects = ingest(tmp_path, reader, rows)
    if bad in ("part 2", "class a"):
        assert (len(examples), rejects) == (3, [])
    else:
        assert "WRONG" not in {row.answer for row in examples}
        assert [(row.rule, row.line) for row in rejects] == [("not learned", 4 if reader == "csv" else 3)]
        assert "marked as not learned" in rejects[0].reason


def test_a_mark_that_is_a_column_or_unused_decides_nothing(tmp_path: Path) -> None:
    rows = [row | {"label": False, "weight": 0} for row in GOOD]
    columns: dict[str, Any] = {"unused": ["weight"], "expected": "label"}
    rows = [row | {"label": "x"} for row in rows]
    assert len(ingest(tmp_path, "jsonl", rows, columns=columns)[0]) == 2


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("column", ["context", " Input", "choices", "tools", "systemPrompt", "chat history", "article"])
def test_a_filled_column_of_the_question_stops_the_stage(
    tmp_path: Path, reader: str, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [row | {column: "x"} for row in GOOD]
    with pytest.raises(InputError, match=rf"column '{column.strip() if reader == 'csv' else column}' has a value"):
        ingest(tmp_path, reader, rows)


def test_a_long_cell_is_a_reject_of_its_row(tmp_path: Path) -> None:
    rows = [*GOOD, {"q": "How long?", "a": "x" * 200_000, "split": "train"}]
    examples, rejects = ingest(tmp_path, "csv", rows)
    assert len(examples) == 2
    assert [reject.rule for reject in rejects] == ["too long"]


def test_a_blank_input_is_none(tmp_path: Path) -> None:
    assert len(ingest(tmp_path, "jsonl", [row | {"input": " "} for row in GOOD])[0]) == 2


@pytest.mark.parametrize("template", ["{{ q", "{{ q | unheard_of }}", "{{ q.a.b }}", "{{ q / 2 }}"])
def test_a_template_that_is_none_is_named(tmp_path: Path, template: str) -> None:
    with pytest.raises(InputError, match=r"columns\.question"):
        ingest(tmp_path, "jsonl", GOOD, columns={"question": template})


def test_half_a_character_in_a_columns_name_can_be_written(tmp_path: Path) -> None:
    work = decided(tmp_path, domain(**written(tmp_path, "jsonl", [row | {"\ud83d": 1} for row in GOOD])))
    work.close()
    assert [*work.roles.unread] == ["\\ud83d"]


@pytest.mark.parametrize("reader", ["csv", "jsonl"])
def test_rows_with_a_conflict_are_not_both_used(tmp_path: Path, reader: str) -> None:
    rows = written(tmp_path, reader, [*GOOD, *GOOD])
    path = tmp_path / f"rows.{reader}"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-2], "<<<<<<< HEAD", lines[-2], "=======", lines[-1], ">>>>>>> new", ""]))
    with pytest.raises(InputError, match=rf"rows\.{reader}:{len(lines) - 1}: a conflict of a git merge"):
        decided(tmp_path, domain(**rows))
