"""Choices are scored after one pass over their context as lm-eval scores them, with a pass over everything for each."""

import pytest
import torch
from chat_models import save_chat_model
from lm_eval.models.huggingface import HFLM
from transformers import MistralConfig, MistralForCausalLM

from raft_tasks.config import Model
from raft_tasks.evaluation import chat_model, shared_contexts
from raft_tasks.evaluation.chat_model import ChatModel

CONTEXTS = [[5], [6, 7, 8] * 4, list(range(9, 40)), [41, 42, 43], list(range(50, 60))]
CHOICES = [[[1], [2, 3], [4]], [[5], [6, 7, 8]], [[9, 10, 11], [12], [13, 14], [15] * 9], [[16, 17]], [[1], [2], [3]]]
REQUESTS = [(("", ""), context, choice) for context, group in zip(CONTEXTS, CHOICES, strict=True) for choice in group]


def test_requests_are_grouped_where_a_pass_is_saved():
    shared, others = shared_contexts.by_context(REQUESTS)
    assert shared == [[5, 6, 7, 8], [3, 4]]  # the longest context first; a short one, a single choice, letters: not
    assert others == [0, 1, 2, 9, 10, 11, 12]


@pytest.mark.parametrize("form", ["qwen3", "llama"])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_scores_are_lm_evals(form, batch_size, tmp_path):
    folder = save_chat_model(form, tmp_path / "model")
    reported = []
    model = ChatModel(Model(path=str(folder), dtype="float32"), batch_size, reported.append)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    likeliest = model.model(torch.tensor([CONTEXTS[2]])).logits[0, -1].argmax().item()
    requests = [*REQUESTS, (("", ""), CONTEXTS[2], [likeliest])]
    expected = HFLM._loglikelihood_tokens(model, requests, disable_tqdm=True)
    scores = model._loglikelihood_tokens(requests)
    assert [greedy for _, greedy in scores] == [greedy for _, greedy in expected]
    assert scores[-1][1]
    assert [score for score, _ in scores] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert len({round(score, 3) for score, _ in scores}) > 10


def test_log_likelihoods_of_a_bfloat16_model_are_float32(tmp_path):
    folder = save_chat_model("qwen3", tmp_path / "model", initializer_range=0.5)
    model = ChatModel(Model(path=str(folder), dtype="bfloat16"), 4, lambda done: None)
    shared, others = shared_contexts.by_context(REQUESTS)
    scores = model._loglikelihood_tokens(REQUESTS)
    for numbers in ([number for group in shared for number in group], others):
        exact = torch.tensor([scores[number][0] for number in numbers])
        assert (exact != exact.bfloat16().float()).sum() > len(numbers) / 2


def test_a_context_is_read_once_for_its_choices(tmp_path, monkeypatch):
    model = ChatModel(Model(path=str(save_chat_model("qwen3", tmp_path / "model")), dtype="float32"), 4, lambda _: None)
    shapes, forward = [], model.model.forward

    def watched(*ids, **given):
        shapes.append(tuple((ids[0] if ids else given["input_ids"]).shape))
        return forward(*ids, **given)

    monkeypatch.setattr(model.model, "forward", watched)
    requests = [(("", ""), CONTEXTS[2], choice) for choice in CHOICES[2]]
    model._loglikelihood_tokens(requests)
    assert shapes == [(1, 31), (4, 8)]
    shapes.clear()
    model.batch_size_per_gpu = 3  # memory for so many rows
    model._loglikelihood_tokens(requests)
    assert shapes == [(1, 31), (3, 2), (1, 31), (1, 8)]
    shapes.clear()
    monkeypatch.setattr(chat_model, "is_of_keys", lambda cache: False)  # a model with a recurrent state
    model._loglikelihood_tokens(requests)
    assert shapes == [(3, 39), (1, 31)]


def test_a_sliding_window_sees_what_it_saw_in_one_pass():
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    torch.manual_seed(3)
    model = MistralForCausalLM(MistralConfig(**shape, **heads, initializer_range=0.5, sliding_window=8)).eval()
    scores = iter(shared_contexts.score_choices(model, CONTEXTS, CHOICES))
    for context, choices in zip(CONTEXTS, CHOICES, strict=True):
        for choice in choices:
            with torch.no_grad():
                logits = model(torch.tensor([context + choice])).logits[0, len(context) - 1 : -1]
            expected = logits.log_softmax(-1).gather(-1, torch.tensor(choice)[:, None]).sum().item()
            assert next(scores) == (pytest.approx(expected, abs=1e-4), logits.argmax(-1).tolist() == choice)
