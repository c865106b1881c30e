"""A released folder behind real servers, started as its card says: they answer the gate's questions as the harness did.

In float32, as everywhere here, the texts are the same; what other number formats change is in docs/guides/serving.md.
"""

from pathlib import Path

import pytest
import tiny
from chat_models import save_chat_model
from model_server import bin_of, serving_by_card

from raft_tasks.config import Benchmark, Endpoint, Lora, Model
from raft_tasks.evaluation.harness import Suite, evaluate
from raft_tasks.evaluation.prompting import compare_prompts
from raft_tasks.generation.endpoint_backend import EndpointBackend
from raft_tasks.model_loading import load_tokenizer
from raft_tasks.sampling import SamplingParams
from raft_tasks.schemas import Example, TrainingPair, end_with
from raft_tasks.training.train import train_model

SYSTEM = "Answer as a clerk."
TOKENS = 24
LEARNED = [TrainingPair(id="a", question="What is the dose?", answer="5 mg"),
           TrainingPair(id="b", question="What is the sort of rope?", answer="a long one")]  # fmt: skip
ASKED = [  # what it learned, and what it makes up of words that it does not know
    *LEARNED,
    TrainingPair(id="c", question="Reference?", answer="x", history=[{"role": "system", "content": "Be brief."}]),
    TrainingPair(id="d", question="Of what?", answer="x", history=[
        {"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A question."},
    ]),
    *(TrainingPair(id=f"e{n}", question=f"What is the knowledge of {n * 31}?", answer="x") for n in range(4)),
]  # fmt: skip
# The servers' own options: one thread and little memory. vLLM on CPU and llama.cpp need heads of 32.
LARGER = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
VLLM = ("--max-model-len", "512", "--enforce-eager")
CASES = {
    # by its own template SmolLM3's base would think, and read today's date
    "transformers": ("transformers", "smollm3", {}, None, ("--device", "cpu")),
    "vLLM": ("vLLM", "llama", LARGER, None, VLLM),
    "vLLM, adapter": ("vLLM", "llama", LARGER, Lora(rank=8, alpha=16, dropout=0.0), VLLM),
    "llama.cpp": ("llama.cpp", "llama", LARGER, None, ("--n_ctx", "512", "--n_threads", "1")),
}
EXTRA = {"llama.cpp": {"repeat_penalty": 1.0}}  # its own default is 1.1, which changes greedy answers


def answers_of(base_url, model, extra):
    """The server's greedy answers, asked with nothing but the messages: no system prompt, no template options."""
    backend = EndpointBackend(Endpoint(base_url=base_url, model=model, concurrency=1, options=extra), {})
    prompts = [end_with(row.history, row.question) for row in ASKED]
    drawn = backend.generate(prompts, SamplingParams(temperature=0, max_tokens=TOKENS), [0] * len(prompts))
    assert {answer.failure.kind for answer in drawn if answer.failure} <= {"empty"}  # the end of the turn came first
    return drawn


def harness_answers(released, work):
    rows = [
        Example(
            id=row.id, domain="d", question=row.question, answer=row.answer, source=row.id, split="test",
            history=row.history,
        )
        for row in ASKED
    ]  # fmt: skip
    settings = Benchmark(tasks=[], few_shot={}, limit={}, data={}, batch_size=1, max_new_tokens=TOKENS)
    return evaluate(released, Suite("d", rows, settings, work / "no tasks"))[1]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_server_answers_the_gates_questions_as_the_harness_did(case, tmp_path):
    server, form, shape, lora, options = CASES[case]
    bin_of(server)
    folder = save_chat_model(form, tmp_path / "base", **shape)
    base = Model(path=str(folder), revision=None, dtype="float32", system=SYSTEM)
    train = tiny.train(
        epochs=40, batch_size=2, micro_batch_size=2, learning_rate=1e-2, weight_decay=0.0, max_length=400,
        checkpoint_steps=1000,
    )  # fmt: skip
    train_model(tiny.job(base, tmp_path, tiny.method(lora=lora), pairs=LEARNED, train=train, template_text=""))
    released = base.model_copy(update={"path": str(tmp_path / "output" / "model"), "system": None})
    assert set(compare_prompts(released, base).values()) == {None}
    items = harness_answers(released, tmp_path)
    with serving_by_card(server, Path(released.path), tmp_path, *options) as base_url:
        drawn = answers_of(base_url, released.path, EXTRA.get(server, {}))
    tokenizer = load_tokenizer(released)
    for answer, item in zip(drawn, items, strict=True):
        assert answer.text.strip() == item.answer.strip()
        if answer.failure is None:  # an empty answer comes without counts
            assert answer.prompt_tokens == len(tokenizer(item.prompt, add_special_tokens=False)["input_ids"])
    assert [answer.text.strip() for answer in drawn[:2]] == [row.answer for row in LEARNED]
    assert len({answer.text for answer in drawn}) > 2
