"""lm-eval's task files, read without importing lm-eval, which takes seconds; and where their data lie."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from raft_tasks.config import Benchmark, BenchmarkData
from raft_tasks.errors import InputError

LOCAL = frozenset({"json", "csv", "parquet", "text", "arrow"})  # readers of files that a task names itself
READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")  # keys of a task's file
SPLIT_NAMES = frozenset({"train", "validation", "valid", "dev", "test"})  # which an only file may not have by mistake


class TaskFile(NamedTuple):
    """The file of a task or group."""

    content: dict[str, Any]  # includes merged
    path: Path
    tag: str | None = None  # through which a task is asked for


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
        files = find_task_files(name, [folder])
        if not files:
            messages.append(unknown_tasks([name], folder))
        for task, file in files.items():
            try:
                data_changes(task, file, settings.data, settings.few_shot.get(name))
            except InputError as error:
                messages.append(str(error))
    return messages


def unknown_tasks(names: list[str], folder: Path) -> str:
    contents = [_load(path) for path, _ in _texts(folder)]
    ours = sorted(filter(None, {content.get("group") or content.get("task") for content in contents}))
    return (
        f"params.yaml: benchmark.tasks: got {names}, expected tasks of {folder} ({ours}) or of lm-eval (`lm-eval ls "
        "tasks` lists them); of a group, all that it names"
    )


def own_tasks() -> Path:
    """lm-eval's folder of its own tasks."""
    spec = find_spec("lm_eval")
    assert spec is not None and spec.submodule_search_locations is not None  # noqa: PT018  # it is a dependency
    return Path(spec.submodule_search_locations[0]) / "tasks"


def find_task_files(name: str, folders: Sequence[Path]) -> dict[str, TaskFile]:
    """{task or group: its file} of all that a task, group or tag names; empty where a part of it is nowhere.

    `folders` come before lm-eval's own tasks. These keep `gsm8k_cot` in a folder whose name begins it; the members of a
    tag can stand in any folder.
    """
    root = own_tasks()
    tagged: dict[str, TaskFile] = {}
    starts = [root / name[:end] for end in range(len(name), 0, -1) if name[end : end + 1] in ("", "_")]
    homes = [folder for folder in starts if folder.is_dir()][:1]
    word = re.compile(rf"\b{re.escape(name)}\b")
    for folder in (*folders, *homes, root):
        for path, text in _own_texts() if folder == root else _texts(folder):
            if not word.search(text):
                continue
            content = _load(path)
            listed, tags = content.get("task"), content.get("tag") or []
            if content.get("group") == name:
                parts = [find_task_files(member, folders) for member in _members(listed)]
                files = {name: TaskFile(content, path)} | {task: file for part in parts for task, file in part.items()}
                return files if all(parts) else {}
            if listed == name:
                return {name: TaskFile(content, path)}
            if name in ([tags] if isinstance(tags, str) else tags) and isinstance(listed, str):
                tagged.setdefault(listed, TaskFile(content, path, name))
    return tagged


def _texts(folder: Path) -> Iterator[tuple[Path, str]]:
    return ((path, path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.yaml")))


@cache
def _own_texts() -> list[tuple[Path, str]]:
    """Some 14,000 files; a group such as mmlu has several tags."""
    return list(_texts(own_tasks()))


def _load(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except yaml.YAMLError as error:
        raise InputError(f"benchmark task file {path} is not YAML: {error}") from error
    includes = content.pop("include", [])
    merged: dict[str, Any] = {}
    for include in [includes] if isinstance(includes, str) else includes:
        merged |= _load(path.parent / include)
    return merged | content


def _members(listed: Any) -> Iterator[str]:
    """The names in a group's list; a group may be written out in it."""
    for item in [listed] if isinstance(listed, str) else listed or []:
        if isinstance(item, str):
            yield item
        elif isinstance(item.get("task"), list):
            yield from _members(item["task"])
        else:
            yield item.get("task") or item["group"]


def data_changes(
    task: str, task_file: TaskFile, data: Mapping[str, BenchmarkData], few_shot: int | None
) -> dict[str, Any] | None:
    """What the overlay of `task` changes; None for a group, and where lm-eval reads files as the task names them.

    Raises:
        InputError: nobody pins the task's data, or a mirror lacks files that it reads.
    """
    file = task_file.content
    if "group" in file:
        return None
    if "class" in file or "custom_dataset" in file:
        raise InputError(
            f"benchmark task {task!r} loads its data by code of its own, which nothing can pin; expected a "
            "task whose file names a data set. Take it out of benchmark.tasks"
        )
    source, options = str(file.get("dataset_path")), file.get("dataset_kwargs") or {}
    if source in LOCAL:
        local_files = _local_files(task_file.path.parent, options.get("data_files"))
        return None if local_files is None else {"dataset_kwargs": {**options, "data_files": local_files}}
    if Path(source).is_dir():
        return None
    pin = data.get(source)
    if pin is None or (pin.revision is None and pin.mirror is None):
        raise InputError(
            f"params.yaml: benchmark.data: nothing pins {source!r}, which the task {task!r} reads; expected "
            f"`{source}: {{revision: the 40 digits of its commit on the hub, mirror: null}}`, or "
            "`{revision: null, mirror: data/benchmarks/FOLDER}` for files that you have: docs/guides/benchmarks.md"
        )
    if pin.mirror is None:
        return {"dataset_kwargs": {**options, "revision": pin.revision}}
    files = _mirrored(task, file, Path(pin.mirror), file.get("num_fewshot") if few_shot is None else few_shot)
    readers = {READERS[path.suffix] for paths in files.values() for path in paths}
    if len(readers) > 1:
        raise InputError(
            f"the mirror {pin.mirror} has files of several formats for the task {task!r}: "
            f"{sorted(str(path) for paths in files.values() for path in paths)}; expected one format"
        )
    listed = {split: [str(path.resolve()) for path in paths] for split, paths in files.items()}
    unread = {key: None for key in SPLITS if file.get(key) and file[key] not in files}
    return {"dataset_path": readers.pop(), "dataset_name": None, "dataset_kwargs": {"data_files": listed}, **unread}


def _local_files(folder: Path, files: Any) -> dict[str, Any] | None:
    """`data_files` with absolute paths of the files in `folder`; None where none of them lies there."""
    if not isinstance(files, dict):
        return None
    local = {split: folder / name if isinstance(name, str) else None for split, name in files.items()}
    resolved = {split: str(path.resolve()) for split, path in local.items() if path is not None and path.is_file()}
    return {**files, **resolved} if resolved else None


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
        raise InputError(
            f"the task {task!r} reads the splits {sorted(needed)} of {source}, but {folder} has no file for {missing}; "
            f"expected {missing[0]}.jsonl, {missing[0]}-00000-of-00001.parquet or the like. Where the hub can be "
            f"reached, `hf download {source} --repo-type dataset --revision COMMIT --local-dir {mirror}` fetches them"
        )
    return {split: paths for split, paths in by_split.items() if paths}
