"""A document's text and its structure: what of it is a heading, a paragraph, a table, code.

Every reader returns the cleaned text and its blocks. A block is a slice of that text, so positions can be checked.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

from raft_tasks.sources.cleaning import INVISIBLE, cleaned, without_line_end_hyphens
from raft_tasks.sources.pdf import UnreadableError

Kind = Literal["heading", "paragraph", "whole"]  # whole: a table, code or list, kept in one piece if it fits

HTML_SKIPPED = {"script", "style", "template", "noscript", "head", "nav", "svg", "math", "iframe", "object", "button"}
_HTML_BLOCKS = """
    h1 h2 h3 h4 h5 h6 p li dt dd pre table caption blockquote div center section article main header footer aside figure
    figcaption address body html ul ol dl menu form fieldset legend label option optgroup details summary dialog hr
"""
HTML_BLOCKS = frozenset(_HTML_BLOCKS.split())
ROW = "\t"  # stands for a table's row until its cells' white space is folded; `cleaned` keeps it
POWER = "\x1e"  # stands before what is written raised; `cleaned` drops it
HTML_SEPARATORS = {"tr": ROW, "td": " | ", "th": " | ", "table": ROW, "br": "\n", "sup": POWER}


@dataclass(frozen=True)
class Block:
    """A slice of the text, in characters."""

    kind: Kind
    start: int
    end: int
    level: int = 0  # of a heading, 1-6


def plain_text(text: str) -> tuple[str, list[Block]]:
    """Paragraphs, parted by blank lines."""
    text = without_line_end_hyphens(cleaned(text))
    return text, _paragraphs(text, 0)


def pages(texts: list[str]) -> tuple[str, list[Block], list[int]]:
    """Paragraphs of pages; the third value is where each page starts."""
    starts, blocks, parts, length = [], [], [], 0
    for page in map(without_line_end_hyphens, map(cleaned, texts)):
        starts.append(length)
        blocks += _paragraphs(page, length)
        parts.append(page)
        length += len(page) + 2
    return "\n\n".join(parts), blocks, starts


def markdown(text: str) -> tuple[str, list[Block]]:
    """CommonMark's top-level blocks, with tables; by markdown-it."""
    from markdown_it import MarkdownIt

    text = cleaned(text)
    parser = MarkdownIt("commonmark").enable("table").disable("reference")  # definitions are text too
    parser.core.ruler.enableOnly(["normalize", "block"])
    lines = [0]
    lines += [match.end() for match in re.finditer("\n", text)]
    lines.append(len(text))
    blocks = []
    for token in parser.parse(text):
        if token.level or token.map is None or token.nesting < 0:
            continue
        start, end = lines[token.map[0]], lines[min(token.map[1], len(lines) - 1)]
        kind: Kind = "paragraph"
        if token.type == "heading_open":
            kind = "heading"
        elif token.type in ("table_open", "fence", "code_block", "bullet_list_open", "ordered_list_open"):
            kind = "whole"
        level = int(token.tag[1]) if kind == "heading" else 0
        blocks.append(Block(kind, *strip_span(text, start, end), level))
    return text, [block for block in blocks if block.start < block.end]


def html(content: bytes) -> tuple[str, list[Block]]:
    """The visible text by block elements; a table becomes lines of cells parted by ` | `. The encoding as declared."""
    from bs4.dammit import UnicodeDammit
    from lxml import etree

    decoded = UnicodeDammit(content, is_html=True).unicode_markup or ""
    parser = etree.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=False)
    try:
        root = etree.fromstring(INVISIBLE.sub("", decoded).encode(), parser)
    except etree.XMLSyntaxError:  # nothing but white space, comments or broken bytes
        root = None
    if any(entry.type_name == "ERR_RESOURCE_LIMIT" for entry in parser.error_log):
        raise UnreadableError("the HTML is nested too deeply (256 elements): the rest of it would be lost")
    found: list[tuple[str, str]] = []  # (element, its text)
    inside, pieces, tables = ["body"], [""], 0

    def close() -> None:
        name = "table" if tables else inside[-1]
        text = re.sub(rf"(?<=\d){POWER}(?=[-\u2212]?\d)", "^", "".join(pieces))  # 10<sup>6</sup> is not 106
        text = _html_text(name, cleaned(text))
        pieces.clear()
        if text:
            found.append((name, text))

    walk: Any = etree.iterwalk(root, events=("start", "end")) if root is not None else ()
    for event, element in walk:
        name = element.tag
        block = name in HTML_BLOCKS
        separator = HTML_SEPARATORS.get(name, "\n" * block) if tables or name in ("br", "sup") else ""
        if event == "start" and name in HTML_SKIPPED:
            walk.skip_subtree()
        elif event == "start":
            if block and not tables:
                close()
                inside.append(name)
            tables += name == "table"
            pieces += [separator, (element.text or "").replace(ROW, " ") if tables else element.text or ""]
        elif name not in HTML_SKIPPED:
            if block and tables <= (name == "table"):
                close()
                inside.pop()
            tables -= name == "table"
        if event == "end":
            tail = element.tail or ""
            pieces += [separator * block, tail.replace(ROW, " ")] if tables else [tail]
    close()
    blocks, length = [], 0
    for name, text in found:
        level = int(name[1]) if re.fullmatch("h[1-6]", name) else 0
        kind: Kind = "heading" if level else "whole" if name in ("pre", "table") else "paragraph"
        blocks.append(Block(kind, length, length + len(text), level))
        length += len(text) + 2
    return "\n\n".join(text for _, text in found), blocks


def _html_text(name: str, text: str) -> str:
    """A block's text as it reads: white space folded, except in `pre`; a table's rows as lines."""
    if name == "pre":
        return text.strip("\n") if text.strip() else ""
    if name == "table":
        rows = (" ".join(row.split()).strip("| ") for row in text.replace("\n", " ").split(ROW))
        return "\n".join(row for row in rows if row)
    return " ".join(text.split())


def _paragraphs(text: str, shift: int) -> list[Block]:
    breaks = [match.span() for match in re.finditer(r"\n[ \t]*\n\s*", text)]
    starts, ends = [0, *(end for _, end in breaks)], [*(start for start, _ in breaks), len(text)]
    spans = (strip_span(text, start, end) for start, end in zip(starts, ends, strict=True))
    return [Block("paragraph", start + shift, end + shift) for start, end in spans if start < end]


def strip_span(text: str, start: int, end: int) -> tuple[int, int]:
    """Start and end of `text[start:end]` without the white space at its ends."""
    part = text[start:end]
    return end - len(part.lstrip()), max(end - len(part.lstrip()), start + len(part.rstrip()))
