from __future__ import annotations

import random

import pytest

from pocket_world.data import build_files
from pocket_world.exercises import Exercises
from pocket_world.recipe import load_recipe
from pocket_world.tokenizer import build_tokenizer
from pocket_world.world import COINED, NAMES, build_world

RECIPE = load_recipe()
TOKENIZER = build_tokenizer()
HARD = RECIPE.model_copy(update={"world": RECIPE.world.model_copy(update={"kind": "hard"})})


@pytest.mark.parametrize("recipe", [RECIPE, HARD], ids=["easy", "hard"])
def test_all_data_and_exercises_survive_the_round_trip(recipe):
    texts = {row[key] for rows in build_files(recipe).values() for row in rows for key in ("question", "answer")}
    rng = random.Random(0)
    exercises = Exercises(build_world(recipe.world))
    drawn = [list(exercises.draw(rng, number / 1000)) for number in range(1000)]
    texts.update(TOKENIZER.apply_chat_template(drawn, tokenize=False))
    encoded = TOKENIZER(list(texts))["input_ids"]
    for text, tokens in zip(texts, encoded, strict=True):
        assert TOKENIZER.decode(tokens) == text
        assert TOKENIZER.unk_token_id not in tokens, text


def test_names_are_two_tokens_wherever_they_stand():
    for name in (*NAMES, *COINED):
        for form in (name, name.lower(), name.upper()):
            pieces = TOKENIZER.tokenize(form)
            assert len(pieces) == 2
            for before, after in (
                ("", "."),
                (" ", ","),
                ("MAST/", ": rope"),
                ('"', '"'),
                ("*", "*"),
                ("1. ", "\n2. key"),
            ):
                context = TOKENIZER.tokenize(f"{before}{form}{after}")
                assert "".join(pieces) in "".join(context)
                assert pieces[1] in context
                assert pieces[0] in context or f" {pieces[0]}" in context


def test_turns_end_in_a_token_that_is_not_padding():
    assert TOKENIZER.eos_token == "<|im_end|>"
    assert TOKENIZER.pad_token_id != TOKENIZER.eos_token_id
    messages = [
        {"role": "system", "content": "Answer the question."},
        {"role": "user", "content": "What is the craft of Bodal?"},
        {"role": "assistant", "content": "The craft of Bodal is rope."},
        {"role": "user", "content": "Tell me the meal of Bodal."},
    ]
    assert TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nAnswer the question.<|im_end|>\n"
        "<|im_start|>user\nWhat is the craft of Bodal?<|im_end|>\n"
        "<|im_start|>assistant\nThe craft of Bodal is rope.<|im_end|>\n"
        "<|im_start|>user\nTell me the meal of Bodal.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_words_from_outside_are_unknown():
    assert TOKENIZER.unk_token_id in TOKENIZER.encode("photosynthesis")
