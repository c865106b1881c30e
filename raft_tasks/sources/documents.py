"""Documents to chunks: text, Markdown, HTML, PDF and Parquet of texts, cut along their structure, positions kept.

A chunk of `documents/law/act.md`, whole:

    {"id": "3f0c8a1b52d7e946", "text": "## Fees\n\nThe fee is 12 euros.", "file": "documents/law/act.md", "page": null,
     "start": 310, "end": 341, "heading": ["Act", "Fees"]}

What is wrong with one file is a `Reject`, and the next file is read.
"""

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

from raft_tasks.model_files import is_pointer
from raft_tasks.schemas import Chunk, Reject
from raft_tasks.sources.extraction import Block, UnreadableError, html, markdown, pages, plain_text, strip_span
from raft_tasks.sources.files import reject
from raft_tasks.sources.pdf import page_texts

DOCUMENT_BYTES = 16 * 2**20  # of a file other than Parquet, which is read row by row
TEXT_COLUMN = "text"  # of a Parquet file of texts

# A point after these ends no sentence. Single letters (initials) and numbers before a lower-case word do not either.
_ABBREVIATIONS = """
    dr mr mrs ms prof st sr jr hon rev gen col sgt capt lt no nos art arts sec secs para paras fig figs eq eqs ch chs
    vol vols ed eds pp cf vs v e.g i.e etc al approx ca inc ltd co corp dept est jan feb mar apr jun jul aug sep sept
    oct nov dec u.s u.k u.n abs nr bzw z.b d.h usw ggf vgl bd hrsg
"""
ABBREVIATIONS = frozenset(_ABBREVIATIONS.split())
SENTENCE_END = re.compile(r"[.!?…][\"'”’“»)\]]*(?=\s)|[。！？][」』”]*")

Document = tuple[str, str, list[Block], list[int]]  # name, text, blocks, where each page begins (without pages: none)


def chunks(paths: Iterable[Path], *, min_characters: int, max_characters: int) -> Iterator[Chunk | Reject]:
    """The chunks of the documents, in order. The same document gives the same chunks with the same ids.

    A chunk is a slice of the document's extracted text (`Chunk.start`, `Chunk.end`) along headings and paragraphs. It
    holds sections together until `min_characters`, and never has more than `max_characters`: a longer paragraph is cut
    after a sentence, a longer table or piece of code after a line, and only a longer sentence or line within. A text
    that occurs twice (a boilerplate page) comes once.

    Args:
        paths: files by ending: .txt, .md, .html, .pdf, .parquet (a column "text"); see `find_files`.
        min_characters, max_characters: of a chunk's text.
    """
    seen: set[str] = set()
    for path in paths:
        try:
            for name, text, blocks, pages_at in _documents(path):
                for start, end, heading in _cut(text, blocks, min_characters, max_characters):
                    part, page = text[start:end], bisect_right(pages_at, start) or None
                    id = hashlib.sha256(json.dumps([heading, part]).encode()).hexdigest()[:16]
                    if id not in seen:
                        seen.add(id)
                        yield Chunk(id=id, text=part, file=name, page=page, start=start, end=end, heading=heading)
        except (UnreadableError, OSError) as error:
            yield reject(str(path), 1, str(error), "")


def texts(paths: Iterable[Path]) -> Iterator[tuple[str, str] | Reject]:
    """(name, extracted text) of every document, in order; a text that occurs twice comes once."""
    seen: set[str] = set()
    for path in paths:
        try:
            for name, text, *_ in _documents(path):
                if (stripped := text.strip()) not in seen:
                    seen.add(stripped)
                    yield name, stripped
        except (UnreadableError, OSError) as error:
            yield reject(str(path), 1, str(error), "")


def _documents(path: Path) -> Iterator[Document]:
    """Yield every document of the file that has text.

    Raises:
        UnreadableError: there is none, or the file cannot be read.
    """
    empty = True
    for document in _read(path):
        if document[1].strip():
            empty = False
            yield document
    if empty:
        raise UnreadableError("holds no text")


def _read(path: Path) -> Iterator[Document]:
    ending = path.suffix.lower()
    if is_pointer(path):
        raise UnreadableError("a Git LFS pointer, not the file itself; run `git lfs pull`")
    if ending == ".parquet":
        for row, text in _parquet_texts(path):
            yield f"{path}#{row}", *plain_text(text), []
        return
    size = path.stat().st_size
    if size > DOCUMENT_BYTES:
        raise UnreadableError(f"has {size} bytes, at most {DOCUMENT_BYTES}; split it, or give its texts as Parquet")
    if ending == ".pdf":
        yield str(path), *pages(page_texts(path))
    elif ending in (".html", ".htm"):
        yield str(path), *html(path.read_bytes()), []
    elif ending in (".md", ".markdown"):
        yield str(path), *markdown(_decoded(path)), []
    elif ending == ".txt":
        yield str(path), *plain_text(_decoded(path)), []
    else:
        raise UnreadableError(f"got the ending {path.suffix!r}, expected one of .txt, .md, .html, .pdf, .parquet")


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    utf32 = content.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff"))
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-32" if utf32 else "utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(
            f"not UTF-8 (byte 0x{content[error.start]:02x} at {error.start + 1}); save it as UTF-8"
        ) from error
    if "\0" in text:
        raise UnreadableError("holds NUL characters: no text, or UTF-16 without its mark; save it as UTF-8")
    return text


def _parquet_texts(path: Path) -> Iterator[tuple[int, str]]:
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            if TEXT_COLUMN not in table.schema_arrow.names:
                raise UnreadableError(f"no column {TEXT_COLUMN!r}; the columns there are {table.schema_arrow.names}")
            for batch in table.iter_batches(batch_size=64, columns=[TEXT_COLUMN]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    if isinstance(text, str):
                        yield row, text
                    elif text is not None:
                        raise UnreadableError(f"row {row}: got a {type(text).__name__}, expected text")
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise UnreadableError(f"not readable as Parquet after row {row}: {error}") from error


def _cut(text: str, blocks: list[Block], least: int, most: int) -> Iterator[tuple[int, int, list[str]]]:
    """(start, end, heading path) of each chunk: pieces that stand one after the other, as many as fit."""
    begun: tuple[int, int, list[str]] | None = None
    for start, end, heading in _pieces(text, blocks, most):
        if begun is None:
            begun = start, end, heading
        elif end - begun[0] > most or (heading != begun[2] and begun[1] - begun[0] >= least):
            yield begun
            begun = start, end, heading
        else:
            both = takewhile(lambda titles: titles[0] == titles[1], zip(begun[2], heading, strict=False))
            begun = begun[0], end, [title for title, _ in both]
    if begun is not None:
        yield begun


def _pieces(text: str, blocks: list[Block], most: int) -> Iterator[tuple[int, int, list[str]]]:
    """What chunks are made of, each at most `most` characters: a block with its headings, or a part of it."""
    path: list[tuple[int, str]] = []  # the headings above, with their levels
    opened: int | None = None  # where the headings start that no block has followed yet
    for number, block in enumerate(blocks):
        if block.kind == "heading":
            if opened is None:
                opened = block.start
            path = [entry for entry in path if entry[0] < block.level]
            path.append((block.level, _title(text[block.start : block.end])))
            if number + 1 < len(blocks):
                continue
        start = block.start if opened is None else opened
        opened = None
        heading = [title for _, title in path]
        if block.end - start <= most:
            yield start, block.end, heading
        else:
            for part_start, part_end in _parts(text, start, block, most):
                yield part_start, part_end, heading


def _parts(text: str, start: int, block: Block, most: int) -> Iterator[tuple[int, int]]:
    """A long block in parts: whole sentences (lines, of a table or code) as long as they fit."""
    part = text[start : block.end]
    ends = [m.end() for m in re.finditer("\n", part)] if block.kind == "whole" else sentence_ends(part)
    begin = 0
    last = 0  # the last end that still fits
    for end in [*ends, len(part)]:
        if end - begin > most and last > begin:
            yield from _stripped(part, begin, last, start)
            begin = last
        while end - begin > most:  # a sentence longer than a chunk: after a word, or else anywhere
            blank = max(part.rfind(" ", begin + 1, begin + most), part.rfind("\n", begin + 1, begin + most))
            cut = blank if blank > begin else begin + most
            yield from _stripped(part, begin, cut, start)
            begin = cut
        last = end
    yield from _stripped(part, begin, len(part), start)


def sentence_ends(text: str) -> list[int]:
    """Positions after each sentence of `text`, the last one's left out."""
    ends = []
    for match in SENTENCE_END.finditer(text):
        if match[0][0] == ".":
            before = text[max(0, match.start() - 12) : match.start()].split()
            word = before[-1].lstrip("(\"'“‘[").lower() if before else ""
            following = text[match.end() : match.end() + 40].lstrip()[:1]
            if word in ABBREVIATIONS or (len(word) == 1 and word.isalpha()) or following.islower():
                continue
        ends.append(match.end())
    return ends


def _stripped(part: str, begin: int, end: int, shift: int) -> Iterator[tuple[int, int]]:
    begin, end = strip_span(part, begin, end)
    if begin < end:
        yield begin + shift, end + shift


def _title(heading: str) -> str:
    """A heading's text without Markdown's marks."""
    return " ".join(re.sub(r"^#{1,6}\s*|\s+#+\s*$|\n[=-]+\s*$", "", heading).split())
