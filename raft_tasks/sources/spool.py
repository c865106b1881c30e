"""Rows and their keys on disk, in SQLite, so that a million of them need the memory of a few thousand."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Spool:
    """Records of bytes, numbered from 0, with the shingles and the keys of those that are compared.

    Args:
        path: of the database file; nothing outlives a crash, so nothing is journalled.
        keys: names of the keys that every compared row has.
    """

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        path.unlink(missing_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None)
        self._keys = keys
        self._database.executescript(f"""
            PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;
            PRAGMA cache_size = -65536;
            CREATE TABLE records (row INTEGER PRIMARY KEY, record BLOB);
            CREATE TABLE shingles (row INTEGER PRIMARY KEY, hashes BLOB);
            CREATE TABLE keys (row INTEGER PRIMARY KEY, {", ".join(keys)});
            BEGIN;
        """)
        self.count = 0

    def append(self, records: Sequence[bytes]) -> None:
        self._database.executemany("INSERT INTO records VALUES (?, ?)", enumerate(records, start=self.count))
        self.count += len(records)

    def append_shingles(self, rows: Iterable[tuple[int, bytes]]) -> None:
        self._database.executemany("INSERT INTO shingles VALUES (?, ?)", rows)

    def append_keys(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Args: (row, a key for each of the names), of bytes or numbers."""
        self._database.executemany(f"INSERT INTO keys VALUES (?{', ?' * len(self._keys)})", rows)

    def __getitem__(self, row: int) -> bytes:
        return self._database.execute("SELECT record FROM records WHERE row = ?", (row,)).fetchone()[0]

    def shingles(self, row: int) -> NDArray[np.uint64]:
        """The distinct ones, ascending."""
        [hashes] = self._database.execute("SELECT hashes FROM shingles WHERE row = ?", (row,)).fetchone()
        return np.unique(np.frombuffer(hashes, dtype=np.uint64))

    def __iter__(self) -> Iterator[bytes]:
        """In order; other records may be looked up meanwhile."""
        return (record for (record,) in self._database.execute("SELECT record FROM records ORDER BY row"))

    def groups(self, key: str, alive: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
        """The ascending numbers of the `alive` rows that share a key, for every key that several have."""
        query = f"SELECT group_concat(row) FROM keys GROUP BY {key} HAVING count(*) > 1"
        for (numbers,) in self._database.execute(query):
            rows = np.sort(np.array(numbers.split(","), dtype=np.int64))
            rows = rows[alive[rows]]
            if len(rows) > 1:
                yield rows

    def close(self) -> None:
        self._database.close()
