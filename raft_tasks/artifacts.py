"""Reading and writing artifacts: rows, atomic files and folders, digests.

Rows lie in a file of JSON lines (`x.jsonl`) or, where they are many, in a folder of Parquet shards (`x.parquet`): the
name's ending decides, and every function here takes either.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel

from raft_tasks.errors import InputError

T = TypeVar("T")
RowT = TypeVar("RowT", bound=BaseModel)

SHARD_ROWS = 50_000  # of a Parquet shard; what is held in memory while one is written


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
    """Write rows of one kind, a row at a time, atomically; equal rows give equal bytes."""
    if path.suffix == ".parquet":
        with atomic_folder(path) as folder:
            for number, shard in enumerate(batched(rows, SHARD_ROWS)):
                write_shard(folder / _shard_name(number), [row.model_dump_json() for row in shard], type(shard[0]))
        return
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            out.write(row.model_dump_json() + "\n")


@contextmanager
def row_writer(path: Path, kind: type[BaseModel]) -> Iterator[Callable[[str], Any]]:
    """Yield a function that writes one row of `kind`, given as JSON text. Not atomic: for use in an atomic folder."""
    if path.suffix != ".parquet":
        with path.open("w", encoding="utf-8", newline="\n") as out:
            yield lambda text: out.write(text + "\n")
        return
    path.mkdir()
    waiting: list[str] = []
    shards = count()

    def write(text: str) -> None:
        waiting.append(text)
        if len(waiting) == SHARD_ROWS:
            write_shard(path / _shard_name(next(shards)), waiting, kind)
            waiting.clear()

    yield write
    if waiting:
        write_shard(path / _shard_name(next(shards)), waiting, kind)


def batched(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """`rows` in lists of `size`, the last one shorter."""
    stream = iter(rows)
    while portion := list(islice(stream, size)):
        yield portion


def _shard_name(number: int) -> str:
    return f"part-{number:05}.parquet"


def write_shard(path: Path, rows: list[str], kind: type[BaseModel]) -> None:
    """Write one Parquet file, rows of `kind` given as JSON texts.

    Text, numbers, truth values and lists of texts become columns of their own type, other fields columns of JSON.
    """
    import pyarrow
    import pyarrow.parquet

    plain = _plain_columns(kind)
    values = [json.loads(row) for row in rows]
    defaults = {name: field.default for name, field in kind.model_fields.items()}  # of what rows leave out
    columns = {
        name: pyarrow.array(
            [
                value if name in plain else json.dumps(value, ensure_ascii=False)
                for value in (row.get(name, default) for row in values)
            ],
            type=plain.get(name, pyarrow.string()),
        )
        for name, default in defaults.items()
        if any(name in row for row in values)
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=5000, compression="zstd")


def _plain_columns(kind: type[BaseModel]) -> dict[str, Any]:
    """{field: Arrow type} of the fields of `kind` that a column can hold as they are."""
    import pyarrow

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    types[list[str]] = pyarrow.list_(pyarrow.string())
    columns = {}
    for name, field in kind.model_fields.items():
        annotation: Any = field.annotation
        if get_origin(annotation) is Literal:
            annotation = str
        options = [option for option in get_args(annotation) if option is not type(None)]
        if isinstance(annotation, UnionType) and len(options) == 1:
            annotation = options[0]
        if annotation in types:
            columns[name] = types[annotation]
    return columns


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
    if path.suffix == ".parquet":
        yield from _shard_rows(path, kind)
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield kind.model_validate_json(line)
            except ValueError as error:
                raise InputError(f"{path}:{number}: not a {kind.__name__} row: {error}") from error


def _shard_rows(folder: Path, kind: type[RowT]) -> Iterator[RowT]:
    import pyarrow.parquet

    plain = _plain_columns(kind)
    for path in sorted(folder.glob("*.parquet")):
        number = 0
        with pyarrow.parquet.ParquetFile(path) as shard:
            for batch in shard.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    try:
                        values = {name: value if name in plain else json.loads(value) for name, value in row.items()}
                        yield kind.model_validate(values)
                    except (ValueError, TypeError) as error:
                        raise InputError(f"{path}:{number}: not a {kind.__name__} row: {error}") from error


def count_rows(path: Path) -> int:
    """How many rows `write_rows` wrote; 0 where there is no file (`iter_rows` says what to do about it)."""
    if not path.exists():
        return 0
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return sum(pyarrow.parquet.read_metadata(shard).num_rows for shard in path.glob("*.parquet"))
    with path.open("rb") as lines:
        return sum(1 for _ in lines)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN is refused: it is not JSON."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `object_pairs_hook` of JSON from elsewhere: ValueError where a key stands twice."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return value


def read_yaml(path: Path) -> Any:
    """A YAML 1.2 file of plain values: `1e-5` is a number, `off` a text.

    Raises:
        InputError: it is not YAML, or says a key twice; with the line.
    """
    return parse_yaml(path.read_text(encoding="utf-8"), str(path))


def parse_yaml(text: str, name: str) -> Any:
    """As `read_yaml`; `name` is what messages call the text."""
    from ruamel.yaml import YAML, YAMLError

    try:
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        conflict = re.search(r"^<{7} ", text, re.MULTILINE)
        if conflict:
            line = text.count("\n", 0, conflict.start()) + 1
            raise InputError(f"{name}:{line}: a conflict of a git merge; keep one of its two versions") from error
        message = str(error).partition("To suppress")[0].replace('in "<unicode string>", ', "at ")
        raise InputError(f"{name} is not YAML: {' '.join(message.split())}") from error


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-like value, of rows, or of a mixture; equal content gives equal digests."""

    def plain(item: Any) -> Any:
        if isinstance(item, BaseModel):
            return item.model_dump(mode="json")
        raise TypeError(f"cannot digest a {type(item).__name__}: {item!r}; pass JSON-like values or rows")

    return hashlib.sha256(json.dumps(value, sort_keys=True, default=plain, allow_nan=False).encode()).hexdigest()


def digest_file(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def digest_path(path: Path, of_file: Callable[[Path], str] = digest_file) -> str:
    """SHA-256 (hex) of a file's bytes, or of a folder's file names and bytes.

    Raises:
        FileNotFoundError: `path` is neither.
    """
    if path.is_file():
        return of_file(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is neither a file nor a folder")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return digest({str(file.relative_to(path)): of_file(file) for file in files})
