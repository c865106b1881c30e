from dataclasses import replace

import pytest

from raft_tasks.config import Budget, Endpoint, Model
from raft_tasks.errors import InputError
from raft_tasks.generation import cached_backend as module
from raft_tasks.generation.backend import Completion, Failure, StreamingBackend
from raft_tasks.generation.cached_backend import CallSession, ModelPool
from raft_tasks.generation.response_cache import Tally
from raft_tasks.sampling import SamplingParams

MODEL = Model(path="m", revision=None, dtype="float32", system=None)
ENDPOINT = Endpoint(
    base_url="http://127.0.0.1:1/v1", model="m", seeds=True, options={}, length_field="max_tokens", api_key_env=None,
    concurrency=1, timeout_s=1, max_retries=0, price_per_million_input=1.0, price_per_million_output=10.0,
)  # fmt: skip
PARAMS = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=20, batch_size=2)


class Drawing(StreamingBackend):
    """A backend that answers with the prompt and its seed, in batches, and keeps what it was asked."""

    def __init__(self, **identity):
        self.identity = {"model": "drawing", **identity}
        self.settings = MODEL
        self.asked = []
        self.failures = {}

    def stream(self, kind, prompts, params, seeds, go_on=lambda: True):
        for start in range(0, len(prompts), params.batch_size):
            if not go_on():
                return
            portion = []
            for i in range(start, min(start + params.batch_size, len(prompts))):
                self.asked.append((prompts[i], seeds[i]))
                failure = self.failures.get(prompts[i])
                text = "" if failure else f"{prompts[i]}/{seeds[i]}"
                portion.append((i, Completion(text, not failure, 5, 10, tries=3 if failure else 1, failure=failure)))
            yield portion


@pytest.fixture
def drawing(monkeypatch):
    backend = Drawing()

    def build(model, identity):
        backend.settings = model
        return backend

    monkeypatch.setattr(module, "build_backend", build)
    monkeypatch.setattr(module, "_backends", {})
    return backend


def session(folder, run="run", tokens=None, money=None):
    return CallSession(folder / "responses.sqlite", run, "rewrite", Budget(tokens=tokens, money=money))


def ask(calls, prompts, seeds=None, model=MODEL, role="rewrite", **changes):
    backend = ModelPool(calls, {"m": model}, {"m": {"model": "drawing"}}).backend(role, "m")
    completions = backend.generate(prompts, replace(PARAMS, **changes), seeds or [0] * len(prompts))
    return [completion.text for completion in completions]


def test_equal_calls_are_made_once(tmp_path, drawing):
    first = ask(session(tmp_path), ["a", "b", "a"])
    assert first == ["a/0", "b/0", "a/0"]
    assert drawing.asked == [("a", 0), ("b", 0)]
    assert ask(session(tmp_path, "again"), ["b", "c", "a"], role="judge") == ["b/0", "c/0", "a/0"]
    assert drawing.asked[2:] == [("c", 0)]
    assert session(tmp_path).cache.tally("run") == Tally(calls=2, cached=1, prompt_tokens=20, tokens=10)
    assert session(tmp_path).cache.tally("again") == Tally(calls=1, cached=2, prompt_tokens=10, tokens=5)
    assert session(tmp_path).cache.calls_by_stage() == {"rewrite": 3}  # of both runs


@pytest.mark.parametrize("change", [{"temperature": 0.8}, {"top_p": 0.8}, {"max_tokens": 21}, {"seeds": [1]}], ids=str)
def test_all_that_determines_an_answer_is_in_its_key(tmp_path, drawing, change):
    ask(session(tmp_path), ["a"])
    ask(session(tmp_path), ["a"], **change)
    assert len(drawing.asked) == 2
    ask(session(tmp_path), ["a"], batch_size=1)  # determines nothing
    assert len(drawing.asked) == 2
    drawing.identity = {"model": "another"}
    ask(session(tmp_path), ["a"])
    assert len(drawing.asked) == 3


def test_greedy_answers_do_not_depend_on_the_seed(tmp_path, drawing):
    ask(session(tmp_path), ["a", "a"], seeds=[1, 2], temperature=0.0)
    assert drawing.asked == [("a", 1)]


def test_failures_of_the_model_are_cached_and_accidents_are_not(tmp_path, drawing):
    drawing.failures = {"empty": Failure("empty", "an empty answer"), "down": Failure("unreachable", "HTTP 500")}
    for _ in range(2):
        backend = ModelPool(session(tmp_path), {"m": MODEL}, {"m": {}}).backend("rewrite", "m")
        completions = backend.generate(["empty", "down", "good"], PARAMS, [0, 0, 0])
        assert [completion.failure for completion in completions] == [*drawing.failures.values(), None]
    assert [prompt for prompt, _ in drawing.asked] == ["empty", "down", "good", "down"]
    tally = session(tmp_path).cache.tally("run")
    assert (tally.calls, tally.errors, tally.failed) == (4, 8, 3)  # two tries, twice three, no more for the good one


@pytest.mark.parametrize(("budget", "made"), [({"tokens": 45}, 4), ({"money": 0.00013}, 4), ({"tokens": 1}, 2)])
def test_a_budget_stops_cleanly_and_the_next_run_goes_on(tmp_path, drawing, budget, made):
    prompts = list("abcdefg")
    with pytest.raises(
        InputError, match=r"rewrite\.budget .* is used up .* raise the budget, or run the same"
    ) as error:
        ask(session(tmp_path, **budget), prompts, model=ENDPOINT)
    assert f"after {made} calls: {15 * made} tokens" in str(error.value)
    assert len(drawing.asked) == made
    assert ask(session(tmp_path, "next"), prompts, model=ENDPOINT) == [f"{prompt}/0" for prompt in prompts]
    assert [prompt for prompt, _ in drawing.asked] == prompts
    assert session(tmp_path).cache.tally("next").cost == pytest.approx((7 - made) * (10 * 1.0 + 5 * 10.0) / 1e6)


def test_a_stopped_run_begins_no_more_calls(tmp_path, drawing):
    calls = session(tmp_path)
    ask(calls, ["a"])
    calls.cache.stop("run")
    assert ask(calls, ["a"]) == ["a/0"]
    with pytest.raises(InputError, match="was stopped"):
        ask(calls, ["b"])


def test_numbers_are_cached_too(tmp_path):
    computed = []

    def compute(missing):
        computed.append(missing)
        return [0.1 * i for i in missing]

    for _ in range(2):
        numbers = session(tmp_path).numbers("judge", {"encoder": "e"}, [["a", "b"], ["c", "d"], ["a", "b"]], compute)
        assert numbers == [0.0, 0.1, 0.0]
    assert session(tmp_path).numbers("judge", {"encoder": "f"}, [["a", "b"]], compute) == [0.0]
    assert computed == [[0, 1], [0]]


def test_completions_come_back_whole(tmp_path, drawing):
    drawing.failures = {"no": Failure("refused", "I will not.")}
    backend = ModelPool(session(tmp_path), {"m": MODEL}, {"m": {}}).backend("rewrite", "m")
    made, again = (backend.generate(["ja ✓", "no"], PARAMS, [1, 2]) for _ in range(2))
    assert again == made
    assert len(drawing.asked) == 2
