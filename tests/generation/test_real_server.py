"""The endpoint backend against a real OpenAI-compatible server with the embedded model: transformers serve."""

from pathlib import Path

import pytest
from model_server import serving

from raft_tasks.config import Budget, Endpoint, load_config
from raft_tasks.generation.anchors import generate_anchors, user_prefix
from raft_tasks.generation.cached_backend import CachedBackend, CallSession
from raft_tasks.generation.endpoint_backend import EndpointBackend
from raft_tasks.generation.rewriting import rewrite
from raft_tasks.generation.served_base import ServedBase
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.sampling import SamplingParams
from raft_tasks.schemas import Example

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "models" / "pocket-base")


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    # else it takes most of the machine's memory for its cache
    cache = ["--cb-block-size", "32", "--cb-num-blocks", "512", "--cb-max-batch-tokens", "1024"]
    with serving(MODEL, tmp_path_factory.mktemp("serve") / "log", "--continuous-batching", *cache) as address:
        yield address


@pytest.fixture
def backend(server):
    settings = Endpoint(
        base_url=server, model=MODEL, seeds=True, options={}, length_field="max_tokens", api_key_env=None,
        concurrency=8, timeout_s=60.0, max_retries=2, price_per_million_input=0.0, price_per_million_output=0.0,
    )  # fmt: skip
    return EndpointBackend(settings, {"base_url": server, "model": MODEL})


def test_the_same_model_writes_the_same_on_both_sides_of_the_protocol(backend):
    config = load_config(ROOT / "params.yaml")
    rows = [
        Example(
            id=str(n), domain="archive", question=f"What is the reactor of {name}?", source=name, split="train",
            answer=f"{name} | reactor = {thing} # {n}",
        )
        for n, (name, thing) in enumerate((name, thing) for name in ("Figin", "Tarin", "Babor", "Sodin")
                                          for thing in ("rope", "lamp", "corn", "linen", "salt", "glass"))
    ]  # fmt: skip
    greedy = config.rewrite.model_copy(update={"temperature": 0.0})
    local = TransformersBackend(config.base.model_copy(update={"path": MODEL}))
    there, here = rewrite(rows, backend, greedy), rewrite(rows, local, greedy)
    assert [row.failure for row in there] == [None] * len(rows)
    assert [(row.rewritten, row.finished) for row in there] == [(row.rewritten, row.finished) for row in here]
    assert len({row.rewritten for row in there}) > len(rows) / 2
    sampled = rewrite(rows[:8], backend, config.rewrite)
    assert all(row.finished and row.rewritten for row in sampled)


def test_a_cut_answer_and_its_count(backend):
    (cut,) = backend.generate(["Tell me the charm of Sodin."], SamplingParams(temperature=0.0, max_tokens=3), [0])
    assert (cut.finished, cut.tokens) == (False, 3)
    assert cut.prompt_tokens > 5


def test_the_base_behind_a_server_generates_what_it_does_here(backend, tmp_path):
    config = load_config(ROOT / "params.yaml")
    base = config.base.model_copy(update={"path": MODEL})
    local = TransformersBackend(base)
    calls = CallSession(tmp_path / "responses.sqlite", "run", "anchors", Budget(tokens=None, money=None))
    served = ServedBase(CachedBackend(backend, calls, "anchors"), local)
    tokens = local.tokenizer("What is the craft of", add_special_tokens=False)["input_ids"]
    prefixes = [user_prefix(local.tokenizer, None) + tokens[:count] for count in range(len(tokens) + 1)]
    special = frozenset(local.tokenizer.all_special_ids)
    greedy = SamplingParams(temperature=0.0, max_tokens=60, batch_size=8, abort_token_ids=special)
    here, there = (base.call("tokens", prefixes, greedy, range(len(prefixes))) for base in (local, served))
    assert [(row.text.strip(), row.finished) for row in there] == [(row.text.strip(), row.finished) for row in here]
    drawn = generate_anchors(
        range(4), served, config.anchors["generated"]
    )  # this server draws as its first request told it
    assert generate_anchors(range(4), served, config.anchors["generated"]) == drawn
    assert calls.cache.tally("run").cached >= 4
