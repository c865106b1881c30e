"""lm-eval's tasks by name, reading data that are pinned.

Of every task whose data come from the hub a small overlay of the same name is written, which includes the task's own
file and names the data's place; metrics, prompts and few-shot examples stay lm-eval's. Of `ifeval` from a mirror:

    {"include": ".../lm_eval/tasks/ifeval/ifeval.yaml", "task": "ifeval", "tag": null, "dataset_path": "json",
     "dataset_name": null, "dataset_kwargs": {"data_files": {"train": ["data/benchmarks/ifeval/input_data.jsonl"]}}}

and from the hub: {..., "dataset_kwargs": {"revision": "966cd895..."}}. Files that a task of ours names lie beside its
YAML file, and its overlay has their absolute paths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from raft_tasks.config import BenchmarkData
from raft_tasks.errors import InputError
from raft_tasks.evaluation.task_files import data_changes, find_task_files, own_tasks, unknown_tasks

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

NO_SHOTS: Mapping[str, int] = {}


def task_manager(
    names: list[str],
    folders: list[Path],
    data: Mapping[str, BenchmarkData],
    work: Path,
    few_shot: Mapping[str, int] = NO_SHOTS,
) -> TaskManager:
    """lm-eval's manager of `names`, of all that they name, and of `folders`.

    It reads the smallest part of lm-eval's own tasks that holds them: reading all takes 7 to 25 s.

    Args:
        names: tasks, groups or tags, of `folders` or of lm-eval itself.
        data: by data set, as the tasks' files call it.
        work: a folder of the caller's; the overlays are written to `work`/overlay.
        few_shot: by name, where it differs from the task's own: a split that gives no example may be missing.

    Raises:
        InputError: an unknown task, one whose data nobody pins, a mirror without the files that it needs.
    """
    from lm_eval.tasks import TaskManager

    overlays, root = work / "overlay", own_tasks()
    overlays.mkdir()
    parts: set[Path] = set()
    found = {name: find_task_files(name, folders) for name in names}
    if unknown := [name for name, files in found.items() if not files]:
        raise InputError(unknown_tasks(unknown, folders[0]))
    for name, files in found.items():
        for task, file in files.items():
            if file.path.is_relative_to(root):
                parts.add(root / file.path.relative_to(root).parts[0])
            changes = data_changes(task, file, data, few_shot.get(name))
            if changes is not None or file.tag:  # of several folders lm-eval takes the last one's members of a tag
                text = {"include": str(file.path.resolve()), "task": task, "tag": file.tag, **(changes or {})}
                (overlays / f"{task}.yaml").write_text(json.dumps(text), encoding="utf-8")  # JSON is YAML
    manager = TaskManager(include_defaults=False, include_path=[*sorted(parts), *folders, overlays])
    for path in overlays.iterdir():  # lm-eval passes over a file that it cannot read, and would take the hub's newest
        if manager.task_index[path.stem].yaml_path != path:
            raise RuntimeError(f"lm-eval did not take the overlay {path}")
    return manager
