"""Tasks whose results Prefect keeps: a chunk of rows with the same inputs is worked on once, whichever run asks.

The key is the content of what determines the result: the rows, the settings, templates and models, and the code; never
a path or a run. A result is JSON with its own digest: one that is damaged, cut or another key's counts as absent, and
nothing in a storage that others can write to is ever unpickled or imported.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, get_type_hints

from prefect import Task
from prefect._internal.compatibility.blocks import call_explicitly_sync_block_method as call_block
from prefect._internal.result_records import ResultRecord, ResultRecordMetadata
from prefect.blocks.core import Block
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.filesystems import LocalFileSystem, WritableFileSystem
from prefect.serializers import JSONSerializer
from prefect.transactions import get_transaction
from pydantic import TypeAdapter

from flows import paths
from flows.resolve import model_contents, template_digests
from raft_tasks.artifacts import digest
from raft_tasks.code_digest import code_digest
from raft_tasks.config import resolved
from raft_tasks.generation.cached_backend import ModelPool
from raft_tasks.generation.encoding import shared_encoder

Work = Callable[[Any, Any, ModelPool], Any]  # (rows, settings, pool) -> rows; its annotations say of which kind

VERSION = 1  # of keys and files
WITHOUT_EFFECT = (
    "budget",
    "calibration",
    "chunk_rows",
    "max_failed",
    "max_false_approvals",
)  # on what becomes of the rows of a chunk
# As Prefect's "json", but without its hooks: those import and call what a result names.
PLAIN_JSON: JSONSerializer[Any] = JSONSerializer(object_encoder=None, object_decoder=None)


def cached_task(work: Work, block: str | None) -> Task[..., Any]:
    """The task that does `work` unless its result is kept; it returns JSON data, for `read_result`.

    Args:
        block: a saved Prefect storage block, TYPE/NAME; None for the folder .cache/tasks.
    """

    def run(rows: Any, settings: Any, pool: ModelPool) -> Any:
        watched = replace(pool, calls=replace(pool.calls, failures=[]))
        try:
            result = adapter(work).dump_python(work(rows, settings, watched), mode="json")
        except BaseException:
            if (context := TaskRunContext.get()) is not None:
                context.persist_result = False  # an error is no result
            raise
        if watched.calls.failures and (transaction := get_transaction()) is not None:
            transaction.write_on_commit = False  # an endpoint that was down is asked again
        return result

    task: Task[..., Any] = Task(
        run,
        name=work.__name__,
        cache_policy=ContentPolicy(work=work),
        persist_result=True,
        result_serializer=PLAIN_JSON,
        cache_result_in_memory=False,
    )
    storage: Any = Block.load(block) if block else LocalFileSystem(basepath=str(paths.TASKS.absolute()))
    task.result_storage = TaskResults(storage=storage)  # the task's constructor takes saved blocks alone
    return task


def read_result(work: Work, result: Any) -> Any:
    """What `work` returned, of what its task did."""
    return adapter(work).validate_python(result)


@cache
def adapter(work: Work) -> TypeAdapter[Any]:
    return TypeAdapter(get_type_hints(work)["return"])


@dataclass
class ContentPolicy(CachePolicy):
    """The key of a task of `cached_task`."""

    work: Work | None = None

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **_: Any
    ) -> str:
        assert self.work is not None
        return content_key(self.work, **inputs)


def content_key(work: Work, rows: Any, settings: Any, pool: ModelPool) -> str:
    """SHA-256 (hex) of all that determines `work(rows, settings, pool)`, but for the versions of libraries."""
    values = {name: value for name, value in resolved(settings).items() if name not in WITHOUT_EFFECT}
    encoder = shared_encoder(settings.encoder, settings.revision).identity if hasattr(settings, "encoder") else None
    code = [VERSION, work.__module__, work.__qualname__, code_digest(work.__module__)]
    models = model_contents(pool.identities)
    return digest([*code, list(rows), values, template_digests(settings), models, encoder])


class TaskResults(WritableFileSystem):
    """Keeps results in `storage` as data and their digest, in a form of its own; Prefect's metadata stay outside."""

    _block_type_name = "RAFT task results"
    storage: Any

    def _resolve_path(self, path: str) -> None:
        """Results are named by their keys alone."""

    def read_path(self, path: str, **_: Any) -> bytes:  # type: ignore[override]  # as Prefect calls it
        kept = json.loads(call_block(self.storage, "read_path", (path,), {}))
        if not isinstance(kept, Mapping) or kept.get("digest") != _seal(path, kept.get("result")):
            raise ValueError(f"{path} of the task results is damaged: its digest is not that of its content")
        metadata = ResultRecordMetadata(serializer=PLAIN_JSON, storage_key=path)
        return ResultRecord(metadata=metadata, result=kept["result"]).serialize()

    def write_path(self, path: str, content: bytes, **_: Any) -> None:  # type: ignore[override]
        result = json.loads(json.loads(content)["result"])
        data = json.dumps({"digest": _seal(path, result), "result": result}, ensure_ascii=False, allow_nan=False)
        call_block(self.storage, "write_path", (path,), {"content": data.encode()})


def _seal(key: str, result: Any) -> str:
    return digest([VERSION, key, result])
