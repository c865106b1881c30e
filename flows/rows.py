"""How a row stage goes through its rows: chunk by chunk on the chosen runner, in order, with bounded memory."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from typing import Any, TypeVar

from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.futures import PrefectWrappedFuture

from flows import paths
from flows.stage import PROGRESS_SECONDS, Progress
from flows.task_cache import Work, cached_task, read_result
from raft_tasks.artifacts import batched, read_json
from raft_tasks.config import Budget, Config
from raft_tasks.errors import InputError
from raft_tasks.file_digests import FileDigests
from raft_tasks.generation.cached_backend import CallSession, ModelPool
from raft_tasks.generation.response_cache import Tally
from raft_tasks.models import identify

RowT = TypeVar("RowT")

REASONS_SHOWN = 3


class RowRun:
    """One run of a stage that goes through rows: the models that it asks, its calls and its progress.

    Args:
        label: DVC's name of the stage, such as rewrite@law.
        settings: the stage's section.
        models: names of the models.

    Raises:
        InputError: `raft resolve` has not run for a model, or before it changed.
    """

    def __init__(self, label: str, settings: Any, config: Config, models: Collection[str] = ()) -> None:
        self.label, self.settings, self.chunks = label, settings, config.resources.chunks
        missing = [str(path) for path in map(paths.model_identity, models) if not path.exists()]
        if missing:
            raise InputError(f"got no {', '.join(missing)}, the identity of a model; `raft resolve` writes it")
        identities = {name: read_json(paths.model_identity(name)) for name in models}
        with FileDigests(paths.FILE_DIGESTS, write=False) as digests:
            changed = [name for name in models if identify(name, config.models[name], digests) != identities[name]]
        if changed:
            raise InputError(f"the models {', '.join(changed)} are not what `raft resolve` wrote down; run it again")
        budget = getattr(settings, "budget", Budget())
        calls = CallSession(paths.RESPONSES.absolute(), uuid.uuid4().hex, label.partition("@")[0], budget)
        self.pool = ModelPool(calls, {name: config.models[name] for name in models}, identities)

    def call(self, work: Work, rows: list[Any]) -> Any:
        """`work(rows, settings, pool)`, unless its result is kept."""
        return read_result(work, cached_task(work, self.chunks.results)(rows, self.settings, self.pool))

    @contextmanager
    def map(
        self,
        work: Work,
        rows: Iterable[Any],
        total: int,
        unit: str = "rows",
        failure: Callable[[Any], str | None] | None = None,
    ) -> Iterator[Iterator[Any]]:
        """What `work(chunk, settings, pool)` returns for every `settings.chunk_rows` rows, in the rows' order.

        A chunk whose result is cached by Prefect is not computed again (flows/task_cache.py).

        Args:
            total: how many rows there are.
            failure: why a result is none; more of these than `settings.max_failed` allows end the run.
        """
        progress = ProgressReporter(self.label, total, self.pool.calls, unit)
        with closing(self._results(work, rows, progress)) as results:
            if failure is None:
                yield results
            else:
                yield enforce_failure_rate(self.label, results, total, self.settings.max_failed, failure)

    def _results(self, work: Work, rows: Iterable[Any], progress: ProgressReporter) -> Generator[Any, None, None]:
        """Two chunks per worker are under way at most. Where one fails, or the caller stops (and closes this), no more
        calls begin, those in flight end and are cached, and then the first error is raised.
        """
        waiting: deque[PrefectWrappedFuture[Any, Any]] = deque()
        portions = batched(rows, self.settings.chunk_rows)
        task = cached_task(work, self.chunks.results)
        done = 0
        try:
            while True:
                while len(waiting) < 2 * self.chunks.workers and (portion := next(portions, None)):
                    future: Any = task.submit(portion, self.settings, self.pool)
                    waiting.append(future)
                if not waiting:
                    break
                while not waiting[0].wrapped_future.done():
                    waiting[0].wait(PROGRESS_SECONDS)
                    progress.show(done)
                result = read_result(work, waiting.popleft().result())
                done += len(result)
                progress.show(done)
                yield from result
        except BaseException:
            self.pool.calls.cache.stop(self.pool.calls.run)
            for future in waiting:
                with suppress(Exception):  # the first error is the one to tell
                    future.wait()
            raise
        finally:
            progress.end()


def enforce_failure_rate(
    label: str, rows: Iterable[RowT], total: int, max_failed: float, failure: Callable[[RowT], str | None]
) -> Iterator[RowT]:
    """Pass `rows` on while at most the share `max_failed` of `total` has a failure.

    Raises:
        InputError: with the first reasons.
    """
    reasons: list[str] = []
    for row in rows:
        reason = failure(row)
        if reason is not None:
            reasons.append(reason)
            if len(reasons) / total > max_failed:
                shown = "".join(f"\n  {text}" for text in reasons[:REASONS_SHOWN])
                raise InputError(
                    f"{label}: the model gave no answer for {len(reasons)} of {total} rows, more than max_failed "
                    f"({max_failed:g}) allows; completed responses stay cached, so mend the cause and run again. "
                    f"First reasons:{shown}"
                )
        yield row


class ProgressReporter:
    """What a run of a row stage shows while it works: lines, and on the run's page a bar and at the end a table."""

    def __init__(self, label: str, total: int, calls: CallSession, unit: str) -> None:
        self.calls, self.total = calls, total
        self.progress = Progress(label, total, unit)
        self.shown = (0, "")
        self.key = label.replace("@", "-").replace("_", "-")
        self.artifact: Any = create_progress_artifact(0.0, key=self.key, description=label)

    def show(self, done: int) -> None:
        if not self.progress.due(done):
            return
        details = describe(self.calls.cache.tally(self.calls.run))
        if (done, details) != self.shown:
            self.shown = (done, details)
            self.progress(done, shown=details)
            update_progress_artifact(self.artifact, 100 * done / max(self.total, 1), description=details)

    def end(self) -> None:
        tally = self.calls.cache.tally(self.calls.run)
        create_table_artifact(key=f"{self.key}-calls", table=[asdict(tally)], description=f"Calls of {self.key}")


def describe(tally: Tally) -> str:
    """E.g. `120 calls, 8 from the cache, 20514 tokens, 3 errors, 0.0215 spent`; parts that are nothing are left out."""
    parts = [f"{tally.calls} calls", f"{tally.cached} from the cache", f"{tally.prompt_tokens + tally.tokens} tokens"]
    parts += [f"{tally.errors} errors", f"{tally.failed} failed", f"{tally.cost:.4f} spent"]
    return ", ".join(part for part in parts if float(part.split()[0]))
