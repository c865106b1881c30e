"""The call store: what a model answered once is never asked, or paid for, again.

A call is kept under the digest of all that determined it: the model's identity, the prompt as rendered, the sampling
settings and the seed. So a killed stage repeats just what was in flight, a grown data set pays for its new rows, and
a changed prompt, judge or model for what it changes. The store is one SQLite file, which threads and processes of one
machine share.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from tenacity import retry, retry_if_exception, stop_after_delay, wait_random

from raft_tasks.artifacts import digest
from raft_tasks.errors import InputError
from raft_tasks.generation.backend import (
    Completion,
    Failure,
    StreamingBackend,
    build_backend,
)
from raft_tasks.generation.encoding import SentenceEncoder, shared_encoder
from raft_tasks.generation.endpoint_backend import EndpointBackend
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.params import Budget, Endpoint, Model

VERSION = 1  # of the tables below
BUSY_SECONDS = 120.0  # how long a writer waits for the others
KEYS_AT_ONCE = 500
REMEMBERED_FAILURES = ("empty", "refused", "filtered")  # a model's answer, not an accident
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


class CallStoreError(InputError):
    """The store's file cannot be used: what is wrong with it and what to do."""


class BudgetUsedUp(InputError):
    """A stage has spent what params.yaml allows; everything that it paid for is kept."""


@dataclass(frozen=True)
class Tally:
    """What a run of a stage has done so far."""

    calls: int = 0  # prompts that a model answered, or finally did not
    cached: int = 0  # prompts whose answer was in the store
    errors: int = 0  # tries that failed
    failed: int = 0  # calls without a usable answer
    prompt_tokens: int = 0
    tokens: int = 0
    cost: float = 0.0  # in the money of the endpoints' prices


COUNTS = [field.name for field in fields(Tally)]


@dataclass(frozen=True)
class Call:
    """One row of the store."""

    key: str
    role: str
    model: str
    failed: bool
    prompt_tokens: int
    tokens: int
    cost: float
    value: str  # JSON


class CallStore:
    """The calls in the SQLite file `path`, made where there is none.

    Raises:
        CallStoreError: the file is damaged, of another version, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._explained():
            self._connection = _opened(path)
        with self._writing() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in TABLES.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version={VERSION}")
            elif version != VERSION:
                raise CallStoreError(
                    f"call store {path} has version {version}, expected {VERSION}: made by another version of this "
                    "project; move it away (its calls will be made again)"
                )

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def get(self, keys: Iterable[str]) -> dict[str, Any]:
        """The remembered values of those `keys` that are there."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, Any] = {}
        with self._lock, self._explained():
            for start in range(0, len(wanted), KEYS_AT_ONCE):
                some = wanted[start : start + KEYS_AT_ONCE]
                marks = ",".join("?" * len(some))
                rows = self._connection.execute(f"SELECT key, value FROM calls WHERE key IN ({marks})", some)
                found |= {key: json.loads(value) for key, value in rows}
        return found

    def put(self, calls: Sequence[Call], run: str, tally: Tally) -> tuple[Tally, bool]:
        """Keep `calls` and add `tally` to the run's, both or neither; returns that and whether it stopped."""
        added = ", ".join(f"{name} = {name} + ?" for name in COUNTS)
        with self._writing() as connection:
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
        with self._writing() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO runs (run, stage, started) VALUES (?, ?, ?)", (run, stage, time.time())
            )

    def stop(self, run: str) -> None:
        """Have all workers of a run begin no more calls."""
        with self._writing() as connection:
            connection.execute("UPDATE runs SET stopped = 1 WHERE run = ?", (run,))

    def tally(self, run: str) -> Tally:
        with self._lock, self._explained():
            row = self._connection.execute(f"SELECT {', '.join(COUNTS)} FROM runs WHERE run = ?", (run,)).fetchone()
        return Tally(*row)

    def summary(self, by: str) -> list[tuple[Any, ...]]:
        """(group, calls, failed, tokens in, tokens out, cost, bytes) for each `by`: role, model or day."""
        group = {"role": "role", "model": "model", "day": "date(made, 'unixepoch')"}[by]
        with self._lock, self._explained():
            return self._connection.execute(
                f"SELECT {group}, count(*), sum(failed), sum(prompt_tokens), sum(tokens), sum(cost), "
                f"sum(length(value)) FROM calls GROUP BY 1 ORDER BY 1"
            ).fetchall()

    def last_runs(self, count: int) -> list[tuple[Any, ...]]:
        """(stage, when it started, its tally's numbers) of the latest runs, the last one first."""
        with self._lock, self._explained():
            return self._connection.execute(
                f"SELECT stage, started, {', '.join(COUNTS)} FROM runs ORDER BY started DESC LIMIT ?", (count,)
            ).fetchall()

    def calls_by_stage(self) -> dict[str, int]:
        """How many calls all runs of each stage made, those forgotten since included."""
        with self._lock, self._explained():
            return dict(self._connection.execute("SELECT stage, sum(calls) FROM runs GROUP BY stage"))

    def prune(
        self,
        *,
        older_than: float | None = None,
        role: str | None = None,
        failed: bool = False,
        to_bytes: int | None = None,
    ) -> int:
        """Forget calls, and give their space back; returns how many.

        Args:
            older_than: just those made so many seconds ago.
            role: just this role's.
            failed: just those without a usable answer.
            to_bytes: just the oldest, until what stays in the store holds this much.
        """
        conditions: list[str] = ["1"]
        values: list[Any] = []
        if older_than is not None:
            conditions.append("made < ?")
            values.append(time.time() - older_than)
        if role is not None:
            conditions.append("role = ?")
            values.append(role)
        if failed:
            conditions.append("failed")
        chosen = " AND ".join(conditions)
        with self._writing() as connection:
            if to_bytes is not None:
                # Newest first, a running sum; what lies beyond the limit goes.
                kept = "SELECT key, sum(length(value)) OVER (ORDER BY made DESC, key) AS held FROM calls"
                chosen += f" AND key IN (SELECT key FROM ({kept}) WHERE held > ?)"
                values.append(to_bytes)
            gone = connection.execute(f"DELETE FROM calls WHERE {chosen}", values).rowcount
        with self._lock, self._explained():
            self._connection.execute("VACUUM")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return gone

    def older(self, seconds: float) -> int:
        """How many calls were made longer ago than that: what `prune(older_than=seconds)` would forget."""
        with self._lock, self._explained():
            found = self._connection.execute("SELECT count(*) FROM calls WHERE made < ?", [time.time() - seconds])
            return int(found.fetchone()[0])

    def size(self) -> int:
        """Bytes on disk."""
        beside = [self.path, self.path.with_name(self.path.name + "-wal")]
        return sum(file.stat().st_size for file in beside if file.exists())

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise CallStoreError(
                f"call store {self.path}: {error}; it must lie on a local disk that can be written, with space left"
            ) from error
        except sqlite3.DatabaseError as error:
            raise CallStoreError(
                f"call store {self.path} is damaged ({error}); move it away and its calls will be made again, or "
                f"save what can be read: sqlite3 {self.path} .recover | sqlite3 saved.sqlite"
            ) from error


def _is_locked(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


@retry(
    retry=retry_if_exception(_is_locked), wait=wait_random(0.01, 0.1), stop=stop_after_delay(BUSY_SECONDS), reraise=True
)
def _opened(path: Path) -> sqlite3.Connection:
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
def _store(path: Path) -> CallStore:
    return CallStore(path)


@cache
def _begun(path: Path, run: str, stage: str) -> CallStore:
    """The store, in which the run is noted: a worker on another machine has a store of its own."""
    store = _store(path)
    store.begin(run, stage)
    return store


@dataclass(frozen=True)
class Calls:
    """What one run of a stage makes its calls through. It can be sent to other processes, which share its tally.

    Args:
        path: the store's file.
        run: a name that no other run has.
        stage: the section of params.yaml that `budget` stands in.
    """

    path: Path
    run: str
    stage: str
    budget: Budget

    @property
    def store(self) -> CallStore:
        return _begun(self.path, self.run, self.stage)

    def backend(self, role: str, model: Model | Endpoint, identity: dict[str, Any]) -> RememberedBackend:
        """The backend of `role`, which asks the store before it asks the model."""
        prices = _prices(model) if isinstance(model, Endpoint) else (0.0, 0.0)
        return RememberedBackend(_shared_backend(model, identity), self, role, prices)

    def local_backend(self, role: str, model: Model, identity: dict[str, Any]) -> RememberedLocalBackend:
        """As `backend`, of a local model, which can say likelihoods too."""
        backend = _shared_backend(model, identity)
        assert isinstance(backend, TransformersBackend)
        return RememberedLocalBackend(backend, self, role, (0.0, 0.0))

    def endpoint(self, role: str, model: Endpoint, identity: dict[str, Any]) -> RememberedEndpoint:
        """As `backend`, of an endpoint, which can go on with raw text too."""
        backend = _shared_backend(model, identity)
        assert isinstance(backend, EndpointBackend)
        return RememberedEndpoint(backend, self, role, _prices(model))

    def encoder(self, role: str, name: str, revision: str | None) -> RememberedEncoder:
        """The sentence encoder `name`, which asks the store before it encodes."""
        return RememberedEncoder(shared_encoder(name, revision), self, role)

    def numbers(
        self, role: str, identity: Any, items: Sequence[Any], compute: Callable[[list[int]], Sequence[float]]
    ) -> list[float]:
        """One number for each of `items` (JSON-like), from the store where it is there; new ones are kept at once.

        Args:
            identity: all that determines the numbers beside the item, JSON-like.
            compute: given the positions of the items to compute, returns their numbers.
        """
        keys = [digest([identity, item]) for item in items]
        known = self.store.get(keys)
        missing = _first_of(keys, known)
        if missing:
            found = dict(zip((keys[i] for i in missing), compute(missing), strict=True))
            name = _name(identity)
            rows = [Call(key, role, name, False, 0, 0, 0.0, json.dumps(value)) for key, value in found.items()]
            self.store.put(rows, self.run, Tally())
            known |= found
        return [known[key] for key in keys]

    def over(self, tally: Tally) -> bool:
        """Whether the budget is used up."""
        tokens, money = self.budget.tokens, self.budget.money
        spent = tally.prompt_tokens + tally.tokens
        return (tokens is not None and spent >= tokens) or (money is not None and tally.cost >= money)


_backends: dict[str, StreamingBackend] = {}
_building = threading.Lock()


def _shared_backend(model: Model | Endpoint, identity: dict[str, Any]) -> StreamingBackend:
    """One per process: weights are loaded once, and an endpoint's concurrency holds for all that use it."""
    key = digest([model, identity])
    with _building:
        if key not in _backends:
            _backends[key] = build_backend(model, identity)
        return _backends[key]


class RememberedBackend:
    """A backend behind the store: equal calls are made once, and every answer is kept as soon as it comes."""

    def __init__(self, backend: StreamingBackend, calls: Calls, role: str, prices: tuple[float, float]) -> None:
        self.backend, self.calls, self.role = backend, calls, role
        self.prices = prices  # of a million tokens in, out
        self.identity = backend.identity

    def generate(
        self,
        prompts: Sequence[str],
        *,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        batch_size: int,
        seeds: Sequence[int],
    ) -> list[Completion]:
        """As `Backend.generate` says.

        Raises:
            BudgetUsedUp: before all prompts had their answer; those that had are kept.
        """
        settings = (temperature, top_p, max_new_tokens, batch_size)
        return self._drawn(self.backend.stream, [], prompts, settings, seeds)

    def _drawn(
        self,
        stream: Callable[..., Iterator[list[tuple[int, Completion]]]],
        way: list[str],
        prompts: Sequence[str],
        settings: tuple[float, float, int, int],
        seeds: Sequence[int],
    ) -> list[Completion]:
        """What the backend's `stream` yields, as far as the store has no answer; `way` sets other ways to ask apart."""
        temperature, top_p, max_new_tokens, batch_size = settings
        sampling = [temperature, top_p if temperature else None, max_new_tokens]
        keys = [
            digest([self.identity, *way, prompt, sampling, seed if temperature else None])
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        known = {key: _read(value) for key, value in self.calls.store.get(keys).items()}
        missing = _first_of(keys, known)
        tally, stopped = self.calls.store.put([], self.calls.run, Tally(cached=len(keys) - len(missing)))

        def go_on() -> bool:
            return not stopped and not self.calls.over(tally)

        if missing:  # else nothing is loaded either
            portions = stream(
                [prompts[i] for i in missing],
                temperature=temperature,
                top_p=top_p,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                seeds=[seeds[i] for i in missing],
                go_on=go_on,
            )
            for portion in portions:
                answers = {keys[missing[i]]: completion for i, completion in portion}
                tally, stopped = self._keep(answers)
                known |= answers
        if any(key not in known for key in keys):
            raise BudgetUsedUp(self._spent(tally))
        return [known[key] for key in keys]

    def _keep(self, answers: dict[str, Completion]) -> tuple[Tally, bool]:
        rows, counts = [], []
        for key, answer in answers.items():
            cost = (answer.prompt_tokens * self.prices[0] + answer.tokens * self.prices[1]) / 1e6
            failure = answer.failure
            if failure is None or failure.kind in REMEMBERED_FAILURES:
                tokens = (answer.prompt_tokens, answer.tokens)
                name, value = _name(self.identity), json.dumps(asdict(answer), ensure_ascii=False)
                rows.append(Call(key, self.role, name, failure is not None, *tokens, cost, value))
            errors = answer.tries - 1 + (failure is not None and failure.kind == "unreachable")
            counts.append(Tally(1, 0, errors, failure is not None, answer.prompt_tokens, answer.tokens, cost))
        total = Tally(*(sum(column) for column in zip(*map(astuple, counts), strict=True)))
        return self.calls.store.put(rows, self.calls.run, total)

    def _spent(self, tally: Tally) -> str:
        stage, budget = self.calls.stage, self.calls.budget
        if not self.calls.over(tally):
            return f"{stage} was stopped; everything that it paid for is kept"
        return (
            f"{stage}.budget (tokens: {budget.tokens}, money: {budget.money}) is used up after {tally.calls} calls: "
            f"{tally.prompt_tokens + tally.tokens} tokens, {tally.cost:.4f} in money; every answer is kept. To go on, "
            "raise the budget, or run the same command again to spend as much again"
        )


class RememberedEndpoint(RememberedBackend):
    """... of an endpoint, which goes on with raw text, too."""

    backend: EndpointBackend

    def continue_texts(
        self,
        prompts: Sequence[str],
        *,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        batch_size: int,
        seeds: Sequence[int],
    ) -> list[Completion]:
        """As `generate`, by `EndpointBackend.stream_raw`."""
        settings = (temperature, top_p, max_new_tokens, batch_size)
        return self._drawn(self.backend.stream_raw, ["raw"], prompts, settings, seeds)


class RememberedLocalBackend(RememberedBackend):
    """... of a local model, which says how likely it finds a text, too."""

    backend: TransformersBackend

    @property
    def settings(self) -> Model:
        return self.backend.settings

    @property
    def tokenizer(self) -> Any:
        return self.backend.tokenizer

    def continue_tokens(
        self,
        prefixes: Sequence[Sequence[int]],
        *,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        batch_size: int,
        seeds: Sequence[int],
        ends: Collection[int] = (),
        stops: Collection[int] = (),
    ) -> list[Completion]:
        """As `TransformersBackend.continue_tokens` says."""
        settings = [temperature, top_p, max_new_tokens, sorted(ends), sorted(stops)]
        keys = [
            digest([self.identity, "continue", list(prefix), settings, seed])
            for prefix, seed in zip(prefixes, seeds, strict=True)
        ]
        known = {key: _read(value) for key, value in self.calls.store.get(keys).items()}
        missing = _first_of(keys, known)
        self.calls.store.put([], self.calls.run, Tally(cached=len(keys) - len(missing)))
        if missing:
            drawn = self.backend.continue_tokens(
                [prefixes[i] for i in missing],
                temperature=temperature,
                top_p=top_p,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                seeds=[seeds[i] for i in missing],
                ends=ends,
                stops=stops,
            )
            answers = dict(zip((keys[i] for i in missing), drawn, strict=True))
            self._keep(answers)
            known |= answers
        return [known[key] for key in keys]

    def mean_log_likelihood(self, prompts: Sequence[str], answers: Sequence[str], batch_size: int) -> list[float]:
        def compute(missing: list[int]) -> list[float]:
            own = [prompts[i] for i in missing], [answers[i] for i in missing]
            return self.backend.mean_log_likelihood(*own, batch_size)

        pairs = list(zip(prompts, answers, strict=True))
        return self.calls.numbers(self.role, {**self.identity, "of": "likelihood"}, pairs, compute)


class RememberedEncoder:
    """A sentence encoder behind the store."""

    def __init__(self, encoder: SentenceEncoder, calls: Calls, role: str) -> None:
        self.encoder, self.calls, self.role = encoder, calls, role

    def similarities(self, pairs: Sequence[tuple[str, str]], batch_size: int) -> list[float]:
        def compute(missing: list[int]) -> list[float]:
            return self.encoder.similarities([pairs[i] for i in missing], batch_size)

        return self.calls.numbers(self.role, self.encoder.identity, pairs, compute)


def _prices(model: Endpoint) -> tuple[float, float]:
    return model.price_per_million_input, model.price_per_million_output


def _name(identity: dict[str, Any]) -> str:
    """What people know a model by."""
    return next(str(identity[key]) for key in ("model", "path", "encoder") if key in identity)


def _first_of(keys: list[str], known: Container[str]) -> list[int]:
    """Where each unknown key stands first."""
    first: dict[str, int] = {}
    for i, key in enumerate(keys):
        if key not in known:
            first.setdefault(key, i)
    return list(first.values())


def _read(value: dict[str, Any]) -> Completion:
    failure = value.pop("failure")
    return Completion(**value, failure=Failure(**failure) if failure else None)
