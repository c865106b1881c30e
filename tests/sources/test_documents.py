from itertools import pairwise
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from raft_tasks.schemas import Chunk, Reject
from raft_tasks.sources import pdf
from raft_tasks.sources.documents import chunks, sentence_ends, texts
from raft_tasks.sources.extraction import html, markdown, pages, plain_text

MARKDOWN = """\
---
# Act

The act governs fees. It has two parts.

## Fees

The fee is 12 euros. Dr. Meyer sets it, cf. art. 5 of the act.

| case | fee |
|------|-----|
| new  | 12  |

## Terms

```python
# not a heading
term = 30
```

Second level
------------

- one
- two
"""
PAGE = """<html><head><title>T</title><script>evil()</script></head><body><nav>Menu</nav>
<h1>Act</h1><p>The <b>act</b> governs&nbsp;fees.<br>Always.</p><div>Loose text <p>inner</p> tail</div>
<table>
	<tr>
		<th>case</th>
		<th>fee</th>
	</tr><tr><td><p>new	one</p></td><td>12</td></tr></table>
<pre>a = 1
  b = 2</pre><!-- note --></body></html>"""


def make_pdf(path: Path, *texts: str) -> Path:
    """A PDF whose pages show `texts` (ASCII)."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    for text in texts:
        content = "BT /F1 12 Tf 72 720 Td " + " T* ".join(f"({line}) Tj" for line in text.split("\n")) + " ET"
        font = "<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
        kids.append(f"{len(objects) + 1} 0 R")
        objects.append(f"<< /Type /Page /Parent 2 0 R /Resources {font} /Contents {len(objects) + 2} 0 R >>")
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} /MediaBox [0 0 612 792] >>"
    out, offsets = "%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    start = len(out)
    out += (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer << /Size {len(objects) + 1} /Root 1 0 R >>\n"
    )
    path.write_bytes(f"{out}startxref\n{start}\n%%EOF\n".encode())
    return path


def cut(path: Path, least: int = 1, most: int = 200) -> list[Chunk]:
    found = list(chunks([path], min_characters=least, max_characters=most))
    assert all(isinstance(chunk, Chunk) for chunk in found), found
    return found  # type: ignore[return-value]


def rejected(path: Path) -> str:
    [found] = chunks([path], min_characters=1, max_characters=200)
    assert isinstance(found, Reject)
    assert [found] == list(texts([path]))
    assert found.file == str(path)
    return found.reason


def test_markdown_is_cut_at_headings_and_keeps_their_path(tmp_path: Path) -> None:
    path = tmp_path / "act.md"
    path.write_text(MARKDOWN)
    found = cut(path)
    assert [(chunk.heading, chunk.text.split("\n")[0]) for chunk in found] == [
        ([], "---"),
        (["Act"], "# Act"),
        (["Act", "Fees"], "## Fees"),
        (["Act", "Terms"], "## Terms"),
        (["Act", "Second level"], "Second level"),
    ]
    text, _ = markdown(MARKDOWN)
    assert all(chunk.text == text[chunk.start : chunk.end] for chunk in found)
    assert "| new  | 12  |" in found[2].text
    assert all(chunk.page is None and chunk.file == str(path) for chunk in found)


def test_small_sections_stay_together_and_lose_the_heading_that_they_do_not_share(tmp_path: Path) -> None:
    path = tmp_path / "act.md"
    path.write_text(MARKDOWN)
    found = cut(path, least=150, most=250)
    assert [chunk.heading for chunk in found] == [[], ["Act"]]
    assert found[0].text.endswith("| new  | 12  |")


@pytest.mark.parametrize("most", [40, 60, 200])
def test_no_chunk_is_longer_than_allowed_and_nothing_is_lost(tmp_path: Path, most: int) -> None:
    path = tmp_path / "act.md"
    path.write_text(MARKDOWN + " ".join(map(str, range(60))) + "\n\n" + "".join(map(str, range(80))))
    found = cut(path, least=20, most=most)
    assert max(len(chunk.text) for chunk in found) <= most
    text, _ = markdown(path.read_text())
    covered = "".join(text[chunk.start : chunk.end] for chunk in found)
    assert "".join(covered.split()) == "".join(text.split())
    assert all(first.end <= second.start for first, second in pairwise(found))


def test_a_long_paragraph_is_cut_after_sentences_a_table_after_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("The fee is 12.50 euros. Dr. Meyer, e.g. J. Meyer, sets it. It is due at once! Is it? Yes.")
    assert [chunk.text for chunk in cut(path, most=40)] == [
        "The fee is 12.50 euros.",
        "Dr. Meyer, e.g. J. Meyer, sets it.",
        "It is due at once! Is it? Yes.",
    ]
    table = tmp_path / "x.md"
    table.write_text("|a|b|\n|-|-|\n" + "".join(f"|{n}|{n}. And more|\n" for n in range(8)))
    assert all(chunk.text.endswith("|") for chunk in cut(table, most=45))


def test_sentence_ends_in_other_scripts() -> None:
    assert sentence_ends("法律。规定！是") == [3, 6]
    assert sentence_ends("Er sagte „Nein.“ Dann ging er.") == [16]
    assert sentence_ends("See no. 5 and approx. five. Done") == [27]


def test_html_gives_the_visible_text_by_blocks() -> None:
    text, blocks = html(PAGE.encode())
    assert [(block.kind, text[block.start : block.end]) for block in blocks] == [
        ("heading", "Act"),
        ("paragraph", "The act governs fees. Always."),
        ("paragraph", "Loose text"),
        ("paragraph", "inner"),
        ("paragraph", "tail"),
        ("whole", "case | fee\nnew one | 12"),
        ("whole", "a = 1\n  b = 2"),
    ]


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<td><p>5 mg</p><p>20 days</p></td><td><ul><li>10</li><li>20</li></ul></td>", "5 mg 20 days | 10 20"),
        ("<td>Adults<div>500</div>250<hr>kg</td>", "Adults 500 250 kg"),
        ("<td>a<table><tr><td>b</td><td>c</td></tr></table>d</td><td>e</td>", "a\nb | c\nd | e"),
        ("<td>10<sup>6</sup></td><td>m<sup>2</sup></td>", "10^6 | m2"),
    ],
)
def test_blocks_within_a_cell_stay_apart(markup: str, text: str) -> None:
    assert html(f"<table><caption>Fees</caption><tr>{markup}</tr></table>".encode())[0] == f"Fees\n{text}"


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<p>10<sup>6</sup>, 10<sup><i>-6</i></sup>, m<sup>2</sup>, 2<sup>nd</sup>.</p>", "10^6, 10^-6, m2, 2nd."),
        ("<select><option>1</option><option>2</option></select>", "1\n\n2"),
        ("<label>5</label><label>7</label>8", "5\n\n7\n\n8"),
        ("<center>5</center><center>7</center>", "5\n\n7"),
    ],
)
def test_neighbours_do_not_become_one_word(markup: str, text: str) -> None:
    assert html(markup.encode())[0] == text


def test_definitions_of_links_and_footnotes_are_text() -> None:
    text, blocks = markdown("[fee]: 12\n\n[^1]: 12.50\n\nThe [fee].[^1]\n")
    assert [text[block.start : block.end] for block in blocks] == ["[fee]: 12", "[^1]: 12.50", "The [fee].[^1]"]


def test_html_in_its_declared_encoding() -> None:
    content = '<meta charset="iso-8859-1"><p>Gebühr</p>'.encode("latin-1")
    assert html(content)[0] == "Gebühr"
    assert html(b"")[0] == html(b"<!-- x -->")[0] == html(b"\x00")[0] == ""


def test_pdf_pages_are_kept(tmp_path: Path) -> None:
    path = make_pdf(tmp_path / "a.pdf", "First page. It ends.", "Second page.")
    assert [(chunk.page, chunk.text) for chunk in cut(path, least=1, most=25)] == [
        (1, "First page. It ends."),
        (2, "Second page."),
    ]
    text, _, starts = pages(pdf.page_texts(path))
    assert text[starts[1] :] == "Second page."


def test_parquet_rows_are_documents(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["One.\n\nUno.", None, "Three."], "n": [1, 2, 3]}), path)
    found = [(chunk.file, chunk.page, chunk.text) for chunk in cut(path)]
    assert found == [(f"{path}#1", None, "One.\n\nUno."), (f"{path}#3", None, "Three.")]


def test_ids_come_from_the_content_and_a_repeated_text_comes_once(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("One.\n\nTwo.")
    second.write_text("New.\n\nTwo.")
    found = list(chunks([first, second], min_characters=1, max_characters=6))
    assert [chunk.text for chunk in found] == ["One.", "Two.", "New."]  # type: ignore[union-attr]
    assert cut(first, most=6)[1].id == cut(second, most=6)[1].id


def test_text_is_cleaned() -> None:
    assert plain_text("cafe\u0301\r\n\r\nzero\u200bwidth\x07")[0] == "caf\u00e9\n\nzerowidth"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.txt", b"caf\xe9", "not UTF-8 (byte 0xe9 at 4)"),
        ("x.doc", b"text", "got the ending '.doc', expected one of .txt, .md, .html, .pdf, .parquet"),
        ("x.html", b"<b>" * 300 + b"x", "nested too deeply (256 elements)"),
        ("x.txt", b"x" * (2**24 + 1), "has 16777217 bytes, at most 16777216; split it"),
        ("x.pdf", b"%PDF-1.4 nothing", "not readable as PDF at page 1"),
        ("x.parquet", b"PAR1PAR1", "not readable as Parquet after row 0"),
        ("none.txt", None, "No such file"),
        ("x.txt", b" \n", "holds no text"),
        ("x.md", b"", "holds no text"),
        ("x.html", b"<body><div id=root></div><script>render('The fee is 12 euros')</script>", "holds no text"),
    ],
)
def test_an_unusable_document_is_rejected_alone(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert reason in rejected(tmp_path / name)


def test_a_parquet_file_without_texts_is_rejected(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "t.parquet")
    assert rejected(tmp_path / "t.parquet") == "no column 'text'; the columns there are ['body']"


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ([b"The fee is 12 euros."], "row 1: got a bytes, expected text"),
        ([None, ["The fee"]], "row 2: got a list, expected text"),
        ([None, " "], "holds no text"),
    ],
)
def test_a_parquet_column_of_something_else_is_rejected(tmp_path: Path, column: list[object], reason: str) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "t.parquet")
    assert rejected(tmp_path / "t.parquet") == reason


def test_a_pdf_without_text_is_rejected(tmp_path: Path) -> None:
    assert "holds no text (scanned pages?)" in rejected(make_pdf(tmp_path / "scan.pdf", ""))


def test_ligatures_and_words_that_a_lines_end_divides_are_one_word(tmp_path: Path) -> None:
    text = "The veri\ufb01-\ncation of a self-\nmade oﬃce. A self-made man, Anne-\nMarie, 10-\n12 days, a -\nb."
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    [chunk] = chunks([tmp_path / "a.txt"], min_characters=1, max_characters=1000)
    assert chunk.text == "The verification of a self-made office. A self-made man, Anne-Marie, 10-\n12 days, a -\nb."


def test_words_that_a_soft_or_old_hyphen_parts_are_whole() -> None:
    for text in ("verifi\u00ad\ncation", "verifi\u00ad cation", "veri\ufb01- \n cation", "verifi\u00ac\ncation"):
        assert plain_text(text)[0] == "verification"
    assert html(b"<p>verifi&shy;\ncation</p>")[0] == "verification"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("Привет, мир.".encode("utf-16"), "Привет, мир."),
        ("Привет, мир.".encode("utf-32"), "Привет, мир."),
        ("Привет, мир.".encode("utf-16-le"), "holds NUL characters"),
        ("caf\u0101 here".encode("utf-16-be"), "holds NUL characters"),
        ("café".encode("latin-1"), "not UTF-8 (byte 0xe9 at 4)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    ],
)
@pytest.mark.parametrize("ending", ["txt", "md"])
def test_a_text_in_another_encoding_is_read_or_named(
    tmp_path: Path, ending: str, content: bytes, expected: str
) -> None:
    path = tmp_path / f"act.{ending}"
    path.write_bytes(content)
    [piece] = chunks([path], min_characters=1, max_characters=200)
    assert (piece.text if isinstance(piece, Chunk) else piece.reason).startswith(expected)
