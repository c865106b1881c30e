"""Rows and their keys on disk, so that a million of them need the memory of a few thousand.

Rows are appended, each a few lines of text, and read back in order or one at a time. Keys are appended beside them, and
`Keys.groups` finds the rows that share one, a part of the key space at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 16  # entries read at a time
PART = 1 << 18  # entries that are grouped at a time


class Spool:
    """Records of bytes in one file, numbered from 0."""

    def __init__(self, path: Path) -> None:
        self._data = path.open("w+b")
        self._ends = path.with_suffix(".ends").open("w+b")
        self._length = 0
        self.count = 0

    def append(self, records: list[bytes]) -> None:
        ends = self._length + np.cumsum([len(record) for record in records], dtype=np.int64)
        self._data.write(b"".join(records))
        self._ends.write(ends.tobytes())
        self._length = int(ends[-1]) if records else self._length
        self.count += len(records)

    def __getitem__(self, number: int) -> bytes:
        self._flush()
        before = os.pread(self._ends.fileno(), 16, 8 * (number - 1)) if number else bytes(8) + self._first_end()
        begin, end = np.frombuffer(before, dtype=np.int64).tolist()
        return os.pread(self._data.fileno(), end - begin, begin)

    def __iter__(self) -> Iterator[bytes]:
        """In order; other records may be looked up meanwhile."""
        self._flush()
        begin = 0
        with open(self._data.name, "rb") as data:
            for block in range(0, self.count, BLOCK):
                for end in np.frombuffer(os.pread(self._ends.fileno(), 8 * BLOCK, 8 * block), dtype=np.int64).tolist():
                    yield data.read(end - begin)
                    begin = end

    def _first_end(self) -> bytes:
        return os.pread(self._ends.fileno(), 8, 0)

    def _flush(self) -> None:
        self._data.flush()
        self._ends.flush()

    def close(self) -> None:
        self._data.close()
        self._ends.close()


class Keys:
    """A key of `width` 64-bit words per row, in one file."""

    def __init__(self, path: Path, width: int) -> None:
        self._file = path.open("w+b")
        self._type = np.dtype([("row", np.int64), ("key", np.uint64, (width,))])
        self.count = 0

    def append(self, rows: NDArray[np.int64], keys: NDArray[np.uint64]) -> None:
        """Args: rows [N] ascending; keys [N, width]."""
        entries = np.empty(len(rows), dtype=self._type)
        entries["row"], entries["key"] = rows, keys
        self._file.write(entries.tobytes())
        self.count += len(rows)

    def groups(self, alive: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
        """The ascending numbers of the `alive` rows that share a key, for every key that several have.

        The key space is cut into parts that fit into memory, and the file is read once per part.
        """
        parts = np.uint64(max(1, -(-self.count // PART)))
        for part in range(int(parts)):
            found = [np.empty(0, dtype=self._type)]
            for block in self._blocks():
                found.append(block[(block["key"][:, -1] % parts == part) & alive[block["row"]]])
            entries = np.concatenate(found)
            order = np.lexsort([entries["row"], *entries["key"].T])
            rows, keys = entries["row"][order], entries["key"][order]
            changes = np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1
            begins, ends = np.concatenate([[0], changes]), np.concatenate([changes, [len(rows)]])
            for index in np.flatnonzero(ends - begins > 1):
                yield rows[begins[index] : ends[index]]

    def _blocks(self) -> Iterator[NDArray[np.void]]:
        self._file.seek(0)
        while block := self._file.read(BLOCK * self._type.itemsize):
            yield np.frombuffer(block, dtype=self._type)

    def close(self) -> None:
        self._file.close()
