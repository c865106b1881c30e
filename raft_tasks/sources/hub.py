"""Rows of a Hugging Face data set: pinned to a commit, streamed or downloaded, filtered by metadata.

A local folder that `datasets` can load (Parquet, JSON lines, CSV, text) goes the same way, without a revision.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from raft_tasks.config import Hub
from raft_tasks.sources.files import RawRow, check_inside
from raft_tasks.sources.roles import Roles, SourceError

COMMIT = re.compile(r"[0-9a-f]{40}")
SCANNED = 5_000_000  # rows that are passed over before `where` is taken for wrong
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def read_hub(hub: Hub, roles: Roles, workspace: Path) -> Iterator[RawRow]:
    """The rows of a data set that have the values of `hub.where`, at most `hub.limit`; their number is their line.

    Args:
        workspace: a local data set lies within it.

    Raises:
        SourceError: not pinned, not reachable, no such data set, configuration, split or column.
    """
    name = place(hub)
    for number, record in records(hub, list(roles.columns), workspace):
        values = roles.take(record, f"{name}#{number}")
        yield RawRow(name, number, values, json.dumps(values, ensure_ascii=False, default=str))
    roles.check_inputs()


def place(hub: Hub) -> str:
    """How rows say where they come from."""
    return f"{hub.id}@{hub.revision[:12]}/{hub.split}" if hub.revision else f"{hub.id}/{hub.split}"


def records(hub: Hub, columns: list[str], workspace: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, record) of the rows that `hub.where` lets pass; `columns` and those of `where` must be there."""
    import datasets
    import pyarrow

    try:
        rows = _open(hub, workspace)
        if rows.column_names is not None:
            _check_columns(hub, columns, rows.column_names)
        yield from islice(_filtered(hub, columns, rows), hub.limit)
    except (OSError, ValueError, RuntimeError, pyarrow.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise SourceError(
            f"{place(hub)} cannot be read: {type(error).__name__}: {str(error)[:500]}; check id, config, data_files, "
            "split and revision, the network, and `hf auth login` where the data set is gated"
        ) from error


def _open(hub: Hub, workspace: Path) -> Any:
    import datasets

    local = (workspace / hub.id).exists()
    if local:
        check_inside(workspace / hub.id, workspace)
        if hub.revision is not None:
            raise SourceError(f"hub.revision: got {hub.revision!r} for the folder {hub.id}, expected null")
    elif not HUB_ID.fullmatch(hub.id):
        raise SourceError(f"hub.id: got {hub.id!r}, expected a data set's owner/name, or a folder in the project")
    elif not hub.revision or not COMMIT.fullmatch(hub.revision):
        raise SourceError(
            f"hub.revision: got {hub.revision!r}, expected the 40 hexadecimal digits of a commit of {hub.id}: a branch "
            "can move, and the rows below would be others"
        )
    builder = datasets.load_dataset_builder(
        str(workspace / hub.id) if local else hub.id,
        name=hub.config,
        data_files=hub.data_files,
        revision=hub.revision,
    )
    if hasattr(builder.config, "keep_default_na"):  # CSV through pandas, which would read "NA" as nothing and 007 as 7
        builder.config.keep_default_na, builder.config.dtype = False, "str"
    if hub.streaming:
        return builder.as_streaming_dataset(split=hub.split)
    builder.download_and_prepare()
    return builder.as_dataset(split=hub.split)


def _filtered(hub: Hub, columns: list[str], rows: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    passed = False
    for number, record in enumerate(rows, start=1):
        if number == 1:
            _check_columns(hub, columns, list(record))
        if all(record.get(column) in values for column, values in hub.where.items()):
            passed = True
            yield number, record
        elif number == SCANNED and not passed:
            raise SourceError(f"{place(hub)}: none of the first {SCANNED} rows has {hub.where}; correct `where`")


def _check_columns(hub: Hub, columns: list[str], there: list[str]) -> None:
    missing = sorted({*columns, *hub.where} - set(there))
    if missing:
        raise SourceError(f"{place(hub)}: no column {', '.join(map(repr, missing))}; the columns there are {there}")
