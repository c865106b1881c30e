import json
import multiprocessing
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raft_tasks.generation import calls as module
from raft_tasks.generation.backend import Completion, Failure
from raft_tasks.generation.calls import BudgetUsedUp, Call, Calls, CallStore, CallStoreError, Tally
from raft_tasks.params import Budget, Endpoint, Model

MODEL = Model(path="m", revision=None, dtype="float32", system=None)
ENDPOINT = Endpoint(
    base_url="http://127.0.0.1:1/v1", model="m", seeds=True, options={}, length_field="max_tokens", api_key_env=None,
    concurrency=1, timeout_s=1, max_retries=0, price_per_million_input=1.0, price_per_million_output=10.0,
)  # fmt: skip
SETTINGS = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 20, "batch_size": 2}


class Drawing:
    """A backend that answers with the prompt and its seed, in batches, and keeps what it was asked."""

    def __init__(self, **identity):
        self.identity = {"model": "drawing", **identity}
        self.asked = []
        self.failures = {}

    def stream(self, prompts, *, seeds, batch_size, go_on, **settings):
        for start in range(0, len(prompts), batch_size):
            if not go_on():
                return
            portion = []
            for i in range(start, min(start + batch_size, len(prompts))):
                self.asked.append((prompts[i], seeds[i]))
                failure = self.failures.get(prompts[i])
                text = "" if failure else f"{prompts[i]}/{seeds[i]}"
                portion.append((i, Completion(text, not failure, 5, 10, tries=3 if failure else 1, failure=failure)))
            yield portion


@pytest.fixture
def drawing(monkeypatch):
    backend = Drawing()
    monkeypatch.setattr(module, "build_backend", lambda model, identity: backend)
    monkeypatch.setattr(module, "_backends", {})
    return backend


def begun(folder, run="run", tokens=None, money=None):
    calls = Calls(folder / "calls.sqlite", run, "rewrite", Budget(tokens=tokens, money=money))
    calls.store.begin(run, "rewrite")
    return calls


def ask(calls, prompts, seeds=None, model=MODEL, role="rewrite", **changes):
    backend = calls.backend(role, model, {"model": "drawing"})
    return [one.text for one in backend.generate(prompts, seeds=seeds or [0] * len(prompts), **SETTINGS | changes)]


def test_what_was_answered_once_is_not_asked_again(tmp_path, drawing):
    first = ask(begun(tmp_path), ["a", "b", "a"])
    assert first == ["a/0", "b/0", "a/0"]
    assert drawing.asked == [("a", 0), ("b", 0)]
    assert ask(begun(tmp_path, "again"), ["b", "c", "a"], role="judge") == ["b/0", "c/0", "a/0"]
    assert drawing.asked[2:] == [("c", 0)]
    assert begun(tmp_path).store.tally("run") == Tally(calls=2, cached=1, prompt_tokens=20, tokens=10)
    assert begun(tmp_path).store.tally("again") == Tally(calls=1, cached=2, prompt_tokens=10, tokens=5)
    assert begun(tmp_path).store.calls_by_stage() == {"rewrite": 3}  # of both runs


@pytest.mark.parametrize(
    "change", [{"temperature": 0.8}, {"top_p": 0.8}, {"max_new_tokens": 21}, {"seeds": [1]}], ids=str
)
def test_all_that_determines_an_answer_is_in_its_key(tmp_path, drawing, change):
    ask(begun(tmp_path), ["a"])
    ask(begun(tmp_path), ["a"], **change)
    assert len(drawing.asked) == 2
    ask(begun(tmp_path), ["a"], batch_size=1)  # determines nothing
    assert len(drawing.asked) == 2
    drawing.identity = {"model": "another"}
    ask(begun(tmp_path), ["a"])
    assert len(drawing.asked) == 3


def test_greedy_answers_do_not_depend_on_the_seed(tmp_path, drawing):
    ask(begun(tmp_path), ["a", "a"], seeds=[1, 2], temperature=0.0)
    assert drawing.asked == [("a", 1)]


def test_failures_of_the_model_are_remembered_and_accidents_are_not(tmp_path, drawing):
    drawing.failures = {"empty": Failure("empty", "an empty answer"), "down": Failure("unreachable", "HTTP 500")}
    for _ in range(2):
        backend = begun(tmp_path).backend("rewrite", MODEL, {})
        found = backend.generate(["empty", "down", "good"], seeds=[0, 0, 0], **SETTINGS)
        assert [one.failure for one in found] == [*drawing.failures.values(), None]
    assert [prompt for prompt, _ in drawing.asked] == ["empty", "down", "good", "down"]
    tally = begun(tmp_path).store.tally("run")
    assert (tally.calls, tally.errors, tally.failed) == (4, 8, 3)  # two tries, twice three, no more for the good one


@pytest.mark.parametrize(("budget", "made"), [({"tokens": 45}, 4), ({"money": 0.00013}, 4), ({"tokens": 1}, 2)])
def test_a_budget_stops_cleanly_and_the_next_run_goes_on(tmp_path, drawing, budget, made):
    prompts = list("abcdefg")
    with pytest.raises(
        BudgetUsedUp, match=r"rewrite\.budget .* is used up .* raise the budget, or run the same"
    ) as told:
        ask(begun(tmp_path, **budget), prompts, model=ENDPOINT)
    assert f"after {made} calls: {15 * made} tokens" in str(told.value)
    assert len(drawing.asked) == made
    assert ask(begun(tmp_path, "next"), prompts, model=ENDPOINT) == [f"{prompt}/0" for prompt in prompts]
    assert [prompt for prompt, _ in drawing.asked] == prompts
    assert begun(tmp_path).store.tally("next").cost == pytest.approx((7 - made) * (10 * 1.0 + 5 * 10.0) / 1e6)


def test_a_stopped_run_begins_no_more_calls(tmp_path, drawing):
    calls = begun(tmp_path)
    ask(calls, ["a"])
    calls.store.stop("run")
    assert ask(calls, ["a"]) == ["a/0"]
    with pytest.raises(BudgetUsedUp, match="was stopped"):
        ask(calls, ["b"])


def test_numbers_are_remembered_too(tmp_path):
    computed = []

    def compute(missing):
        computed.append(missing)
        return [0.1 * i for i in missing]

    for _ in range(2):
        found = begun(tmp_path).numbers("judge", {"encoder": "e"}, [["a", "b"], ["c", "d"], ["a", "b"]], compute)
        assert found == [0.0, 0.1, 0.0]
    assert begun(tmp_path).numbers("judge", {"encoder": "f"}, [["a", "b"]], compute) == [0.0]
    assert computed == [[0, 1], [0]]


def _put(path, name, count):
    store = CallStore(path)
    for n in range(count):
        call = Call(f"{name}-{n}", "rewrite", "m", False, 1, 1, 0.0, json.dumps(n))
        store.put([call], "run", Tally(calls=1, tokens=1))
    store.close()


def test_threads_and_processes_share_a_store(tmp_path):
    store = begun(tmp_path).store
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_put, args=(store.path, f"process {n}", 40)) for n in range(2)]
    for other in others:
        other.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: _put(store.path, f"thread {n}", 40), range(4)))
    for other in others:
        other.join()
        assert other.exitcode == 0
    assert store.tally("run") == Tally(calls=240, tokens=240)
    assert sum(row[1] for row in store.summary("role")) == 240


def _open_all(paths):
    for path in paths:
        CallStore(path).close()


def test_processes_that_open_a_new_store_at_once_wait_for_each_other(tmp_path):
    paths = [tmp_path / f"{number}.sqlite" for number in range(25)]
    with multiprocessing.get_context("fork").Pool(6) as pool:
        pool.map(_open_all, [paths] * 6, chunksize=1)
    assert all(path.exists() for path in paths)


@pytest.mark.parametrize("damage", ["not a database", "torn"])
def test_a_damaged_file_is_told(tmp_path, damage):
    path = tmp_path / "calls.sqlite"
    _fill(path)
    head, rest = path.read_bytes()[:4096], path.stat().st_size - 4096
    path.write_bytes(b"hello " * 1000 if damage == "not a database" else head + b"\xff" * rest)
    with pytest.raises(CallStoreError, match=r"calls\.sqlite is damaged .*move it away"):
        CallStore(path).summary("role")


def test_another_version_or_an_unusable_place_is_told(tmp_path):
    path = tmp_path / "calls.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(CallStoreError, match="version 99, expected 1"):
        CallStore(path)
    with pytest.raises(CallStoreError, match="must lie on a local disk"):
        CallStore(tmp_path)


def _fill(path: Path):
    """Ten calls a day apart, the newest last, each value 100 bytes."""
    store = CallStore(path)
    store.begin("run", "rewrite")
    for n in range(10):
        role, failed = ("judge", n == 5) if n % 2 else ("rewrite", False)
        store.put([Call(str(n), role, "m", failed, 1, 1, 0.5, "x" * 100)], "run", Tally())
    store.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE calls SET made = made - (9 - CAST(key AS INTEGER)) * 86400")
    connection.commit()
    connection.execute("VACUUM")
    connection.close()


PRUNE = {"older_than": None, "role": None, "failed": False, "to_bytes": None}


@pytest.mark.parametrize(
    ("how", "left"),
    [
        ({"older_than": 3.5 * 86400}, "6789"),
        ({"role": "judge"}, "02468"),
        ({"failed": True}, "012346789"),
        ({"to_bytes": 350}, "789"),
        ({"role": "judge", "older_than": 3.5 * 86400}, "0246789"),
        ({"role": "judge", "to_bytes": 650}, "02456789"),
        ({"to_bytes": 10**6}, "0123456789"),
    ],
    ids=str,
)
def test_pruning(tmp_path, how, left):
    path = tmp_path / "calls.sqlite"
    _fill(path)
    store = CallStore(path)
    assert store.prune(**PRUNE | how) == 10 - len(left)
    found = store._connection.execute("SELECT key FROM calls ORDER BY key")
    assert "".join(key for (key,) in found) == left


def test_completions_come_back_whole(tmp_path, drawing):
    drawing.failures = {"no": Failure("refused", "I will not.")}
    backend = begun(tmp_path).backend("rewrite", MODEL, {})
    made, again = (backend.generate(["ja ✓", "no"], seeds=[1, 2], **SETTINGS) for _ in range(2))
    assert again == made
    assert len(drawing.asked) == 2
