"""Row stages on endpoints that go wrong: every row ends with an answer or a reason, nothing is asked or paid twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from endpoint_server import running, stats
from tenacity import wait_random_exponential

from flows import paths
from flows.fuse import fuse
from flows.rewrite import rewrite
from flows.runners import task_runner
from flows.semantic_filter import semantic_filter
from flows.server import prefect_at
from raft_tasks.artifacts import read_json, read_rows, write_json, write_rows
from raft_tasks.config import Chunks, load_config
from raft_tasks.errors import InputError
from raft_tasks.file_digests import FileDigests
from raft_tasks.generation import cached_backend, endpoint_backend
from raft_tasks.generation.response_cache import ResponseCache, Tally
from raft_tasks.models import identify
from raft_tasks.schemas import Example, Fused, Rewritten

ROOT = Path(__file__).resolve().parents[2]
DOMAIN = "archive"
REWRITTEN, FUSED = paths.rewritten(DOMAIN, "jsonl"), paths.fused(DOMAIN, "jsonl")
KEY = "sk-planted-0123456789"
KEY_NAME = "RAFT_TEST_KEY"
ROWS = 300
FAULTS = {
    "429": 0.08,
    "429-retry-after": 0.08,
    "500": 0.08,
    "hang": 0.02,
    "malformed": 0.08,
    "empty": 0.015,
    "400": 0.015,
}
WITHOUT_LIMIT = {"tokens": None, "money": None}


def examples(numbers):
    return [
        Example(
            id=f"row-{n}",
            domain=DOMAIN,
            question=f"What is {n}?",
            answer=f"It is {n * n}.",
            source=str(n),
            split="train",
        )
        for n in numbers
    ]


def project(folder, base_url, numbers, **changes):
    """A folder in which the row stages can run, with the endpoint as writer."""
    config = yaml.safe_load((ROOT / "params.yaml").read_text())
    config["models"]["base"]["path"] = str(ROOT / "models" / "pocket-base")
    config["models"]["writer"] = {
        "base_url": base_url, "model": "m", "seeds": True, "options": {}, "length_field": "max_tokens",
        "api_key_env": KEY_NAME, "concurrency": 16, "timeout_s": 1.0, "max_retries": 8,
        "price_per_million_input": 1.0, "price_per_million_output": 2.0,
    }  # fmt: skip
    config["rewrite"] |= {"model": "writer", "max_failed": 0.05, "chunk_rows": 50}
    config["fuse"] |= {"model": "writer", "judges": ["fidelity"], "quorum": 1, "rounds": 1, "candidates": 1}
    config["fuse"] |= {"max_failed": 0.05, "chunk_rows": 50}
    config["resources"]["chunks"] = {"runner": "threads", "workers": 2, "dask_address": None}
    for name, values in changes.items():
        section, key = name.split("__")
        config.setdefault(section, {})[key] = values
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(config))
    loaded = load_config(folder / "params.yaml")
    with FileDigests(folder / "digests.json") as digests:
        for role, model in loaded.models.items():
            write_json(folder / paths.model_identity(role), identify(role, model, digests))
    write_rows(folder / paths.split(DOMAIN, "train", "jsonl"), examples(numbers))
    return folder


class Alike:
    """A sentence encoder for whom all texts are alike."""

    def __init__(self):
        self.identity = {"encoder": "alike"}

    def similarities(self, pairs, batch_size):
        return [0.9] * len(pairs)


@pytest.fixture
def here(prefect_api, monkeypatch):
    """Runs stages in this process, in a given folder; returns the tally of each."""
    monkeypatch.setattr(cached_backend, "shared_encoder", lambda name, revision: Alike())
    monkeypatch.setattr(endpoint_backend, "_backoff", wait_random_exponential(multiplier=0.01, max=0.1))
    monkeypatch.setenv(KEY_NAME, KEY)
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)  # for workers in processes of their own

    def run(folder, *stages, runner=None):
        monkeypatch.chdir(folder)
        runner = runner or task_runner(load_config().resources.chunks)
        with prefect_at(prefect_api):
            for stage in stages:
                stage.with_options(task_runner=runner)(DOMAIN)
        return last_tallies(folder, len(stages))

    return run


def last_tallies(folder, count):
    store = ResponseCache(folder / paths.RESPONSES)
    runs = store.last_runs(count)[::-1]
    store.close()
    return [Tally(*counts) for _, _, *counts in runs]


def what_became(row):
    if row.failure:
        return "reference kept: " + row.failure.split(":")[0]
    drawn = [candidate for candidate in row.candidates if candidate.round]
    if all(candidate.failure for candidate in drawn):
        return "rewrite kept: " + drawn[0].failure.split(":")[0]
    return "fused"


def test_every_row_of_an_endpoint_that_goes_wrong_has_an_answer_or_a_reason(here, tmp_path, capfd):
    with running(latency=0.001, faults=FAULTS, key=KEY) as base_url:
        folder = project(tmp_path / "project", base_url, range(ROWS))
        rewriting, _, fusing = here(folder, rewrite, semantic_filter, fuse)
        did = stats(base_url)["did"]
    assert min(did[fault] for fault in FAULTS) > 0
    rows = read_rows(folder / FUSED, Fused)
    assert [row.id for row in rows] == [f"row-{n}" for n in range(ROWS)]  # none lost, none twice
    became = [what_became(row) for row in rows]
    without = [row for row in rows if row.failure]
    assert len(without) == sum(row.fused == row.answer and not row.passed for row in rows)
    assert {*became} == {"fused", "reference kept: empty", "reference kept: rejected", "rewrite kept: empty",
                         "rewrite kept: rejected"}  # fmt: skip
    assert became.count("fused") > 0.9 * ROWS
    failures = [text for text in became if "empty" in text]
    assert len(failures) == did["empty"]  # each was asked once, as were those that were rejected
    assert sum("rejected" in text for text in became) == did["400"]
    assert (rewriting.calls, rewriting.failed) == (ROWS, len(without))
    assert (fusing.calls, fusing.failed) == (ROWS - len(without), sum(text.startswith("rewrite") for text in became))
    assert rewriting.errors + fusing.errors == sum(
        did[f] for f in ("429", "429-retry-after", "500", "hang", "malformed")
    )
    assert all(row.fused.startswith(row.answer) for row in rows)

    # what people saw, and what nobody may see
    shown = capfd.readouterr()
    assert f"rewrite@{DOMAIN}: {ROWS}/{ROWS} rows" in shown.out
    assert f"{rewriting.calls} calls, {rewriting.prompt_tokens + rewriting.tokens} tokens" in shown.out
    assert KEY not in shown.out + shown.err
    assert [path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []


def test_one_percent_more_rows_and_a_changed_step_cost_what_is_new(here, tmp_path):
    with running(key=KEY) as base_url:
        folder = project(tmp_path / "project", base_url, range(100))
        first, _, fusing = here(folder, rewrite, semantic_filter, fuse)
        assert (first.calls, fusing.calls) == (100, 100)
        grown = [*range(50), 777, *range(50, 100)]  # the chunks' borders move
        project(folder, base_url, grown)
        more, _, fusing = here(folder, rewrite, semantic_filter, fuse)
        assert (more.calls, more.cached) == (1, 50)  # the first fifty come back as a chunk: a cached task
        assert (fusing.calls, fusing.cached) == (1, 50)
        assert stats(base_url)["served"] == 202

        project(folder, base_url, grown, fuse__judges=["similarity"])  # re-judges, and writes nothing anew
        fused = (folder / FUSED).read_bytes()
        again, _, fusing = here(folder, rewrite, semantic_filter, fuse)
        assert (again.calls, fusing.calls) == (0, 0)
        assert (folder / FUSED).read_bytes() != fused

        template = tmp_path / "fuse.jinja"
        template.write_text("Merge.\nReference answer: {{ answer }}\n{{ question }} {{ rewritten }}")
        project(folder, base_url, grown, fuse__template=str(template))
        again, _, fusing = here(folder, rewrite, semantic_filter, fuse)
        assert (again.calls, fusing.calls) == (0, 101)


def test_a_budget_and_an_endpoint_that_is_down_stop_the_stage_and_keep_what_is_done(here, tmp_path):
    with running(key=KEY) as base_url:
        folder = project(tmp_path / "project", base_url, range(120), rewrite__budget={"tokens": 600, "money": None})
        with pytest.raises(InputError, match=r"rewrite\.budget \(tokens: 600, money: None\) is used up"):
            here(folder, rewrite)
        (stopped,) = last_tallies(folder, 1)
        assert 40 <= stopped.calls < 120  # what was in flight, or answered faster than it could be counted, is kept
        assert not (folder / REWRITTEN).exists()
        project(folder, base_url, range(120))
        (rest,) = here(folder, rewrite)
        assert rest.calls == 120 - stopped.calls
        assert rest.cached in {stopped.calls, stopped.calls - 50}  # a chunk that ended is a cached task

        (folder / REWRITTEN).unlink()
        project(folder, base_url, range(130), rewrite__max_failed=0.02)
        config = yaml.safe_load((folder / "params.yaml").read_text())
    config["models"]["writer"] |= {"max_retries": 1}
    (folder / "params.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match=r"no answer for 3 of 130 rows.*max_failed \(0\.02\)(.|\n)*no connection"):
        here(folder, rewrite)  # the server has gone
    assert not (folder / REWRITTEN).exists()
    project(folder, base_url, range(120))
    (kept,) = here(folder, rewrite)
    assert (kept.calls, kept.cached) == (0, 0)  # the chunks of before are cached tasks


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["processes", "dask"])
def test_the_runner_changes_nothing(here, tmp_path, kind):
    with running(latency=0.002, key=KEY) as base_url:
        written = {}
        for runner in ("threads", kind):
            folder = project(tmp_path / runner, base_url, range(40), rewrite__chunk_rows=6)
            chunks = Chunks(runner=runner, workers=2, dask_address=None)
            (tally,) = here(folder, rewrite, runner=task_runner(chunks))
            assert tally.calls == 40
            written[runner] = (folder / REWRITTEN).read_bytes()
    assert written["threads"] == written[kind]
    assert len(read_rows(folder / REWRITTEN, Rewritten)) == 40


@pytest.mark.slow
def test_kills_change_no_byte_and_repeat_just_what_was_in_flight(here, tmp_path, prefect_api, clean_environment):
    rows, in_flight = 400, 16
    faults = {"429": 0.05, "500": 0.03, "malformed": 0.03, "empty": 0.01}
    moments = sorted(random.Random(4).sample(range(20, rows - 100), 3))
    with running(latency=0.05, faults=faults, key=KEY) as base_url:
        folder = project(tmp_path / "stormy", base_url, range(rows), rewrite__chunk_rows=32)
        environment = {**clean_environment, "PREFECT_API_URL": prefect_api, KEY_NAME: KEY}
        environment["PYTHONPATH"] = str(ROOT)
        command = [sys.executable, "-m", "flows.cli", "stage", "rewrite", DOMAIN]
        for moment in moments:
            stage = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)
            deadline = time.monotonic() + 60
            while stats(base_url)["served"] < moment and stage.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert stage.poll() is None
            os.kill(stage.pid, signal.SIGKILL)
            stage.wait()
            assert not (folder / REWRITTEN).exists()
        assert subprocess.run(command, cwd=folder, env=environment, capture_output=True).returncode == 0
        seen = stats(base_url)
        assert seen["prompts"] == rows
        assert seen["served"] - seen["prompts"] <= in_flight * len(moments)
    with running(faults=faults, key=KEY) as base_url:
        calm = project(tmp_path / "calm", base_url, range(rows))
        here(calm, rewrite)
    assert (folder / REWRITTEN).read_bytes() == (calm / REWRITTEN).read_bytes()
    assert read_json(folder / paths.model_identity("writer"))["model"] == "m"
    assert json.dumps(last_tallies(folder, 1)[0].calls) != str(rows)  # the last run found most of them in the cache
