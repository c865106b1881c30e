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
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft_tasks.config import Domain
from raft_tasks.errors import InputError
from raft_tasks.schemas import Reject
from raft_tasks.sources.privacy import findings, masked

CONTENT_CHARACTERS = 500  # of a rejected row that are kept for the record
LINE_BYTES = 16 * 2**20  # of a line; longer ones are passed over without being held
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class SourceError(InputError):
    """A file, or the set of files, cannot be used as it is."""


@dataclass(frozen=True)
class RawRow:
    """One row as its file has it: `values` by role (question, answer, id, ...); a role without a value is not there."""

    file: str
    line: int  # 1-based; the record's first line in CSV, the row's number in Parquet
    values: dict[str, Any]
    content: str  # the row as text


def reject(file: str, line: int, reason: str, content: str, rule: str = "unreadable") -> Reject:
    """A Reject whose content is short, printable as UTF-8 and without secrets and personal data."""
    content = content[: 2 * CONTENT_CHARACTERS].encode("utf-8", "backslashreplace").decode()
    content = masked(content, findings(content))
    reason = reason.encode("utf-8", "backslashreplace").decode()
    reason = masked(reason, findings(reason))  # it can quote a value
    if len(content) > CONTENT_CHARACTERS:
        content = content[:CONTENT_CHARACTERS] + " [...]"
    return Reject(file=file, line=line, reason=reason, content=content, rule=rule)


def alternatives(pattern: str) -> list[str]:
    """The glob patterns that one with {a,b} stands for."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        return [pattern]
    options = (pattern[: braces.start()] + option + pattern[braces.end() :] for option in braces[1].split(","))
    return [whole for option in options for whole in alternatives(option)]


def find_files(patterns: list[str], workspace: Path) -> list[Path]:
    """The files that the glob patterns name: in the patterns' order, sorted within each, none twice.

    Args:
        patterns: relative to `workspace`; {a,b} is a or b.
        workspace: the folder that no file may lie outside of, not by `..` and not by a link.

    Raises:
        SourceError: for a pattern that names no file, and for a file outside of the workspace.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        if CONTROL.search(pattern):
            raise SourceError(f"{pattern!r} holds control characters; correct `files` in params.yaml")
        check_inside(workspace / pattern, workspace)
        names = (glob.glob(option, root_dir=workspace, recursive=True) for option in alternatives(pattern))
        files = sorted({workspace / name for option in names for name in option})
        files = [path for path in files if path.is_file()]
        if not files:
            raise SourceError(f"no file matches {pattern!r} in {workspace.resolve()}; correct `files` in params.yaml")
        for path in files:
            if CONTROL.search(str(path)):
                raise SourceError(f"{str(path)!r}: the name holds control characters; rename it")
            check_inside(path, workspace)
        found.update(dict.fromkeys(files))
    return list(found)


def check_inside(path: Path, workspace: Path) -> None:
    """Raises SourceError for a path that leads out of the workspace, by `..`, by a link or from the root."""
    there, home = path.resolve(), workspace.resolve()
    if not there.is_relative_to(home):
        raise SourceError(
            f"{path} leads to {there}, outside of {home}: only files in the project's folder are read; copy it there"
        )


def roles_of(domain: Domain) -> dict[str, str]:
    """{role: column} for the roles that have one; the role `chat` is a conversation."""
    roles = {role: column for role, column in domain.columns.model_dump().items() if column is not None}
    return roles if domain.chat is None else {**roles, "chat": domain.chat.column}


def read_file(path: Path, roles: dict[str, str]) -> Iterator[RawRow | Reject]:
    """Yield the rows of one file in their order, holding a small part of it in memory.

    Args:
        roles: {role: column}, see `roles_of`.

    Raises:
        SourceError: unknown ending, unreadable file, not UTF-8, or a roles column that the file does not have.
    """
    readers: dict[str, Callable[[Path, dict[str, str]], Iterator[RawRow | Reject]]] = {
        ".jsonl": read_jsonl,
        ".csv": read_csv,
        ".parquet": read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise SourceError(f"{path}: got the ending {path.suffix!r}, expected one of {', '.join(readers)}")
    try:
        yield from reader(path, roles)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error}") from error


def read_jsonl(path: Path, roles: dict[str, str]) -> Iterator[RawRow | Reject]:
    """One JSON object per line; blank lines are passed over. A column may be missing in some rows, not in all."""
    seen: dict[str, None] = {}  # every column of the file, in order of appearance
    for number, line in _lines(path):
        if line is None:
            yield reject(str(path), number, f"a line of more than {LINE_BYTES} bytes", "")
            continue
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
        yield RawRow(str(path), number, _by_role(record, roles), text)
    if seen:
        _check_columns(path, roles, list(seen))


def read_csv(path: Path, roles: dict[str, str]) -> Iterator[RawRow | Reject]:
    """Comma-separated with a header and double quotes. An empty field is a missing value."""
    consumed: list[str] = []  # the physical lines of the record that is being read

    def recorded() -> Iterator[str]:
        for number, line in _lines(path):
            if line is None:
                raise SourceError(f"{path}:{number}: a line of more than {LINE_BYTES} bytes is no table's row")
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
            twice = sorted({name for name in header if header.count(name) > 1} & set(roles.values()))
            if twice:
                raise SourceError(f"{path}:{first_line}: column {twice[0]!r} stands twice in the header: {header}")
            _check_columns(path, roles, header)
            continue
        content = "".join(consumed).strip()
        if len(fields) != len(header):
            reason = f"got {len(fields)} fields, expected {len(header)} as in the header"
            yield reject(str(path), first_line, reason, content)
            continue
        record = {name: field for name, field in zip(header, fields, strict=True) if field}
        yield RawRow(str(path), first_line, _by_role(record, roles), content)


def read_parquet(path: Path, roles: dict[str, str]) -> Iterator[RawRow | Reject]:
    """Row by row; only the roles columns are read. A null is a missing value."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            _check_columns(path, roles, table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=1024, columns=sorted(set(roles.values()))):
                for record in batch.to_pylist():
                    number += 1
                    values = _by_role(record, roles)
                    yield RawRow(str(path), number, values, json.dumps(values, ensure_ascii=False, default=str))
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise SourceError(f"{path}: not readable as Parquet after row {number}: {error}") from error


def _lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """Numbered lines of a UTF-8 file (a byte-order mark is dropped), split at newlines alone; None for one too long.

    The encoding is the whole file's: rejecting just the lines that show it would quietly keep the plain-ASCII rest.
    """
    with path.open("rb") as lines:
        number = 0
        while line := lines.readline(LINE_BYTES):
            number += 1
            if len(line) == LINE_BYTES and not line.endswith(b"\n"):
                while (rest := lines.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield number, None
                continue
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise SourceError(
                    f"{path}:{number}: not UTF-8 (byte 0x{line[error.start]:02x} at {error.start + 1}); "
                    "save the whole file as UTF-8"
                ) from error


def _by_role(record: dict[str, Any], roles: dict[str, str]) -> dict[str, Any]:
    return {role: record[column] for role, column in roles.items() if record.get(column) is not None}


def _check_columns(path: Path, roles: dict[str, str], there: list[str]) -> None:
    missing = [f"{column!r} (for {role})" for role, column in roles.items() if column not in there]
    if missing:
        raise SourceError(
            f"{path}: no column {', '.join(missing)}; the columns there are {', '.join(map(repr, there))}; "
            "correct `columns` in params.yaml"
        )
