"""lm-eval's tasks by name, reading data that are pinned.

Of every task whose data come from the hub a small overlay of the same name is written, which includes the task's own
file and says where the data lie; metrics, prompts and few-shot examples stay lm-eval's. Of `ifeval` from a mirror:

    {"include": ".../lm_eval/tasks/ifeval/ifeval.yaml", "task": "ifeval", "tag": null, "dataset_path": "json",
     "dataset_name": null, "dataset_kwargs": {"data_files": {"train": ["data/benchmarks/ifeval/input_data.jsonl"]}}}

and from the hub: {..., "dataset_kwargs": {"revision": "966cd895..."}}.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft_tasks.config import BenchmarkData
from raft_tasks.errors import InputError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Entry

LOCAL = frozenset({"json", "csv", "parquet", "text", "arrow"})  # readers of files that a task names itself
READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")  # of a task's file


class TaskDataError(InputError):
    """A benchmark task, or its data, is not there."""


def task_manager(names: list[str], folders: list[Path], data: Mapping[str, BenchmarkData], work: Path) -> TaskManager:
    """lm-eval's manager of `names`, of all that they name, and of `folders`.

    Args:
        names: tasks, groups or tags, of `folders` or of lm-eval itself.
        data: by data set, as the tasks' files call it.
        work: a folder of the caller's; the overlays are written to `work`/overlay.

    Raises:
        TaskDataError: an unknown task, one whose data nobody pins, a mirror without the files that it needs.
    """
    from lm_eval.tasks import TaskManager

    known = _index(names, folders)
    overlays = work / "overlay"
    overlays.mkdir()
    for task in dict.fromkeys(_tasks(names, known.task_index)):
        changes = _changes(task, known.task_index[task].cfg or {}, data)
        if changes is not None:
            own = Path(str(known.task_index[task].yaml_path)).resolve()
            text = {"include": str(own), "task": task, "tag": None, **changes}
            (overlays / f"{task}.yaml").write_text(json.dumps(text), encoding="utf-8")  # JSON is YAML
    paths = [known.include_path] if isinstance(known.include_path, str | Path) else list(known.include_path or ())
    manager = TaskManager(include_defaults=False, include_path=[*paths, overlays])
    for path in overlays.iterdir():  # lm-eval passes over a file that it cannot read, and would take the hub's newest
        if manager.task_index[path.stem].yaml_path != path:
            raise RuntimeError(f"lm-eval did not take the overlay {path}")
    return manager


def _index(names: list[str], folders: list[Path]) -> TaskManager:
    """The smallest part of lm-eval's own tasks that holds `names` and what they name: all of it is read in 7 to 25 s.

    lm-eval keeps `gsm8k_cot` in a folder whose name begins it. A tag may have members in any folder, so that it needs
    them all.
    """
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Kind

    own = Path(lm_eval.tasks.__file__).parent
    homes = {home for name in names if (home := _home(name, own)) is not None}
    for part in ([], sorted(homes), [own]):
        manager = TaskManager(include_defaults=False, include_path=[*part, *folders])
        index = manager.task_index
        try:
            kinds = {index[name].kind for name in _names(names, index)}
        except KeyError:
            continue
        if Kind.TAG not in kinds or part in ([], [own]):
            return manager
    unknown = sorted(set(names) - set(index))
    shown = sorted(TaskManager(include_defaults=False, include_path=folders[:1]).all_tasks)
    raise TaskDataError(
        f"params.yaml: benchmark.tasks: got {unknown}, expected tasks of {folders[0]} ({shown}) or of lm-eval "
        "(`lm-eval ls tasks` lists them)"
    )


def _home(name: str, own: Path) -> Path | None:
    parts = name.split("_")
    starts = (own / "_".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((folder for folder in starts if folder.is_dir()), None)


def _names(names: Iterable[str], index: Mapping[str, Entry]) -> Iterator[str]:
    """`names` and all that they name.

    Raises:
        KeyError: one of them is not in the index.
    """
    from lm_eval.tasks._index import Kind

    for name in names:
        yield name
        entry = index[name]
        if entry.kind is Kind.GROUP:
            yield from _names(_members((entry.cfg or {}).get("task")), index)
        elif entry.kind is Kind.TAG:
            yield from _names(sorted(entry.tags), index)


def _members(listed: Any) -> Iterator[str]:
    """The names in a group's list; a group may be written out in it."""
    for item in [listed] if isinstance(listed, str) else listed or []:
        if isinstance(item, str):
            yield item
        elif isinstance(item.get("task"), list):
            yield from _members(item["task"])
        else:
            yield item.get("task") or item["group"]


def _tasks(names: list[str], index: Mapping[str, Entry]) -> Iterator[str]:
    from lm_eval.tasks._index import Kind

    for name in _names(names, index):
        if index[name].kind is Kind.PY_TASK or (index[name].cfg or {}).get("custom_dataset"):
            raise TaskDataError(
                f"benchmark task {name!r} loads its data by code of its own, which nothing can pin; expected a task "
                "whose file names a data set. Take it out of benchmark.tasks"
            )
        if index[name].kind is Kind.TASK:
            yield name


def _changes(task: str, file: Mapping[str, Any], data: Mapping[str, BenchmarkData]) -> dict[str, Any] | None:
    """What the overlay of `task` changes; None where the task's data are files of ours anyway."""
    source = str(file.get("dataset_path"))
    if source in LOCAL or Path(source).is_dir():
        return None
    place = data.get(source)
    if place is None or (place.revision is None and place.mirror is None):
        raise TaskDataError(
            f"params.yaml: benchmark.data: nothing pins {source!r}, which the task {task!r} reads; expected "
            f"`{source}: {{revision: the 40 digits of its commit on the hub, mirror: null}}`, or "
            "`{revision: null, mirror: data/benchmarks/FOLDER}` for files that you have: docs/benchmarks.md"
        )
    if place.mirror is None:
        return {"dataset_kwargs": {**(file.get("dataset_kwargs") or {}), "revision": place.revision}}
    files = _mirrored(task, file, source, Path(place.mirror))
    readers = {READERS[path.suffix] for paths in files.values() for path in paths}
    if len(readers) > 1:
        raise TaskDataError(
            f"the mirror {place.mirror} has files of several formats for the task {task!r}: "
            f"{sorted(str(path) for paths in files.values() for path in paths)}; expected one format"
        )
    listed = {split: [str(path.resolve()) for path in paths] for split, paths in files.items()}
    return {"dataset_path": readers.pop(), "dataset_name": None, "dataset_kwargs": {"data_files": listed}}


def _mirrored(task: str, file: Mapping[str, Any], source: str, mirror: Path) -> dict[str, list[Path]]:
    """The files of every split that a task names: as the hub lays a data set out, or the folder's only file."""
    part = file.get("dataset_name")  # a data set in parts, such as MMLU's subjects, has a folder for each
    folder = mirror / str(part) if part else mirror / "data" if (mirror / "data").is_dir() else mirror
    splits = sorted({str(file[key]) for key in SPLITS if file.get(key)})
    there = sorted(path for path in folder.glob("*") if path.suffix in READERS)
    found = {
        split: [path for path in there if path.stem == split or path.name.startswith(f"{split}-")] for split in splits
    }
    if len(splits) == len(there) == 1:
        found = {splits[0]: there}
    missing = [split for split, paths in found.items() if not paths]
    if missing:
        raise TaskDataError(
            f"the task {task!r} reads the splits {splits} of {source}, but {folder} has no file for {missing}; "
            f"expected {missing[0]}.jsonl, {missing[0]}-00000-of-00001.parquet or the like. Where the hub can be "
            f"reached, `hf download {source} --repo-type dataset --revision COMMIT --local-dir {mirror}` fetches them"
        )
    return found
