"""lm-eval's task files, read without importing lm-eval, which takes seconds; and whether their data are there."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from raft_tasks.config import Benchmark
from raft_tasks.evaluation.overlay import TaskDataError, data_changes, home_folder, members


class TaskFile(NamedTuple):
    """A task as lm-eval's index has it."""

    cfg: dict[str, Any]  # the file's content, includes merged
    yaml_path: Path


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads !function tags as None; otherwise as lm-eval does, by PyYAML."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def missing_data(settings: Benchmark, folder: Path) -> list[str]:
    """One message per task of `settings.tasks` that is unknown, unpinned or without the files that it reads.

    Args:
        folder: of our own tasks; other names are looked up among lm-eval's.
    """
    messages = []
    for name in settings.tasks:
        files: dict[str, Any] = find_task_files(name, folder)  # as good as lm-eval's own entries
        if not files:
            messages.append(
                f"params.yaml: benchmark.tasks: got {name!r}, expected a task of {folder} or of lm-eval "
                "(`lm-eval ls tasks` lists them)"
            )
        for task, file in files.items():
            try:
                data_changes(task, file, settings.data, settings.few_shot.get(name))
            except TaskDataError as error:
                messages.append(str(error))
    return messages


def find_task_files(name: str, folder: Path) -> dict[str, TaskFile]:
    """{task: its file} of a task, group or tag; empty where there is none."""
    spec = find_spec("lm_eval")
    theirs = Path(next(iter(spec.submodule_search_locations or ()))) / "tasks" if spec else folder
    for root in (folder, home_folder(name, theirs), theirs):
        files = _search(name, root) if root else {}
        if files:
            return files
    return {}


def _search(name: str, folder: Path) -> dict[str, TaskFile]:
    tagged = {}
    word = re.compile(rf"\b{re.escape(name)}\b")
    for path in sorted(folder.rglob("*.yaml")):
        if not word.search(path.read_text(encoding="utf-8")):
            continue
        file = _load(path)
        listed, tags = file.get("task"), file.get("tag") or []
        if listed == name:
            return {name: TaskFile(file, path)}
        if file.get("group") == name:
            return {task: entry for member in members(listed) for task, entry in _search(member, folder).items()}
        if name in ([tags] if isinstance(tags, str) else tags) and isinstance(listed, str):
            tagged[listed] = TaskFile(file, path)
    return tagged


def _load(path: Path) -> dict[str, Any]:
    file = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    include = file.pop("include", None)
    return {**_load(path.parent / include), **file} if include else file
