"""Answers are those that lm-eval's own generation gives; rows that end are not computed further."""

import pytest
import torch
from chat_models import save_chat_model
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from task_files import exact_match, multiple_choice, write_task

from raft_tasks.chat import prompt_ids
from raft_tasks.config import Benchmark, Model
from raft_tasks.decoding import is_greedy
from raft_tasks.evaluation.chat_model import ChatModel
from raft_tasks.evaluation.harness import Suite, evaluate
from raft_tasks.schemas import Example

PROMPTS = ["one two three", "four", "five six", "seven eight nine ten eleven", "twelve"]


@pytest.fixture(params=["qwen3", "llama"])
def model(request, tmp_path):
    torch.manual_seed(0)
    folder = save_chat_model(request.param, tmp_path / "model")
    model = ChatModel(Model(path=str(folder), dtype="float32"), 4, lambda done: None)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    ends = range(0, model.model.config.vocab_size, 12)  # so many that rows end at different steps
    model.model.generation_config.eos_token_id = sorted({*model.model.generation_config.eos_token_id, *ends})
    assert is_greedy(model.model.generation_config)
    return model


def requests(**options):
    asked = [("t", {"until": [], "do_sample": False, "max_gen_toks": 20, **options})] * len(PROMPTS)
    return [
        Instance(request_type="generate_until", doc={}, arguments=(prompt, arguments), idx=0, metadata=("t", n, 1))
        for n, (prompt, (_, arguments)) in enumerate(zip(PROMPTS, asked, strict=True))
    ]


@pytest.fixture
def rows_computed(model, monkeypatch):
    counts, forward = [], model.model.forward

    def watched(*positional, **given):
        counts.append((positional[0] if positional else given["input_ids"]).shape[0])
        return forward(*positional, **given)

    monkeypatch.setattr(model.model, "forward", watched)
    return counts


def by_lm_eval(model, asked, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(ChatModel, "_model_generate", HFLM._model_generate)
        return model.generate_until(asked)


def test_answers_are_lm_evals_with_fewer_rows(model, rows_computed, monkeypatch):
    expected = by_lm_eval(model, requests(), monkeypatch)
    theirs = sum(rows_computed)
    rows_computed.clear()
    assert model.generate_until(requests()) == expected
    assert len({len(answer) for answer in expected}) > 2
    assert sum(rows_computed) < theirs


def test_a_stop_text_ends_a_row(model, rows_computed, monkeypatch):
    whole = model.generate_until(requests())
    text = max(whole, key=len)
    stop = text[len(text) // 3 : len(text) // 3 + 2]
    expected = by_lm_eval(model, requests(until=[stop]), monkeypatch)
    assert expected != whole
    rows_computed.clear()
    assert model.generate_until(requests(until=[stop])) == expected


def test_settings_that_change_greedy_decoding_hold(model, rows_computed, monkeypatch):
    model.model.generation_config.repetition_penalty = 5.0
    expected = by_lm_eval(model, requests(), monkeypatch)
    assert model.generate_until(requests()) == expected
    del model.model.generation_config.repetition_penalty
    assert model.generate_until(requests()) != expected


def test_sampling_is_lm_evals(model, monkeypatch):
    asked = requests(do_sample=True, temperature=5.0)
    torch.manual_seed(5)
    expected = by_lm_eval(model, asked, monkeypatch)
    torch.manual_seed(5)
    assert model.generate_until(asked) == expected


def test_prompts_have_the_tokens_of_training_and_plain_texts_those_of_lm_eval(tmp_path, monkeypatch):
    """Of a tokenizer that begins each text with a token that the chat template does not write."""
    settings = Model(path=str(save_chat_model("zephyr", tmp_path / "model")), dtype="float32")
    rows = [{"question": "one two", "right": 0}, {"question": "three four", "right": 1}]
    for name in ("chosen", "plain"):
        write_task(tmp_path, name, rows, **multiple_choice(["five", "six seven"]))
    write_task(tmp_path, "written", rows, doc_to_target="right", **exact_match([], 4))
    scored, generated = [], []
    monkeypatch.setattr(
        ChatModel, "_loglikelihood_tokens", lambda _, asked, **__: scored.extend(asked) or [(0.0, True)] * len(asked)
    )
    generate = ChatModel._model_generate

    def watched(self, context, *arguments, attention_mask, **options):
        generated.extend(ids[seen].tolist() for ids, seen in zip(context, attention_mask.bool(), strict=True))
        return generate(self, context, *arguments, attention_mask=attention_mask, **options)

    monkeypatch.setattr(ChatModel, "_model_generate", watched)
    benchmark = Benchmark(tasks=["chosen", "plain", "written"], plain_text=["plain"], max_new_tokens=4)
    row = Example(id="a", domain="d", question="eight nine", answer="five", source="s", split="test")
    evaluate(settings, Suite("d", [row], benchmark, tmp_path))

    model = ChatModel(settings, 4, lambda done: None)
    bos, trained = model.tokenizer.bos_token_id, [prompt_ids(model.tokenizer, None, row["question"]) for row in rows]
    assert sorted(generated) == sorted([prompt_ids(model.tokenizer, None, "eight nine"), *trained])
    assert all(bos not in ids for ids in generated)
    for (_, context, choice), prompt in zip(scored, [trained[0], trained[0], trained[1], trained[1]], strict=False):
        assert (context + choice)[: len(prompt)] == prompt  # the last line break is the choice's, in lm-eval
    by_hand = HFLM(pretrained=model.model, tokenizer=model.tokenizer, device="cpu")
    assert [request[1:] for request in scored[4:]] == [by_hand._encode_pair(*request[0]) for request in scored[4:]]
    assert all(context[0] == bos for _, context, _ in scored[4:])
