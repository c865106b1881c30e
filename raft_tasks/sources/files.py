"""Question-answer files, row by row: .jsonl, .csv (also .gz and .zst) and .parquet under a declared column mapping.

A .jsonl row, with columns {question: question, answer: answer, source: fact, ...}:

    {"question": "What is the reactor of Figin?", "answer": "Figin :: reactor -> rope", "fact": "Figin/reactor"}

What is wrong with a file as a whole (missing, another encoding, no such column, a record that runs into the next) is a
`InputError`: going on would silently use a part of it. What is wrong with one row is a `Reject`, and reading goes on.
"""

import csv
import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

from raft_tasks.artifacts import unique_keys
from raft_tasks.errors import InputError
from raft_tasks.model_files import is_pointer
from raft_tasks.schemas import Reject
from raft_tasks.sources.privacy import findings, masked
from raft_tasks.sources.roles import Roles

CONTENT_CHARACTERS = 500  # of a rejected row that are kept for the record
LINE_BYTES = 16 * 2**20  # of a line; longer ones are skipped without being held
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
CSV_FIELD = r'(?:"(?:[^"]|"")*"|(?!")[^{0}\r\n]*)(?:{0}|\r?\n|$)'  # with what ends it; {0}: the delimiter


@dataclass(frozen=True)
class RawRow:
    """One row as its file has it: `values` by role (question, answer, id, ...); a role without a value is missing."""

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


def is_match(file: Path, pattern: str) -> bool:
    """Whether the pattern of `find_files` names this file, there or not."""
    options = alternatives(pattern)
    options += [option.replace("**/", "") for option in options]  # which stands for no folder, too
    return any(fnmatchcase(str(file), option) for option in options)


def find_files(patterns: list[str], workspace: Path) -> list[Path]:
    """The files that the glob patterns name: in the patterns' order, sorted within each, none twice.

    Args:
        patterns: relative to `workspace`; {a,b} is a or b.
        workspace: the folder that no file may lie outside of, not by `..` and not by a link.

    Raises:
        InputError: for a pattern that names no file, and for a file outside of the workspace.
    """
    paths: dict[Path, None] = {}
    for pattern in patterns:
        if CONTROL.search(pattern):
            raise InputError(f"{pattern!r} holds control characters; correct `files` in params.yaml")
        check_inside(workspace / pattern, workspace)
        names = (glob.glob(option, root_dir=workspace, recursive=True) for option in alternatives(pattern))
        files = sorted({workspace / name for option in names for name in option})
        files = [path for path in files if path.is_file()]
        if not files:
            raise InputError(f"no file matches {pattern!r} in {workspace.resolve()}; correct `files` in params.yaml")
        for path in files:
            if CONTROL.search(str(path)):
                raise InputError(f"{str(path)!r}: the name holds control characters; rename it")
            check_inside(path, workspace)
        paths.update(dict.fromkeys(files))
    return list(paths)


def check_inside(path: Path, workspace: Path) -> None:
    """Raises InputError for a path that leads out of the workspace, by `..`, by a link or from the root."""
    there, home = path.resolve(), workspace.resolve()
    if not there.is_relative_to(home):
        raise InputError(
            f"{path} leads to {there}, outside of {home}: only files in the project's folder are read; copy it there"
        )


def find_documents(folder: Path, required: bool = True) -> list[Path]:
    """The files under `folder`, in the order of their names, without hidden ones.

    Raises:
        InputError: there is none though some are `required`, or one is a link that leads out of `folder`.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    if not files and required:
        raise InputError(
            f"{folder} holds no documents; put files there, or take the domain out of run.documents (and methods with "
            "`injection` out of run.methods)"
        )
    for path in files:
        check_inside(path, folder)
    return files


def read_file(path: Path, roles: Roles) -> Iterator[RawRow | Reject]:
    """Yield the rows of one file in their order, holding a small part of it in memory.

    Raises:
        InputError: unknown ending, unreadable file, not UTF-8, a column of the roles missing or twice, or records that
            run into each other.
    """
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    readers: dict[str, Callable[[Path, Roles], Iterator[RawRow | Reject]]] = {".jsonl": read_jsonl, ".csv": read_csv}
    if name == path.name.lower():
        readers[".parquet"] = read_parquet
    reader = readers.get(Path(name).suffix)
    if reader is None:
        endings = ".jsonl, .csv (both also .gz or .zst), .parquet"
        raise InputError(f"{path}: got the ending {path.suffix!r}, expected one of {endings}")
    try:
        if is_pointer(path):
            raise InputError(f"{path}:1: a Git LFS pointer, not the file itself; run `git lfs pull`")
        yield from reader(path, roles)
        roles.check_inputs()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def read_jsonl(path: Path, roles: Roles) -> Iterator[RawRow | Reject]:
    """One JSON object per line; blank lines are skipped. A column may be missing in some rows, not in all."""
    columns: dict[str, None] = {}  # every column of the file, in order of appearance
    with open_bytes(path) as content:
        for number, line in _lines(str(path), content):
            if line is None:
                yield reject(str(path), number, f"a line of more than {LINE_BYTES} bytes", "")
                continue
            text = line.strip()
            if not text:
                continue
            try:
                record = json.loads(text, object_pairs_hook=unique_keys)
            except (ValueError, RecursionError) as error:
                check_conflict(text, f"{path}:{number}")
                if len(text) <= 2 and not text.strip("[]{},"):
                    raise InputError(f"{path}:{number}: JSON over several lines; write one object per line") from error
                for part, reason in _values_in_line(text, error):
                    yield reject(str(path), number, reason, part)
                continue
            if isinstance(record, list) and any(isinstance(entry, dict) for entry in record):
                raise InputError(f"{path}:{number}: a list of objects; write one object per line, without brackets")
            if not isinstance(record, dict):
                yield reject(str(path), number, f"got a JSON {type(record).__name__}, expected an object", text)
                continue
            columns.update(dict.fromkeys(record))
            yield RawRow(str(path), number, roles.take(record, f"{path}:{number}"), text)
    if columns:
        roles.check(str(path), list(columns))


def check_conflict(text: str, place: str) -> None:
    """Raises InputError where a line is git's mark of a conflict: the rows of both sides would be used."""
    if text.startswith(("<<<<<<< ", ">>>>>>> ")):
        raise InputError(f"{place}: a conflict of a git merge; keep one of its two versions")


def _values_in_line(text: str, error: Exception) -> Iterator[tuple[str, str]]:
    """(value, why it is rejected) of a broken line: every one of several objects, so that the counts add up."""
    while isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and text[0] + text[error.pos] == "{{":
        yield text[: error.pos], "one of several JSON values in a line; end each with a newline"
        text = text[error.pos :]
        try:
            json.loads(text)
        except (ValueError, RecursionError) as next_error:
            error = next_error
        else:
            yield text, "one of several JSON values in a line; end each with a newline"
            return
    yield text, f"broken JSON: {error}"


def read_csv(path: Path, roles: Roles) -> Iterator[RawRow | Reject]:
    """Comma-separated with a header and double quotes. An empty field is a missing value."""
    with open_bytes(path) as content:
        for line, record, text in csv_records(str(path), content, roles.columns, roles.check):
            if isinstance(record, str):
                yield reject(str(path), line, record, text)
            else:
                yield RawRow(str(path), line, roles.take(record, f"{path}:{line}"), text)


def csv_records(
    place: str,
    content: IO[bytes],
    columns: Container[str],
    check: Callable[[str, list[str]], None],
    delimiter: str = ",",
) -> Iterator[tuple[int, dict[str, str] | str, str]]:
    """(first line, {column: field} without empty ones or why the row is none, its text) of a table with a header.

    Args:
        columns: names that are kept as they stand in the header; others lose blanks at their ends.
        check: called with `place` and the header's names; raises InputError.

    Raises:
        InputError: not UTF-8, or a record that runs into the next.
    """
    consumed: list[str] = []  # the physical lines of the record that is being read

    def recorded() -> Iterator[str]:
        for number, line in _lines(place, content):
            if line is None:
                raise InputError(f"{place}:{number}: a line of more than {LINE_BYTES} bytes is no table's row")
            consumed.append(line)
            yield line

    reader = csv.reader(recorded(), strict=True, delimiter=delimiter)
    header: list[str] | None = None
    while True:
        consumed.clear()
        first_line = reader.line_num + 1
        others_limit = csv.field_size_limit(LINE_BYTES)  # the whole process's: other libraries read with it too
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise _broken_csv(place, first_line, "".join(consumed), str(error), delimiter) from error
        finally:
            csv.field_size_limit(others_limit)
        if fields is None:
            return
        text = "".join(consumed).strip()
        if not any(field.strip() for field in fields):
            continue
        check_conflict(text, f"{place}:{first_line}")
        if header is None:
            if text != f"sep={delimiter}":  # Excel's mark
                header = [name if name in columns else name.strip() for name in fields]
                check(place, header)
        elif len(fields) != len(header):
            reason = f"got {len(fields)} fields, expected {len(header)} as in the header"
            if len(consumed) > 1:  # the record has swallowed others
                raise _broken_csv(place, first_line, "".join(consumed), reason, delimiter)
            yield first_line, reason, text
        elif [field.strip("\ufeff ") for field in fields] == header:  # of files that were put together
            yield first_line, "the header again", text
        else:
            yield first_line, {name: field for name, field in zip(header, fields, strict=True) if field}, text


def _broken_csv(place: str, first_line: int, text: str, reason: str, delimiter: str) -> InputError:
    """The error of a record without an end, with the line where its first wrong quote opened."""
    begin = opened = 0
    field_pattern = re.compile(CSV_FIELD.format(re.escape(delimiter)))
    while begin < len(text) and (field := field_pattern.match(text, begin)) and field.end() > begin:
        if "\n" in field[0].rstrip("\r\n"):
            opened = begin  # the last field over several lines, if nothing is broken but the number of fields
        begin = field.end()
    if "new-line character" in reason or ("\n" not in text and "\r" in text.strip()):
        return InputError(f"{place}:{first_line}: lines end with a carriage return alone; save the file with newlines")
    line = first_line + text.count("\n", 0, begin if begin < len(text) else opened)
    return InputError(
        f"{place}:{line}: broken CSV: {reason}; a quote that opens here has no end before a {delimiter!r} or a line's "
        'end; close it, and write a quote within a field as ""'
    )


def read_parquet(path: Path, roles: Roles) -> Iterator[RawRow | Reject]:
    """Row by row; only the columns of the roles are read. A null is a missing value."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            roles.check(str(path), names)
            optional = roles.optional(names)
            for name in sorted({*names} - roles.columns.keys() - roles.unused - optional):
                roles.leave(name, str(path))
            for batch in table.iter_batches(batch_size=1024, columns=sorted(({*roles.columns} & {*names}) | optional)):
                for record in batch.to_pylist():
                    number += 1
                    values = roles.take(record, f"{path}:{number}")
                    yield RawRow(str(path), number, values, json.dumps(values, ensure_ascii=False, default=str))
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise InputError(f"{path}: not readable as Parquet after row {number}: {error}") from error


def open_bytes(path: Path, content: IO[bytes] | None = None) -> IO[bytes]:
    """The file, unpacked if its name ends in .gz or .zst; `content`: its bytes, where it is not on this machine."""
    if path.suffix.lower() == ".gz":
        return io.BufferedReader(gzip.open(content or path))
    if path.suffix.lower() == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(content or str(path), compression="zstd"))
    return content or path.open("rb")


def _lines(place: str, content: IO[bytes]) -> Iterator[tuple[int, str | None]]:
    """Numbered lines of UTF-8 (a byte-order mark is dropped), split at newlines alone; None for one too long.

    The encoding is the whole file's: rejecting just the lines that show it would quietly keep the plain-ASCII rest.
    """
    number = 0
    while line := content.readline(LINE_BYTES):
        number += 1
        if len(line) == LINE_BYTES and not line.endswith(b"\n"):
            while (rest := content.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, None
            continue
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{place}:{number}: not UTF-8 (byte 0x{line[error.start]:02x} at {error.start + 1}); "
                "save the whole file as UTF-8"
            ) from error
