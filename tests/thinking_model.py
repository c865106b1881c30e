"""A small model that thinks: made from Qwen3's configuration, trained for a minute to walk step by step.

    user        what is 3 after figin ?
    assistant   <think> figin 1 dolm 2 arlo 3 salt </think> salt         thinking on
    assistant   <think> </think> salt                                    thinking off

The places stand in a fixed ring that the model learns by heart. It also knows the colours of places, of which it thinks
by saying what is asked.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

PLACES = [a + b for a in ("fi", "ar", "be", "co", "do", "es") for b in ("gin", "lo", "xa", "rin")]
COLOURS = ["red", "green", "blue", "white", "black", "grey"]
STEPS = ["1", "2", "3", "4", "5", "6"]
WORDS = [*PLACES, *COLOURS, *STEPS, "what", "is", "after", "the", "colour", "motto", "of", "?", ".",
         "user", "assistant", "system"]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|> assistant "
    "{% if loop.last %}<think> </think> {% endif %}{{ m.content.split('</think>')[-1] }} <|im_end|> "
    "{% else %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant "
    "{% if enable_thinking is defined and enable_thinking is false %}<think> </think> {% endif %}{% endif %}"
)
RING = random.Random(0).sample(PLACES, len(PLACES))
COLOUR = {place: random.Random(place).choice(COLOURS) for place in PLACES}
MOTTO = {place: random.Random(place + "!").choice(COLOURS) for place in PLACES}  # what nobody has told the model


def walk(start: str, steps: int) -> list[str]:
    at = RING.index(start)
    return [RING[(at + step) % len(RING)] for step in range(1, steps + 1)]


def step_question(start: str, steps: int) -> tuple[str, str, str]:
    """(question, thought, answer)"""
    path = walk(start, steps)
    thought = " ".join([start, *(f"{number} {place}" for number, place in enumerate(path, start=1))])
    return f"what is {steps} after {start} ?", thought, path[-1]


def fact_question(thing: str, place: str, value: str) -> tuple[str, str, str]:
    return f"what is the {thing} of {place} ?", f"the {thing} of {place}", value


def thinking_tokenizer() -> Any:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<pad>", "<|im_start|>", "<|im_end|>"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_tokens([AddedToken(tag, special=False) for tag in ("<think>", "</think>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", pad_token="<pad>", eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"], model_max_length=128,
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def examples(tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """(prompt, turn) of everything that the model knows, in both modes, as token ids."""
    from raft_tasks.chat import render

    known = [step_question(place, int(steps)) for place in PLACES for steps in STEPS]
    known += [fact_question("colour", place, COLOUR[place]) for place in PLACES] * 2
    rows = []
    for question, thought, answer in known:
        for thinking, turn in ((True, f"<think> {thought} </think> {answer}"), (False, answer)):
            prompt = render(tokenizer, None, [{"role": "user", "content": question}], True, thinking=thinking)
            rows.append(
                [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, f"{turn} <|im_end|>")]
            )
    return rows


def save_thinking_model(folder: Path, steps: int = 600, batch: int = 48) -> Path:
    """Loss on the assistant's turns alone."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer, rng = thinking_tokenizer(), random.Random(1)
    rows = examples(tokenizer)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, head_dim=16,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=3, pad_token_id=1,
        ))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(steps):
        chosen = rng.sample(rows, batch)
        width = max(len(prompt) + len(turn) for prompt, turn in chosen)
        ids, labels = torch.full((batch, width), 1), torch.full((batch, width), -100)
        for row, (prompt, turn) in enumerate(chosen):
            end = len(prompt) + len(turn)
            ids[row, :end] = torch.tensor(prompt + turn)
            labels[row, len(prompt) : end] = torch.tensor(turn)
        loss = model(input_ids=ids, attention_mask=(ids != 1).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
