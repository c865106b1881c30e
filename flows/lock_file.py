"""dvc.lock read and written stage by stage, so that a stage's cost does not grow with the number of the others.

DVC parses the file twice for every stage, writes all of it twice with a dumper in pure Python, and writes into it: a
kill meanwhile leaves half a file, with which none of its commands works. Here a stage's text is parsed once, only the
changed one is dumped, and the file is replaced whole. The bytes are those that DVC would write. A file of another form
(merged by hand, with data sets, damaged) is left to DVC, whose errors name the line.
"""

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from dvc import dvcfile
from dvc.dvcfile import LOCK_FILE, Lockfile
from dvc.utils.serialize import dumps_yaml, load_yaml, loads_yaml, modify_yaml
from ruamel.yaml import YAMLError
from voluptuous import Invalid

from raft_tasks.artifacts import atomic_file

HEAD = "schema: '2.0'\n"
STAGES = "stages:\n"
STAGE = re.compile(r"^  [^\s#].*\n(?:(?:    .*)?\n)*", re.MULTILINE)  # a name, and what is indented deeper

read_whole = Lockfile._load_yaml


def install() -> None:
    """Make DVC's commands in this process use the functions below."""
    dvcfile.modify_yaml = modify_by_stage
    Lockfile._load_yaml = read_by_stage


def read_by_stage(file: Lockfile, **kwargs: Any) -> tuple[dict[str, Any], str]:
    """In place of `Lockfile._load_yaml`: the content, checked against DVC's schema, and the text."""
    with file.repo.fs.open(file.path, encoding="utf-8") as stream:
        text = stream.read()
    texts = split_stages(text)
    if kwargs or texts is None:
        return read_whole(file, **kwargs)
    return {"schema": "2.0", "stages": _parse(texts)}, text


@contextmanager
def modify_by_stage(path: str, fs: Any = None) -> Iterator[dict[str, Any]]:
    """In place of DVC's `modify_yaml`; other files than dvc.lock, which may have comments, are left to it."""
    if Path(path).name != LOCK_FILE:
        with modify_yaml(path, fs=fs) as data:
            yield data
        return
    before = Path(path).read_text(encoding="utf-8") if Path(path).exists() else ""
    texts = split_stages(before)
    data = load_yaml(path) if before and texts is None else {}
    if texts is not None:
        data = {"schema": "2.0", "stages": _parse(texts)}
    yield data
    after = _dump(data, texts or {})
    if after != before:
        with atomic_file(Path(path)) as partial:
            partial.write_text(after, encoding="utf-8")


def split_stages(text: str) -> dict[str, str] | None:
    """{stage: its part of dvc.lock}; None where the file has another form than DVC's, or a part has a fault."""
    body = text.removeprefix(HEAD + STAGES)
    parts = STAGE.findall(body)
    if body == text or not parts or "".join(parts) != body:
        return None
    try:
        texts = {parse_stage(part)[0]: part for part in parts}
    except (YAMLError, Invalid, ValueError):
        return None
    return texts if len(texts) == len(parts) else None  # a name twice


@cache
def parse_stage(part: str) -> tuple[str, bytes]:
    """The stage's name, and its content, checked against DVC's schema; pickled, since a reader may change its copy."""
    stages = loads_yaml(STAGES + part)["stages"]
    Lockfile.SCHEMA({"schema": "2.0", "stages": stages})
    ((name, content),) = stages.items()
    return name, pickle.dumps(content)


def _parse(texts: dict[str, str]) -> dict[str, Any]:
    return {name: pickle.loads(parse_stage(part)[1]) for name, part in texts.items()}


def _dump(data: dict[str, Any], texts: dict[str, str]) -> str:
    """`data` as DVC dumps it; what equals its part in `texts` as that part."""
    if list(data) != ["schema", "stages"] or not data["stages"]:
        return str(dumps_yaml(data))
    before, parts = _parse(texts), []
    for name, content in data["stages"].items():
        unchanged = name in before and before[name] == content
        parts.append(texts[name] if unchanged else dumps_yaml({"stages": {name: content}}).removeprefix(STAGES))
    return HEAD + STAGES + "".join(parts)
