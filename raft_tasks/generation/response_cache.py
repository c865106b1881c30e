"""The response cache: every model response is cached, keyed by model, prompt, settings and seed.

So a killed stage repeats just what was in flight, a grown data set pays for its new rows, and a changed prompt, judge
or model for what it changes. The cache is one SQLite file, which threads and processes of one machine share.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from tenacity import retry, retry_if_exception, stop_after_delay, wait_random

from raft_tasks.artifacts import batched
from raft_tasks.errors import InputError

VERSION = 1  # of the tables below
BUSY_SECONDS = 120.0  # how long a writer waits for the others
KEYS_AT_ONCE = 500
TABLES = """
CREATE TABLE calls (
    key TEXT PRIMARY KEY, role TEXT NOT NULL, model TEXT NOT NULL, made REAL NOT NULL, failed INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, tokens INTEGER NOT NULL, cost REAL NOT NULL, value TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE runs (
    run TEXT PRIMARY KEY, stage TEXT NOT NULL, started REAL NOT NULL, stopped INTEGER NOT NULL DEFAULT 0,
    calls INTEGER NOT NULL DEFAULT 0, cached INTEGER NOT NULL DEFAULT 0, errors INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0, prompt_tokens INTEGER NOT NULL DEFAULT 0, tokens INTEGER NOT NULL DEFAULT 0,
    cost REAL NOT NULL DEFAULT 0
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Tally:
    """What a run of a stage has done so far."""

    calls: int = 0  # prompts that a model answered, or finally did not
    cached: int = 0  # prompts whose response was in the cache
    errors: int = 0  # tries that failed
    failed: int = 0  # calls without a usable answer
    prompt_tokens: int = 0
    tokens: int = 0
    cost: float = 0.0  # in the money of the endpoints' prices


COUNTS = [field.name for field in fields(Tally)]


@dataclass(frozen=True)
class CachedCall:
    """One row of the cache."""

    key: str
    role: str
    model: str
    failed: bool
    prompt_tokens: int
    tokens: int
    cost: float
    value: str  # JSON


class ResponseCache:
    """The calls in the SQLite file `path`, created if missing.

    Raises:
        InputError: the file is damaged, of another version, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._explain_errors():
            self._connection = _connect(path)
        with self._transaction() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in TABLES.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version={VERSION}")
            elif version != VERSION:
                raise InputError(
                    f"response cache {path} has version {version}, expected {VERSION}: made by another version of "
                    "this project; move it away (its calls will be made again)"
                )

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def get(self, keys: Iterable[str]) -> dict[str, Any]:
        """The cached values of those `keys` that are there."""
        values: dict[str, Any] = {}
        for portion in batched(dict.fromkeys(keys), KEYS_AT_ONCE):
            marks = ",".join("?" * len(portion))
            rows = self._select(f"SELECT key, value FROM calls WHERE key IN ({marks})", portion)
            values |= {key: json.loads(value) for key, value in rows}
        return values

    def put(self, calls: Sequence[CachedCall], run: str, tally: Tally) -> tuple[Tally, bool]:
        """Cache `calls` and add `tally` to the run's, both or neither; returns that and whether the run was stopped."""
        added = ", ".join(f"{name} = {name} + ?" for name in COUNTS)
        with self._transaction() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO calls (made, key, role, model, failed, prompt_tokens, tokens, cost, value) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(time.time(), *astuple(call)) for call in calls],
            )
            row = connection.execute(
                f"UPDATE runs SET {added} WHERE run = ? RETURNING {', '.join(COUNTS)}, stopped", (*astuple(tally), run)
            ).fetchone()
        return Tally(*row[:-1]), bool(row[-1])

    def begin(self, run: str, stage: str) -> None:
        """Note that a run of a stage begins; without effect if it is noted already."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO runs (run, stage, started) VALUES (?, ?, ?)", (run, stage, time.time())
            )

    def stop(self, run: str) -> None:
        """Have all workers of a run begin no more calls."""
        with self._transaction() as connection:
            connection.execute("UPDATE runs SET stopped = 1 WHERE run = ?", (run,))

    def tally(self, run: str) -> Tally:
        return Tally(*self._select(f"SELECT {', '.join(COUNTS)} FROM runs WHERE run = ?", (run,))[0])

    def summary(self, by: str) -> list[tuple[Any, ...]]:
        """(group, calls, failed, tokens in, tokens out, cost, bytes) for each `by`: role, model or day."""
        group = {"role": "role", "model": "model", "day": "date(made, 'unixepoch')"}[by]
        return self._select(
            f"SELECT {group}, count(*), sum(failed), sum(prompt_tokens), sum(tokens), sum(cost), sum(length(value)) "
            "FROM calls GROUP BY 1 ORDER BY 1"
        )

    def last_runs(self, count: int) -> list[tuple[Any, ...]]:
        """(stage, when it started, its tally's numbers) of the latest runs, the last one first."""
        columns = ", ".join(["stage", "started", *COUNTS])
        return self._select(f"SELECT {columns} FROM runs ORDER BY started DESC LIMIT ?", (count,))

    def calls_by_stage(self) -> dict[str, int]:
        """How many calls all runs of each stage made, those pruned since included."""
        return dict(self._select("SELECT stage, sum(calls) FROM runs GROUP BY stage"))

    def prune(
        self,
        *,
        older_than: float | None = None,
        role: str | None = None,
        failed: bool = False,
        to_bytes: int | None = None,
    ) -> int:
        """Delete calls, and give their space back; returns how many.

        Args:
            older_than: just those made so many seconds ago.
            role: just this role's.
            failed: just those without a usable answer.
            to_bytes: just the oldest, until what stays in the cache takes this much.
        """
        conditions: dict[str, list[Any]] = {"1": []}
        if older_than is not None:
            conditions["made < ?"] = [time.time() - older_than]
        if role is not None:
            conditions["role = ?"] = [role]
        if failed:
            conditions["failed"] = []
        if to_bytes is not None:
            # Newest first, a running sum; what lies beyond the limit goes.
            sums = "SELECT key, sum(length(value)) OVER (ORDER BY made DESC, key) AS held FROM calls"
            conditions[f"key IN (SELECT key FROM ({sums}) WHERE held > ?)"] = [to_bytes]
        values = [value for some in conditions.values() for value in some]
        with self._transaction() as connection:
            deleted = connection.execute(f"DELETE FROM calls WHERE {' AND '.join(conditions)}", values).rowcount
        self._select("VACUUM")
        self._select("PRAGMA wal_checkpoint(TRUNCATE)")
        return deleted

    def older(self, seconds: float) -> int:
        """How many calls were made longer ago than that: what `prune(older_than=seconds)` would delete."""
        return int(self._select("SELECT count(*) FROM calls WHERE made < ?", [time.time() - seconds])[0][0])

    def size(self) -> int:
        """Bytes on disk."""
        files = [self.path, self.path.with_name(self.path.name + "-wal")]
        return sum(file.stat().st_size for file in files if file.exists())

    def _select(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock, self._explain_errors():
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._explain_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise InputError(
                f"response cache {self.path}: {error}; it must lie on a local disk that can be written, with space left"
            ) from error
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"response cache {self.path} is damaged ({error}); move it away and its calls will be made again, or "
                f"save what can be read: sqlite3 {self.path} .recover | sqlite3 saved.sqlite"
            ) from error


@retry(
    retry=retry_if_exception(lambda error: isinstance(error, sqlite3.OperationalError) and "locked" in str(error)),
    wait=wait_random(0.01, 0.1),
    stop=stop_after_delay(BUSY_SECONDS),
    reraise=True,
)
def _connect(path: Path) -> sqlite3.Connection:
    """A connection in WAL mode. To change the mode SQLite wants the file for itself, and does not wait until it is."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")  # a killed process loses nothing
    except BaseException:
        connection.close()
        raise
    return connection


@cache
def _open(path: Path) -> ResponseCache:
    return ResponseCache(path)


@cache
def open_session(path: Path, run: str, stage: str) -> ResponseCache:
    """The cache at `path`, one per process, with the run noted: a worker on another machine has a cache of its own."""
    store = _open(path)
    store.begin(run, stage)
    return store
