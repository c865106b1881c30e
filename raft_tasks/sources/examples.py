"""From raw rows to examples: validation, ids, exact duplicates, the split. Every row ends as an Example or a Reject."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any, get_args

from raft_tasks.params import Domain, Ingest, SplitBySource
from raft_tasks.schemas import Example, Reject, Split
from raft_tasks.sources.cleaning import normalised
from raft_tasks.sources.files import RawRow, SourceError, find_files, read_file

SPLITS: tuple[Split, ...] = get_args(Split)


class _Unusable(Exception):
    """Why a row cannot be used."""


def ingest_rows(name: str, domain: Domain, ingest: Ingest) -> tuple[list[Example], list[Reject]]:
    """Read, check and split the rows of one domain, in the files' order; the same files give the same rows.

    The first of several rows with one id, or with one content, is kept; the others are rejected and name it.

    Args:
        name: the domain's, the prefix of ids that come from the content.
        domain: its files (glob patterns relative to the working folder), columns and split.
        ingest: bounds on a row.

    Raises:
        SourceError: a file as a whole is wrong, a source stands in two splits, or train or test came out empty.
    """
    if domain.split.by == "column" and domain.columns.split is None:
        raise SourceError(f"domains.{name}: split.by is 'column', but columns.split is null; name the column")
    examples: list[Example] = []
    rejects: list[Reject] = []
    first_by_id: dict[str, str] = {}  # -> where it stands
    first_by_content: dict[bytes, str] = {}
    for path in find_files(domain.files):
        for row in read_file(path, domain.columns):
            if isinstance(row, Reject):
                rejects.append(row)
                continue
            try:
                example = _example(row, name, domain, ingest)
            except _Unusable as why:
                rejects.append(row.reject(str(why)))
                continue
            here = f"{row.file}:{row.line}"
            content = _content_key(example.question, example.answer)
            if content in first_by_content:
                rejects.append(row.reject(f"duplicate of {first_by_content[content]}"))
            elif example.id in first_by_id:
                rejects.append(row.reject(f"id {example.id!r} has other content in {first_by_id[example.id]}"))
            else:
                first_by_id[example.id] = first_by_content[content] = here
                examples.append(example)
    if domain.split.by == "column" and not domain.split.sources_may_straddle:
        _check_sources(name, examples)
    _check_splits(name, domain, examples, rejects)
    return examples, rejects


def split_of_source(source: str, split: SplitBySource) -> Split:
    """Draw the split of a source by a hash: it never depends on the other sources, so grown data moves no row."""
    drawn = int.from_bytes(hashlib.sha256(f"{split.seed}\n{source}".encode()).digest()[:8]) / 2**64
    if drawn < split.test:
        return "test"
    return "validation" if drawn < split.test + split.validation else "train"


def _example(row: RawRow, name: str, domain: Domain, ingest: Ingest) -> Example:
    values = row.values
    question, answer = _text(values, "question", ingest), _text(values, "answer", ingest)
    if domain.columns.id is None:
        identity = f"{name}-{_content_key(question, answer).hex()[:12]}"
    else:
        identity = _label(values, "id")
        if not identity:
            raise _Unusable(f"no id: column {domain.columns.id!r} is empty")
    # Without a source of its own, a row can still leak through the same question in another split.
    source = _label(values, "source") or normalised(question)
    if isinstance(domain.split, SplitBySource):
        split = split_of_source(source, domain.split)
    else:
        label = _label(values, "split")
        if label not in SPLITS:
            raise _Unusable(f"split: got {label!r}, expected one of {', '.join(SPLITS)}")
        split = label
    return Example(
        id=identity,
        domain=name,
        question=question,
        answer=answer,
        source=source,
        split=split,
        expected=_strings(values, "expected"),
        details=_strings(values, "details"),
    )


def _content_key(question: str, answer: str) -> bytes:
    return hashlib.sha256(json.dumps([normalised(question), normalised(answer)]).encode()).digest()


def _text(values: dict[str, Any], role: str, ingest: Ingest) -> str:
    if role not in values:
        raise _Unusable(f"no {role}")
    text = _string(values[role], role).strip()
    if not text:
        raise _Unusable(f"{role} is blank")
    if len(text) > ingest.max_characters:
        raise _Unusable(f"{role} has {len(text)} characters, at most {ingest.max_characters} (ingest.max_characters)")
    return text


def _label(values: dict[str, Any], role: str) -> str:
    """An id, source or split: text or a whole number; "" where there is none."""
    value = values.get(role, "")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return normalised(_string(value, role))


def _strings(values: dict[str, Any], role: str) -> list[str]:
    """A list of strings, a JSON list of strings (CSV has no other way to write one), or a single string."""
    value = values.get(role, [])
    if isinstance(value, str):
        text = value.strip()
        try:
            value = json.loads(text) if text.startswith("[") and text.endswith("]") else [text] if text else []
        except (ValueError, RecursionError) as error:
            raise _Unusable(f"{role} is not a JSON list of strings: {error}") from error
    if not isinstance(value, list):
        raise _Unusable(f"{role}: got {_shown(value)}, expected a list of strings")
    strings = [_string(item, f"an entry of {role}").strip() for item in value]
    if not all(strings):
        raise _Unusable(f"{role}: a blank entry would be found in any answer")
    return strings


def _string(value: Any, role: str) -> str:
    if not isinstance(value, str):
        raise _Unusable(f"{role}: got {_shown(value)}, expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Unusable(f"{role} is not valid Unicode (a lone surrogate at character {error.start + 1})") from error
    return value


def _shown(value: Any) -> str:
    """A value's type, and a single value itself, short enough for a message."""
    return type(value).__name__ if isinstance(value, list | dict) else f"{type(value).__name__} {value!r:.60}"


def _check_sources(name: str, examples: list[Example]) -> None:
    splits: dict[str, set[Split]] = {}
    for example in examples:
        splits.setdefault(example.source, set()).add(example.split)
    straddling = [f"{source!r} ({', '.join(sorted(found))})" for source, found in splits.items() if len(found) > 1]
    if straddling:
        more = f" and {len(straddling) - 5} more" if len(straddling) > 5 else ""
        raise SourceError(
            f"domains.{name}: {len(straddling)} source(s) in more than one split: {', '.join(straddling[:5])}{more}; "
            "correct the split column, or set split.sources_may_straddle if that is meant"
        )


def _check_splits(name: str, domain: Domain, examples: list[Example], rejects: list[Reject]) -> None:
    sizes = Counter(example.split for example in examples)
    empty = [split for split in ("train", "test") if not sizes[split]]
    if not empty:
        return
    sources = len({example.source for example in examples})
    counts = ", ".join(f"{split} {sizes[split]}" for split in SPLITS)
    reasons = "".join(f"; first reject {r.file}:{r.line}: {r.reason}" for r in rejects[:1])
    remedy = (
        "give more sources, other shares or another split.seed"
        if isinstance(domain.split, SplitBySource)
        else f"correct column {domain.columns.split!r}"
    )
    raise SourceError(
        f"domains.{name}: no row for {' and '.join(empty)}: {counts} from {sources} source(s), "
        f"{len(rejects)} row(s) rejected{reasons}; {remedy}"
    )
