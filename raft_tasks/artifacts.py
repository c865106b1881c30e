"""Reading and writing artifacts: rows as JSON lines, atomic files and folders, digests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from raft_tasks.errors import InputError

RowT = TypeVar("RowT", bound=BaseModel)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` on success, remove it on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; put it in `path`'s place on success, remove it on failure.

    What a kill leaves behind is removed by the next call: DVC lets just one process write an artifact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_rows(path: Path, rows: Iterable[BaseModel]) -> None:
    """Write one JSON object per line, UTF-8, atomically; equal rows give equal bytes."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            out.write(row.model_dump_json() + "\n")


def read_rows(path: Path, kind: type[RowT]) -> list[RowT]:
    """All rows of `iter_rows` at once."""
    return list(iter_rows(path, kind))


def iter_rows(path: Path, kind: type[RowT]) -> Iterator[RowT]:
    """Read what `write_rows` wrote, a row at a time.

    Raises:
        InputError: naming the file and line that is not a `kind`; or, if it is not there, how to get it.
    """
    if not path.exists():
        raise InputError(f"{path} is not there; run `dvc repro` (or `dvc pull`) to get it")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield kind.model_validate_json(line)
            except ValueError as error:
                raise InputError(f"{path}:{number}: not a {kind.__name__} row: {error}") from error


def count_rows(path: Path) -> int:
    """How many rows `write_rows` wrote; 0 where there is no file (`iter_rows` says what to do about it)."""
    if not path.exists():
        return 0
    with path.open("rb") as lines:
        return sum(1 for _ in lines)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN is refused: it is not JSON."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-like value, of rows, or of a mixture; equal content gives equal digests."""

    def plain(item: Any) -> Any:
        if isinstance(item, BaseModel):
            return item.model_dump(mode="json")
        raise TypeError(f"cannot digest a {type(item).__name__}: {item!r}; pass JSON-like values or rows")

    return hashlib.sha256(json.dumps(value, sort_keys=True, default=plain, allow_nan=False).encode()).hexdigest()


def digest_path(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, or of a folder's file names and bytes."""
    if path.is_file():
        with path.open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest()
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is neither a file nor a folder")
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return digest({str(p.relative_to(path)): digest_path(p) for p in files})
