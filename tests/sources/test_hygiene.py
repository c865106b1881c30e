import json
import tracemalloc
from pathlib import Path

from qa import GOOD, STRADDLE, decided, domain, ingest

from raft_tasks.sources.cleaning import cleaned
from raft_tasks.sources.contamination import BenchmarkIndex
from raft_tasks.sources.language import other_language
from raft_tasks.sources.spool import Spool

LONG = "The committee decides on the fee within thirty days of the written request and tells everyone why it did so."
NEAR = LONG.replace("thirty", "forty")
FAR = "Nobody but the owner of a boat may moor it at the northern quay between the first of May and the end of October."


def row(question: str, answer: str, split: str = "train", **more: str) -> dict[str, str]:
    return {"q": question, "a": answer, "split": split, **more}


def reasons(folder: Path, *rows: dict[str, str], **options) -> list[tuple[int, str, str]]:  # type: ignore[no-untyped-def]
    return [(reject.line, reject.rule, reject.reason) for reject in ingest(folder, list(rows), **options)[1]]


def test_a_near_duplicate_goes_and_names_the_kept_row(tmp_path: Path) -> None:
    rows = [row("When?", LONG), row("When?", FAR), row("When?", NEAR)]
    assert reasons(tmp_path, *rows, near_duplicates=0.6) == [
        (5, "near duplicate", f"near duplicate of {tmp_path}/rows.jsonl:3 (0.73 of their word triples shared)")
    ]
    assert reasons(tmp_path, *rows, near_duplicates=0.8) == []
    assert reasons(tmp_path, *rows, near_duplicates=None) == []


def test_a_training_row_near_a_held_out_one_is_contamination_whichever_comes_first(tmp_path: Path) -> None:
    rows = [row("When?", LONG), row("Since when?", NEAR, "test")]
    [(line, rule, reason)] = reasons(tmp_path, *rows, near_duplicates=0.6)
    assert (line, rule) == (3, "contamination")
    assert reason.startswith(f"contamination: near the held-out row {tmp_path}/rows.jsonl:4 (0.7")
    assert reasons(tmp_path, *rows, near_duplicates=0.6, split=STRADDLE) == []


def test_no_row_near_a_held_out_one_is_kept_where_all_share_a_template(tmp_path: Path) -> None:
    """All rows of a bucket are more alike than chance, and each training row is near one held-out row alone."""
    template = " ".join(f"frame{n}" for n in range(50))
    rows = [
        {"q": f"{template} {' '.join(f'own{row}x{n}' for n in range(6))}", "a": "Yes.", "split": "test"}
        for row in range(50)
    ]
    near = [row | {"q": " ".join([*row["q"].split()[:-3], "a", "few", f"others{n}"]), "split": "train"}
            for n, row in enumerate(rows)]  # fmt: skip
    _, rejects = ingest(tmp_path, [*near, *rows], near_duplicates=0.8, contamination=0.5)
    assert [row.line for row in rejects] == list(range(3, 53))
    assert f"near the held-out row {rejects[7].file}:60 (" in rejects[7].reason


def test_a_held_out_question_in_training_is_contamination(tmp_path: Path) -> None:
    rows = [row("Who made IT, then?", "Ada.", source="a"), row("who made it then", "Ada herself.", "test", source="b")]
    options = {"columns": {"source": "source"}}
    good = [{**line, "source": str(number)} for number, line in enumerate(GOOD)]
    expected = [(5, "contamination", f"contamination: the question of the held-out row {tmp_path}/rows.jsonl:6")]
    assert reasons(tmp_path, *good, *rows, contamination=0.5, **options)[2:] == expected
    assert reasons(tmp_path, *good, *rows, contamination=None, **options)[2:] == []


def test_questions_that_differ_by_a_sign_are_not_the_same(tmp_path: Path) -> None:
    rows = [row("What is C?", "Old.", "test"), row("What is 7 - 3?", "4", "test"), row("👍", "Yes.", "test")]
    rows += [
        row("What is C++?", "Newer."),
        row("What is C#?", "Another."),
        row("What is 7 + 3?", "10"),
        row("👎", "No."),
    ]
    index = BenchmarkIndex([("law item 1", "What is F?"), ("law item 2", "🎵")], 0.5)
    rows += [row("What is F#?", "A note."), row("🎶", "Notes.")]
    assert reasons(tmp_path, *rows, row("What is F", "A letter."), index=index, contamination=0.5) == [
        (12, "contamination", "contamination: repeats law item 1 (the same question)")
    ]


def test_a_benchmarks_item_is_reported_and_removed(tmp_path: Path) -> None:
    items = [("law item 1", LONG), ("law item 2", "By whom?"), ("law item 3", "")]
    index = BenchmarkIndex(items, 0.5)
    rows = [
        row("When?", f"It says: {LONG.upper()}"),
        row("When then?", " ".join(LONG.split()[:14])),  # 7 of the item's 13 8-grams
        row("Why then?", " ".join(LONG.split()[:13])),  # 6 of them
        row("By WHOM", FAR),
        row("???", FAR),
    ]
    assert reasons(tmp_path, *rows, index=index, contamination=0.5) == [
        (3, "contamination", "contamination: repeats law item 1 (100% of its word 8-grams)"),
        (4, "contamination", "contamination: repeats law item 1 (54% of its word 8-grams)"),
        (6, "contamination", "contamination: repeats law item 2 (the same question)"),
    ]


def test_of_two_languages_the_asked_one_stays(tmp_path: Path) -> None:
    german = "Die Gebühr wird innerhalb von dreißig Tagen nach dem schriftlichen Antrag festgesetzt und begründet."
    [(line, rule, reason)] = reasons(tmp_path, row("Wann wird sie festgesetzt?", german), language="en")
    assert (line, rule, reason) == (3, "language", "the text is 'de', expected 'en'")
    assert reasons(tmp_path, row("When?", LONG), language="en") == []
    assert other_language("Ja.", "en") is None


def test_private_rows_are_flagged_or_rejected_and_never_quoted(tmp_path: Path) -> None:
    secret = row("Who?", "Write to ada@example.org or pay 4111 1111 1111 1111.", id="x")
    ingest(tmp_path, [secret])
    ingested = decided(tmp_path, domain(["rows.jsonl"]))
    flags = [json.loads(line.text) for line in ingested.lines() if line.artifact == "flags"]
    ingested.close()
    assert [(flag["line"], flag["rule"]) for flag in flags] == [(3, "e-mail address"), (3, "payment card number")]
    assert flags[0]["shown"] == "ad...[e-mail address, 15 characters]"
    [reject] = ingest(tmp_path, [secret], privacy="reject")[1]
    assert reject.rule == "privacy"
    assert "ada@" not in reject.model_dump_json()
    assert "4111" not in reject.model_dump_json()
    number = {**secret, "a": 4111111111111111}
    assert "4111" not in ingest(tmp_path, [number])[1][0].model_dump_json()
    [duplicate] = ingest(tmp_path, [secret, secret])[1]
    assert "ada@" not in duplicate.content


def test_what_a_terse_answer_means_is_looked_at_too(tmp_path: Path) -> None:
    """Rewriting starts from it."""
    told = {**row("Who?", "5402.31"), "e": "Write to ada@example.org."}
    [reject] = ingest(tmp_path, [told], privacy="reject", columns={"explanation": "e"})[1]
    assert reject.rule == "privacy"
    assert ingest(tmp_path, [told], columns={"explanation": "e"})[1] == []


def test_length_bounds(tmp_path: Path) -> None:
    assert reasons(tmp_path, row("Q?", "Long enough."), least=4) == [
        (3, "too short", "question has 2 characters, at least 4 (ingest.min_characters)")
    ]


def test_text_is_cleaned_before_it_is_compared(tmp_path: Path) -> None:
    examples, rejects = ingest(
        tmp_path, [row("Is it\u200b so?", "Cafe\u0301\r\nyes"), row("Is it so?", "Caf\u00e9\nyes")]
    )
    assert examples[2].question == "Is it so?"
    assert examples[2].answer == "Caf\u00e9\nyes"
    assert [reject.rule for reject in rejects] == ["duplicate"]


def test_cleaned() -> None:
    assert cleaned("a\tb\nc") == "a\tb\nc"
    assert cleaned("a\x00\x1b[1m\u202eb\ufeff\r\n\u2028c") == "a[1mb\n\nc"
    assert cleaned("\u06cc\u200c\u06a9") == "\u06cc\u200c\u06a9"  # a Persian word keeps its zero-width non-joiner


def test_a_spool_gives_records_in_order_and_by_number(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "rows", ["key"])
    spool.append([b"one", b"", b"three"])
    spool.append([])
    spool.append([b"four"])
    assert [spool[number] for number in (3, 0, 2, 1)] == [b"four", b"one", b"three", b""]
    assert [(record, spool[0]) for record in spool] == [(r, b"one") for r in (b"one", b"", b"three", b"four")]
    spool.close()


def test_keys_group_rows(tmp_path: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    keys = rng.integers(0, 20, 60).tolist()
    spool = Spool(tmp_path / "rows", ["key", "other"])
    spool.append_keys((row, bytes([key]), row) for row, key in enumerate(keys))
    alive = np.ones(60, dtype=bool)
    alive[::9] = False
    groups = sorted(group.tolist() for group in spool.groups("key", alive))
    expected = ([n for n in range(60) if alive[n] and keys[n] == key] for key in range(20))
    assert groups == sorted(group for group in expected if len(group) > 1)
    assert list(spool.groups("other", alive)) == []
    spool.close()


def test_long_rows_are_not_held(tmp_path: Path) -> None:
    with (tmp_path / "rows.jsonl").open("w") as out:
        for line in [*GOOD, *(row("Why?", "x" * 1_000_000) for _ in range(60))]:
            out.write(json.dumps(line) + "\n")
    tracemalloc.start()
    ingested = decided(tmp_path, domain(["rows.jsonl"]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ingested.sizes() == {"train": 1, "validation": 0, "test": 1}
    ingested.close()
    assert peak < 20_000_000
