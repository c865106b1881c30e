"""Any document: chunks or rejects, bounded in memory and time, and slices of the text that was extracted."""

import csv
import json
import re
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_documents import cut, make_pdf

from raft_tasks.errors import InputError
from raft_tasks.schemas import Chunk, Reject
from raft_tasks.sources import files, pdf
from raft_tasks.sources.documents import chunks
from raft_tasks.sources.extraction import UnreadableError, html, markdown, plain_text
from raft_tasks.sources.files import find_files, read_file
from raft_tasks.sources.roles import Roles

quick = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
markup = st.text(alphabet="<>/=\"' abdhilprtu1&;!-#*_|`[]()\n\t\\~+.\0\u202e\ufeffé法。", max_size=200)


def read(path: Path) -> list[Chunk | Reject]:
    found = list(chunks([path], min_characters=5, max_characters=40))
    for row in found:
        json.loads(row.model_dump_json())
        if isinstance(row, Chunk):
            assert 0 < len(row.text) <= 40
            assert row.text == row.text.strip()
    return found


@quick
@given(content=st.binary(max_size=300), ending=st.sampled_from(["txt", "md", "html", "parquet", "bin"]))
@example(content=b"\xff\xfeh\x00i\x00", ending="txt")
@example(content=b"\xff\xfeh\x00i", ending="txt")
@example(content=b"\xef\xbb\xbf# Title", ending="md")
@example(content=b"PAR1" + b"\0" * 40 + b"PAR1", ending="parquet")
@example(content=b"<?xml version='1.0' encoding='utf-99'?><p>x", ending="html")
def test_any_bytes(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    path.write_bytes(content)
    read(path)


@quick
@given(content=markup, ending=st.sampled_from(["txt", "md", "html"]))
@example(content="\0", ending="txt")
@example(content="<p>a\0b</p>", ending="html")
def test_any_markup_gives_slices_of_the_extracted_text(tmp_path: Path, content: str, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    path.write_bytes(content.encode())
    decoded = content.encode().decode("utf-8-sig")
    text = {"txt": plain_text, "md": markdown}[ending](decoded)[0] if ending != "html" else html(content.encode())[0]
    found = read(path)
    if ("\0" in content and ending != "html") or not text.strip():
        assert [type(chunk) for chunk in found] == [Reject]
        return
    position = 0
    for chunk in found:
        assert isinstance(chunk, Chunk)
        assert chunk.text == text[chunk.start : chunk.end]
        assert chunk.start >= position
        position = chunk.end
    assert found


@pytest.mark.parametrize(
    "content",
    [
        "> " * 20_000 + "a",
        "- a\n" * 5_000,
        "[" * 50_000,
        "`" * 50_000,
        "|a" * 5_000 + "\n" + "|-" * 5_000,
        "*a_" * 20_000,
    ],
    ids=["quotes", "items", "brackets", "ticks", "cells", "emphasis"],
)
def test_markdown_bombs_end_soon(content: str) -> None:
    began = time.process_time()
    markdown(content)
    assert time.process_time() - began < 10


@pytest.mark.parametrize("content", [b"<div>a" * 100_000, b"<table><tr><td>" * 50_000, b"<b>" * 100_000 + b"x"])
def test_html_that_is_nested_without_end_is_refused(content: bytes) -> None:
    with pytest.raises(UnreadableError, match="nested too deeply"):
        html(content)


def test_html_entities_are_not_expanded_and_no_file_is_read() -> None:
    bomb = b'<!DOCTYPE p [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;"><!ENTITY f SYSTEM "file:///etc/passwd">]><p>&b;&f;'
    text = html(bomb)[0]
    assert len(text) < 200
    assert "root:" not in text


@settings(quick, max_examples=6)
@given(damage=st.lists(st.tuples(st.integers(0, 600), st.binary(min_size=1, max_size=20)), min_size=1, max_size=4))
def test_any_damage_to_a_pdf(tmp_path: Path, damage: list[tuple[int, bytes]]) -> None:
    content = make_pdf(tmp_path / "good.pdf", "First page.", "Second page.").read_bytes()
    for place, dirt in damage:
        content = content[:place] + dirt + content[place + len(dirt) :]
    (tmp_path / "x.pdf").write_bytes(content)
    assert read(tmp_path / "x.pdf")


def bomb(path: Path, text: bytes, times: int) -> Path:
    """A PDF whose one page unpacks to `times` x `text`."""
    make_pdf(path, "PLACE")
    packed = zlib.compress(b"BT /F1 12 Tf 72 720 Td " + text * times + b" ET", 9)
    old = path.read_bytes()
    stream = re.compile(rb"<< /Length \d+ >>\nstream\n.*?\nendstream", re.DOTALL)
    new = b"<< /Length %d /Filter /FlateDecode >>\nstream\n" % len(packed) + packed + b"\nendstream"
    path.write_bytes(stream.sub(lambda match: new, old))
    return path


def test_a_pdf_that_unpacks_without_end_is_rejected_in_bounded_memory(tmp_path: Path) -> None:
    assert [chunk.text for chunk in cut(bomb(tmp_path / "small.pdf", b"(small) Tj ", 1))] == ["small"]
    path = bomb(tmp_path / "bomb.pdf", b"(aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa) Tj ", 5_000_000)
    assert path.stat().st_size < 2_000_000
    [found] = read(path)
    assert isinstance(found, Reject)
    assert "PDF" in found.reason


def test_a_pdf_reader_that_never_ends_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf, "SECONDS", 0.005)  # what the parent waits for: its start alone takes longer
    [found] = read(make_pdf(tmp_path / "x.pdf", "Text."))
    assert isinstance(found, Reject)
    assert "took more than" in found.reason


def test_a_line_without_end_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LINE_BYTES", 100)
    good = '{"q": "1", "a": "2"}\n'
    path = tmp_path / "x.jsonl"
    path.write_text(good + '{"q": "' + "x" * 1000 + '"}\n' + good + "y" * 300)
    rows = list(read_file(path, Roles({"question": "q", "answer": "a"})))
    assert [row.line for row in rows] == [1, 2, 3, 4]
    assert [isinstance(row, Reject) for row in rows] == [False, True, False, True]
    assert rows[1].reason == "a line of more than 100 bytes"  # type: ignore[union-attr]
    table = tmp_path / "x.csv"
    table.write_text("q,a\n1," + "x" * 200 + "\n")
    others_limit = csv.field_size_limit()
    with pytest.raises(InputError, match=r"x\.csv:2: a line of more than 100 bytes"):
        list(read_file(table, Roles({"question": "q", "answer": "a"})))
    assert csv.field_size_limit() == others_limit  # it is the whole process's


@quick
@given(
    parts=st.lists(st.sampled_from(["..", ".", "", "a", "*", "**", "~", "\0", "\n", "/", "link", "%2e%2e"]), max_size=6)
)
def test_any_pattern_stays_in_the_workspace(tmp_path: Path, parts: list[str]) -> None:
    home = tmp_path / "home"
    if not home.exists():
        (home / "a").mkdir(parents=True)
        (home / "a" / "inside.jsonl").write_text("{}")
        (tmp_path / "secret.jsonl").write_text("{}")
        (home / "link").symlink_to(tmp_path)
    try:
        found = find_files(["/".join(parts)], home)
    except InputError:
        return
    assert {path.resolve() for path in found} == {(home / "a" / "inside.jsonl").resolve()}
