"""Our decoding against transformers' `generate`, row by row: rows leave, prefixes are shared, nothing else changes."""

import pytest
import torch
from transformers import (
    GenerationConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from raft_tasks.decoding import decode, greedy, greedy_until, is_greedy

SYSTEM = list(range(20, 44))  # 24 tokens that all prompts share
PROMPTS = [[*SYSTEM, *rest] for rest in ([5, 6, 7, 8, 9], [10, 11], [12, 13, 14], [15], [16] * 12)]
STOPS = [2, 3, *range(40, 52)]  # so many that rows end at different steps
SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.5, "head_dim": 8,
    "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE)),
    "sliding window": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8)),
    "convolutions": lambda: Lfm2ForCausalLM(Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"])),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(3)
    return MODELS[request.param]().eval()


@pytest.fixture
def widths(model, monkeypatch):
    """(rows, tokens) of every forward pass."""
    shapes, forward = [], model.forward
    monkeypatch.setattr(
        model, "forward", lambda **given: (shapes.append(tuple(given["input_ids"].shape)), forward(**given))[1]
    )
    return shapes


@torch.no_grad()
def generated(model, prompt, length, stops=STOPS):
    settings = GenerationConfig(do_sample=False, max_new_tokens=length, eos_token_id=stops, pad_token_id=1)
    return model.generate(torch.tensor([prompt]), generation_config=settings)[0, len(prompt) :].tolist()


@torch.no_grad()
def test_greedy_decoding_is_generates(model):
    expected = [generated(model, prompt, 20) for prompt in PROMPTS]
    assert len({len(row) for row in expected}) > 2  # they end at different steps
    assert decode(model, PROMPTS, greedy, STOPS, 20) == expected
    assert decode(model, PROMPTS[:1], greedy, STOPS, 20) == expected[:1]
    assert decode(model, [PROMPTS[1], [7, 8]], greedy, STOPS, 20) == [expected[1], generated(model, [7, 8], 20)]
    endless = [generated(model, prompt, 6, None) for prompt in PROMPTS]
    assert decode(model, PROMPTS, greedy, [], 6) == endless
    assert {len(row) for row in endless} == {6}


@torch.no_grad()
def test_the_rows_and_steps_that_a_choice_is_asked_for(model):
    asked = []

    def choose(logits, rows, step):
        asked.append((rows.tolist(), step, logits.dtype, tuple(logits.shape)))
        return torch.where(rows == step, 2, 60)  # row n ends at step n

    completions = decode(model, PROMPTS, choose, STOPS, 20)
    assert completions == [[60] * row + [2] for row in range(5)]
    assert [step for _, step, _, _ in asked] == list(range(5))
    assert all(dtype == torch.float32 and shape == (len(rows), 64) for rows, _, dtype, shape in asked)
    leaves = not any("conv" in layer for layer in getattr(model.config, "layer_types", None) or [])
    assert [rows for rows, *_ in asked] == [list(range(step if leaves else 0, 5)) for step in range(5)]


@torch.no_grad()
@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_a_common_prefix_is_read_once_and_ended_rows_are_not_computed(model, widths):
    lengths = [len(row) for row in decode(model, PROMPTS, greedy, STOPS, 20)]
    assert widths[:2] == [(1, 24), (5, 12)]
    assert widths[2:] == [(sum(length > step for length in lengths), 1) for step in range(1, max(lengths))]
    widths.clear()
    decode(model, PROMPTS[:2], greedy, STOPS, 1)
    assert widths == [(2, 29)]  # 24 tokens saved do not pay for a pass of their own
    widths.clear()
    decode(model, [SYSTEM] * 5, greedy, STOPS, 1)
    assert widths == [(1, 23), (5, 1)]  # the last token's logits are needed of every row


@torch.no_grad()
@pytest.mark.parametrize("model", ["sliding window"], indirect=True)
def test_no_prefix_is_shared_where_padding_would_count_in_a_window(model, widths):
    decode(model, PROMPTS, greedy, STOPS, 1)
    assert widths == [(5, 36)]


class Letters:
    """A tokenizer of one letter a token."""

    def encode(self, text, add_special_tokens):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


def test_a_row_that_has_said_a_stop_text_ends_with_its_next_token():
    texts = ["one. two", "three", "o.o"]

    def logits(rows, step):
        likely = torch.tensor([ord(texts[row][step]) if step < len(texts[row]) else ord("z") for row in rows])
        return torch.nn.functional.one_hot(likely, 128).float()

    choose, answers, rows = greedy_until([".", "re"], Letters(), 0), {0: "", 1: "", 2: ""}, torch.arange(3)
    for step in range(5):
        tokens = choose(logits(rows.tolist(), step), rows, step)
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            answers[row] += chr(token)
        rows = rows[tokens != 0]
    assert answers == {0: "one.\0", 1: "thre\0", 2: "o.\0"}


@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        ({}, True),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}, True),  # Qwen3's: read when sampling
        ({"repetition_penalty": 1.05}, False),  # Qwen2.5's: transformers applies it to greedy decoding too
        ({"num_beams": 4}, False),
        ({"no_repeat_ngram_size": 3}, False),
        ({"suppress_tokens": [5]}, False),
    ],
)
def test_what_changes_greedy_decoding_is_seen(settings, plain):
    assert is_greedy(GenerationConfig(eos_token_id=[2], pad_token_id=1, bos_token_id=0, **settings)) is plain
