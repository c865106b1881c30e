"""The one cache policy of row work: a call is remembered under everything that determines its value.

Prefect's own policies do not do: the default key holds the run id, a path is hashed as its string, and the task's
source does not see the functions that it calls. Here the key is the task's name, every argument by content, and the
source of the modules that do the work. Tasks take and return values, never paths.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from prefect import task
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext

from raft_tasks.artifacts import digest


class ContentPolicy(CachePolicy):
    """Key = digest(task name, arguments, source of `modules`); `ignore`d arguments change no result."""

    def __init__(self, modules: tuple[ModuleType, ...], ignore: tuple[str, ...]) -> None:
        self.sources = [inspect.getsource(module) for module in modules]
        self.ignore = ignore

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        arguments = {name: value for name, value in inputs.items() if name not in self.ignore}
        return digest([task_ctx.task.name, arguments, self.sources])


def cached_task(*modules: ModuleType, ignore: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """A Prefect task whose result is stored and reused under its content.

    Args:
        modules: whose source is part of the key: those that do the work.
        ignore: arguments that change no result (loaded models, batch sizes, loggers); name what determines
            them (path, revision, digest) in another argument.
    """
    return task(cache_policy=ContentPolicy(modules, ignore), persist_result=True, result_serializer="json")
