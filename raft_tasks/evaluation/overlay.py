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
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")  # keys of a task's file
SPLIT_NAMES = frozenset({"train", "validation", "valid", "dev", "test"})  # which an only file may not have by mistake
NO_SHOTS: Mapping[str, int] = {}


class TaskDataError(InputError):
    """A benchmark task, or its data, is missing."""


def task_manager(
    names: list[str],
    folders: list[Path],
    data: Mapping[str, BenchmarkData],
    work: Path,
    few_shot: Mapping[str, int] = NO_SHOTS,
) -> TaskManager:
    """lm-eval's manager of `names`, of all that they name, and of `folders`.

    Args:
        names: tasks, groups or tags, of `folders` or of lm-eval itself.
        data: by data set, as the tasks' files call it.
        work: a folder of the caller's; the overlays are written to `work`/overlay.
        few_shot: by name, where it differs from the task's own: a split that gives no example may be missing.

    Raises:
        TaskDataError: an unknown task, one whose data nobody pins, a mirror without the files that it needs.
    """
    from lm_eval.tasks import TaskManager

    manager = _index(names, folders)
    overlays = work / "overlay"
    overlays.mkdir()
    for name, task in _tasks(names, manager.task_index):
        entry = manager.task_index[task]
        changes = data_changes(task, entry, data, few_shot.get(name))
        if changes is not None:
            text = {"include": str(Path(str(entry.yaml_path)).resolve()), "task": task, "tag": None, **changes}
            (overlays / f"{task}.yaml").write_text(json.dumps(text), encoding="utf-8")  # JSON is YAML
    paths = [manager.include_path] if isinstance(manager.include_path, str | Path) else list(manager.include_path or ())
    manager = TaskManager(include_defaults=False, include_path=[*paths, overlays])
    for path in overlays.iterdir():  # lm-eval passes over a file that it cannot read, and would take the hub's newest
        if manager.task_index[path.stem].yaml_path != path:
            raise RuntimeError(f"lm-eval did not take the overlay {path}")
    return manager


def _index(names: list[str], folders: list[Path]) -> TaskManager:
    """The smallest part of lm-eval's own tasks that holds `names` and what they name: reading all takes 7 to 25 s.

    lm-eval keeps `gsm8k_cot` in a folder whose name begins it. A tag may have members in any folder, so that it needs
    them all.
    """
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Kind

    root = Path(lm_eval.tasks.__file__).parent
    homes = {home for name in names if (home := home_folder(name, root)) is not None}
    for part in ([], sorted(homes), [root]):
        manager = TaskManager(include_defaults=False, include_path=[*part, *folders])
        index = manager.task_index
        try:
            kinds = {index[name].kind for name in _names(names, index)}
        except KeyError:
            continue
        if Kind.TAG not in kinds or part in ([], [root]):
            return manager
    unknown = sorted(set(names) - set(index))
    shown = sorted(TaskManager(include_defaults=False, include_path=folders[:1]).all_tasks)
    raise TaskDataError(
        f"params.yaml: benchmark.tasks: got {unknown}, expected tasks of {folders[0]} ({shown}) or of lm-eval "
        "(`lm-eval ls tasks` lists them)"
    )


def home_folder(name: str, root: Path) -> Path | None:
    parts = name.split("_")
    starts = (root / "_".join(parts[:end]) for end in range(len(parts), 0, -1))
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
            yield from _names(members((entry.cfg or {}).get("task")), index)
        elif entry.kind is Kind.TAG:
            yield from _names(sorted(entry.tags), index)


def members(listed: Any) -> Iterator[str]:
    """The names in a group's list; a group may be written out in it."""
    for item in [listed] if isinstance(listed, str) else listed or []:
        if isinstance(item, str):
            yield item
        elif isinstance(item.get("task"), list):
            yield from members(item["task"])
        else:
            yield item.get("task") or item["group"]


def _tasks(names: list[str], index: Mapping[str, Entry]) -> Iterator[tuple[str, str]]:
    """(name, task) of every task that a name stands for."""
    from lm_eval.tasks._index import Kind

    for name in names:
        for task in _names([name], index):
            entry = index[task]
            if entry.kind is Kind.PY_TASK or (entry.cfg or {}).get("custom_dataset"):
                raise TaskDataError(
                    f"benchmark task {task!r} loads its data by code of its own, which nothing can pin; expected a "
                    "task whose file names a data set. Take it out of benchmark.tasks"
                )
            if entry.kind is Kind.TASK:
                yield name, task


def data_changes(
    task: str, entry: Entry, data: Mapping[str, BenchmarkData], few_shot: int | None
) -> dict[str, Any] | None:
    """What the overlay of `task` changes; None where lm-eval reads files as the task names them."""
    file = entry.cfg or {}
    source, options = str(file.get("dataset_path")), file.get("dataset_kwargs") or {}
    if source in LOCAL:
        beside = _beside(Path(str(entry.yaml_path)).parent, options.get("data_files"))
        return None if beside is None else {"dataset_kwargs": {**options, "data_files": beside}}
    if Path(source).is_dir():
        return None
    place = data.get(source)
    if place is None or (place.revision is None and place.mirror is None):
        raise TaskDataError(
            f"params.yaml: benchmark.data: nothing pins {source!r}, which the task {task!r} reads; expected "
            f"`{source}: {{revision: the 40 digits of its commit on the hub, mirror: null}}`, or "
            "`{revision: null, mirror: data/benchmarks/FOLDER}` for files that you have: docs/guides/benchmarks.md"
        )
    if place.mirror is None:
        return {"dataset_kwargs": {**options, "revision": place.revision}}
    files = _mirrored(task, file, Path(place.mirror), file.get("num_fewshot") if few_shot is None else few_shot)
    readers = {READERS[path.suffix] for paths in files.values() for path in paths}
    if len(readers) > 1:
        raise TaskDataError(
            f"the mirror {place.mirror} has files of several formats for the task {task!r}: "
            f"{sorted(str(path) for paths in files.values() for path in paths)}; expected one format"
        )
    listed = {split: [str(path.resolve()) for path in paths] for split, paths in files.items()}
    unread = {key: None for key in SPLITS if file.get(key) and file[key] not in files}
    return {"dataset_path": readers.pop(), "dataset_name": None, "dataset_kwargs": {"data_files": listed}, **unread}


def _beside(folder: Path, files: Any) -> dict[str, Any] | None:
    """`data_files` with absolute paths of the files in `folder`; None where none of them lies there."""
    if not isinstance(files, dict):
        return None
    beside = {split: folder / name if isinstance(name, str) else None for split, name in files.items()}
    found = {split: str(path.resolve()) for split, path in beside.items() if path is not None and path.is_file()}
    return {**files, **found} if found else None


def _mirrored(task: str, file: Mapping[str, Any], mirror: Path, few_shot: int | None) -> dict[str, list[Path]]:
    """The files of every split that is read: as the hub lays a data set out, or the folder's only file.

    Read are the items, of test_split or else validation_split, and where examples are given, what they come from;
    other splits of the task's file only where the mirror has them.
    """
    part = file.get("dataset_name")  # a data set in parts, such as MMLU's subjects, has a folder for each
    folder = mirror / str(part) if part else mirror / "data" if (mirror / "data").is_dir() else mirror
    splits = sorted({str(file[key]) for key in SPLITS if file.get(key)})
    needed = {str(file.get("test_split") or file.get("validation_split"))} if not few_shot else set(splits)
    files = sorted(path for path in folder.glob("*") if path.suffix in READERS)
    by_split = {
        split: [path for path in files if path.stem == split or path.name.startswith(f"{split}-")] for split in splits
    }
    if len(needed) == len(files) == 1 and (len(splits) == 1 or files[0].stem.split("-")[0] not in SPLIT_NAMES):
        return {needed.pop(): files}
    missing = sorted(split for split in needed if not by_split.get(split))
    if missing:
        source = file["dataset_path"]
        raise TaskDataError(
            f"the task {task!r} reads the splits {sorted(needed)} of {source}, but {folder} has no file for {missing}; "
            f"expected {missing[0]}.jsonl, {missing[0]}-00000-of-00001.parquet or the like. Where the hub can be "
            f"reached, `hf download {source} --repo-type dataset --revision COMMIT --local-dir {mirror}` fetches them"
        )
    return {split: paths for split, paths in by_split.items() if paths}
