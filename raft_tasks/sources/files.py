"""Question-answer files, row by row: .jsonl, .csv and .parquet under a declared column mapping.

A .jsonl row, with columns {question: question, answer: answer, source: fact, ...}:

    {"question": "What is the reactor of Figin?", "answer": "Figin :: reactor -> rope", "fact": "Figin/reactor"}

What is wrong with a file as a whole (not there, another encoding, no such column) is a `SourceError`: going on would
silently use a part of it. What is wrong with one row is a `Reject`, and reading goes on.
"""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft_tasks.errors import InputError
from raft_tasks.params import Columns
from raft_tasks.schemas import Reject

CONTENT_CHARACTERS = 500  # of a rejected row that are kept for the record


class SourceError(InputError):
    """A file, or the set of files, cannot be used as it is."""


@dataclass(frozen=True)
class RawRow:
    """One row as its file has it: `values` by role (question, answer, id, ...); a role without a value is not there."""

    file: str
    line: int  # 1-based; the record's first line in CSV, the row's number in Parquet
    values: dict[str, Any]
    content: str  # the row as text

    def reject(self, reason: str) -> Reject:
        return reject(self.file, self.line, reason, self.content)


def reject(file: str, line: int, reason: str, content: str) -> Reject:
    content = content.encode("utf-8", "backslashreplace").decode()
    reason = reason.encode("utf-8", "backslashreplace").decode()
    if len(content) > CONTENT_CHARACTERS:
        content = content[:CONTENT_CHARACTERS] + " [...]"
    return Reject(file=file, line=line, reason=reason, content=content)


def find_files(patterns: list[str]) -> list[Path]:
    """The files that the glob patterns name: in the patterns' order, sorted within each, none twice.

    Raises:
        SourceError: for a pattern that names no file.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        files = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())
        if not files:
            raise SourceError(f"no file matches {pattern!r} in {Path.cwd()}; correct `files` in params.yaml")
        found.update(dict.fromkeys(files))
    return list(found)


def read_file(path: Path, columns: Columns) -> Iterator[RawRow | Reject]:
    """Yield the rows of one file in their order, holding a small part of it in memory.

    Raises:
        SourceError: unknown ending, unreadable file, not UTF-8, or a mapped column that the file does not have.
    """
    readers: dict[str, Callable[[Path, Columns], Iterator[RawRow | Reject]]] = {
        ".jsonl": read_jsonl,
        ".csv": read_csv,
        ".parquet": read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise SourceError(f"{path}: got the ending {path.suffix!r}, expected one of {', '.join(readers)}")
    try:
        yield from reader(path, columns)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error}") from error


def read_jsonl(path: Path, columns: Columns) -> Iterator[RawRow | Reject]:
    """One JSON object per line; blank lines are passed over. A column may be missing in some rows, not in all."""
    mapped = _mapped(columns)
    seen: dict[str, None] = {}  # every column of the file, in order of appearance
    for number, line in _lines(path):
        text = line.strip()
        if not text:
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield reject(str(path), number, f"broken JSON: {error}", text)
            continue
        if not isinstance(record, dict):
            yield reject(str(path), number, f"got a JSON {type(record).__name__}, expected an object", text)
            continue
        seen.update(dict.fromkeys(record))
        yield RawRow(str(path), number, _by_role(record, mapped), text)
    if seen:
        _check_columns(path, mapped, list(seen))


def read_csv(path: Path, columns: Columns) -> Iterator[RawRow | Reject]:
    """Comma-separated with a header and double quotes. An empty field is a missing value."""
    mapped = _mapped(columns)
    consumed: list[str] = []  # the physical lines of the record that is being read

    def recorded() -> Iterator[str]:
        for _, line in _lines(path):
            consumed.append(line)
            yield line

    reader = csv.reader(recorded(), strict=True)
    header: list[str] | None = None
    while True:
        consumed.clear()
        first_line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            if header is None:
                raise SourceError(f"{path}:{first_line}: the header is not CSV: {error}") from error
            yield reject(str(path), first_line, f"broken CSV: {error}", "".join(consumed).strip())
            continue
        if fields is None:
            return
        if not any(field.strip() for field in fields):
            continue
        if header is None:
            header = fields
            twice = sorted({name for name in header if header.count(name) > 1} & set(mapped.values()))
            if twice:
                raise SourceError(f"{path}:{first_line}: column {twice[0]!r} stands twice in the header: {header}")
            _check_columns(path, mapped, header)
            continue
        content = "".join(consumed).strip()
        if len(fields) != len(header):
            reason = f"got {len(fields)} fields, expected {len(header)} as in the header"
            yield reject(str(path), first_line, reason, content)
            continue
        record = {name: field for name, field in zip(header, fields, strict=True) if field}
        yield RawRow(str(path), first_line, _by_role(record, mapped), content)


def read_parquet(path: Path, columns: Columns) -> Iterator[RawRow | Reject]:
    """Row by row; only the mapped columns are read. A null is a missing value."""
    import pyarrow
    import pyarrow.parquet

    mapped = _mapped(columns)
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            _check_columns(path, mapped, table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=1024, columns=sorted(set(mapped.values()))):
                for record in batch.to_pylist():
                    number += 1
                    values = _by_role(record, mapped)
                    yield RawRow(str(path), number, values, json.dumps(values, ensure_ascii=False, default=str))
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise SourceError(f"{path}: not readable as Parquet after row {number}: {error}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file (a byte-order mark is dropped), split at newlines alone.

    The encoding is the whole file's: rejecting just the lines that show it would quietly keep the plain-ASCII rest.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise SourceError(
                    f"{path}:{number}: not UTF-8 (byte 0x{line[error.start]:02x} at {error.start + 1}); "
                    "save the whole file as UTF-8"
                ) from error


def _mapped(columns: Columns) -> dict[str, str]:
    """{role: column} for the roles that have one."""
    return {role: column for role, column in columns.model_dump().items() if column is not None}


def _by_role(record: dict[str, Any], mapped: dict[str, str]) -> dict[str, Any]:
    return {role: record[column] for role, column in mapped.items() if record.get(column) is not None}


def _check_columns(path: Path, mapped: dict[str, str], there: list[str]) -> None:
    missing = [f"{column!r} (for {role})" for role, column in mapped.items() if column not in there]
    if missing:
        raise SourceError(
            f"{path}: no column {', '.join(missing)}; the columns there are {', '.join(map(repr, there))}; "
            "correct `columns` in params.yaml"
        )
