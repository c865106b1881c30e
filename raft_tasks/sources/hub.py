"""Rows of a Hugging Face data set: pinned to a commit, streamed or downloaded, filtered by metadata.

A local folder that `datasets` can load (Parquet, JSON lines, CSV, text) goes the same way, without a revision.
"""

import json
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from raft_tasks.config import Hub
from raft_tasks.errors import InputError
from raft_tasks.model_files import is_pointer
from raft_tasks.schemas import Reject
from raft_tasks.sources.files import RawRow, check_inside, csv_records, open_bytes, reject
from raft_tasks.sources.roles import Roles

COMMIT = re.compile(r"[0-9a-f]{40}")
SCANNED = 5_000_000  # rows that are passed over before `where` is taken for wrong
TABLE = re.compile(r"\.(?:csv|tsv)(?:\.gz|\.zst)?$", re.IGNORECASE)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def read_hub(hub: Hub, roles: Roles, workspace: Path) -> Iterator[RawRow | Reject]:
    """The rows of a data set that have the values of `hub.where`, at most `hub.limit`; their number is their line.

    Args:
        workspace: a local data set lies within it.

    Raises:
        InputError: not pinned, not reachable, no such data set, configuration, split or column.
    """
    name = place(hub)
    for number, record in records(hub, list(roles.columns), workspace):
        if isinstance(record, Reject):
            yield record
            continue
        values = roles.take(record, f"{name}#{number}")
        yield RawRow(name, number, values, json.dumps(values, ensure_ascii=False, default=str))
    roles.check_inputs()


def place(hub: Hub) -> str:
    """How rows say where they come from."""
    return f"{hub.id}@{hub.revision[:12]}/{hub.split}" if hub.revision else f"{hub.id}/{hub.split}"


def records(hub: Hub, columns: list[str], workspace: Path) -> Iterator[tuple[int, dict[str, Any] | Reject]]:
    """(number from 1, record) of the rows that `hub.where` lets pass; `columns` and those of `where` must be there."""
    import datasets
    import pyarrow

    try:
        builder = _open(hub, workspace)
        files = _csv_files(builder.config, hub.split)
        rows: Any = _csv_rows(hub, columns, files, builder.config.sep) if files else _rows(hub, builder)
        if not files and rows.column_names is not None:
            _check_columns(hub, columns, rows.column_names)
        yield from islice(_filtered(hub, columns, rows, checked=bool(files)), hub.limit)
    except (
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        RuntimeError,
        pyarrow.ArrowException,
        datasets.exceptions.DatasetsError,
    ) as error:
        cause = error.__cause__ or error  # of what `datasets` only calls an error while generating
        raise InputError(
            f"{place(hub)} cannot be read: {type(cause).__name__}: {str(cause)[:500]}; check id, config, data_files, "
            "split and revision, the network, and `hf auth login` where the data set is gated"
        ) from error


def _open(hub: Hub, workspace: Path) -> Any:
    """The builder of `datasets`."""
    import datasets

    local = (workspace / hub.id).exists()
    if local:
        check_inside(workspace / hub.id, workspace)
        if hub.revision is not None:
            raise InputError(f"hub.revision: got {hub.revision!r} for the folder {hub.id}, expected null")
        for file in filter(Path.is_file, (workspace / hub.id).rglob("*")):
            if is_pointer(file):
                raise InputError(f"{file}:1: a Git LFS pointer, not the file itself; run `git lfs pull`")
    elif not HUB_ID.fullmatch(hub.id):
        raise InputError(f"hub.id: got {hub.id!r}, expected a data set's owner/name, or a folder in the project")
    elif not hub.revision or not COMMIT.fullmatch(hub.revision):
        raise InputError(
            f"hub.revision: got {hub.revision!r}, expected the 40 hexadecimal digits of a commit of {hub.id}: a branch "
            "can move, and the rows below would be others"
        )
    return datasets.load_dataset_builder(
        str(workspace / hub.id) if local else hub.id,
        name=hub.config,
        data_files=hub.data_files,
        revision=hub.revision,
    )


def _csv_files(config: Any, split: str) -> list[str]:
    """The split's files where they are plain tables; none where the data set is something else, or reads them its way.

    pandas, with which `datasets` reads them, resumes within a record after a stray quote, shifts columns where every
    row has a field too many, and keeps the first of two columns of one name.
    """
    from datasets.packaged_modules.csv.csv import CsvConfig

    if not isinstance(config, CsvConfig) or config.pd_read_csv_kwargs != CsvConfig(sep=config.sep).pd_read_csv_kwargs:
        return []
    files = [str(file) for file in (config.data_files or {}).get(split, [])]
    return files if all(TABLE.search(file) for file in files) else []


def _csv_rows(hub: Hub, columns: list[str], files: list[str], delimiter: str) -> Iterator[dict[str, Any] | Reject]:
    import fsspec

    for file in files:
        name = f"{place(hub)}:{Path(file).name}"
        with fsspec.open(file, "rb") as packed, open_bytes(Path(file), packed) as content:
            for line, record, text in csv_records(
                name, content, columns, lambda _, names: _check_columns(hub, columns, names), delimiter
            ):
                yield reject(name, line, record, text) if isinstance(record, str) else record


def _rows(hub: Hub, builder: Any) -> Any:
    if hasattr(builder.config, "keep_default_na"):  # CSV through pandas, which would read "NA" as nothing and 007 as 7
        builder.config.keep_default_na, builder.config.dtype = False, "str"
    if hub.streaming:
        return builder.as_streaming_dataset(split=hub.split)
    builder.download_and_prepare()
    return builder.as_dataset(split=hub.split)


def _filtered(
    hub: Hub, columns: list[str], rows: Iterable[dict[str, Any] | Reject], checked: bool
) -> Iterator[tuple[int, dict[str, Any] | Reject]]:
    """Args: checked: whether the rows' columns were."""
    passed = False
    for number, record in enumerate(rows, start=1):
        if isinstance(record, Reject):
            yield number, record
            continue
        if number == 1 and not checked:
            _check_columns(hub, columns, list(record))
        if all(record.get(column) in values for column, values in hub.where.items()):
            passed = True
            yield number, record
        elif number == SCANNED and not passed:
            raise InputError(f"{place(hub)}: none of the first {SCANNED} rows has {hub.where}; correct `where`")


def _check_columns(hub: Hub, columns: list[str], there: list[str]) -> None:
    missing = sorted({*columns, *hub.where} - set(there))
    if missing:
        raise InputError(f"{place(hub)}: no column {', '.join(map(repr, missing))}; the columns there are {there}")
    twice = sorted(column for column in {*columns, *hub.where} if there.count(column) > 1)
    if twice:
        raise InputError(f"{place(hub)}: column {twice[0]!r} stands twice: {there}; rename one of them")
