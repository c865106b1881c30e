"""Anchors from dialogues of the base with itself, and from texts without any prompt."""

from pathlib import Path
from typing import Any

import pytest
import torch
from anchor_settings import with_settings
from chat_models import chat_tokenizer
from pydantic import ValidationError

from raft_tasks.chat import ChatError, prompt_ids, text_beginning
from raft_tasks.config import Model
from raft_tasks.config.base import resolved
from raft_tasks.generation.anchor_cleaning import Cleaning, clean_anchors
from raft_tasks.generation.anchors import generate_anchors, user_prefix
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.model_loading import load_model
from raft_tasks.sampling import SamplingParams, uniform_draws
from raft_tasks.schemas import Anchor, GeneratedAnchor, Turn
from raft_tasks.seeds import derive_seed
from raft_tasks.training.anchor_logits import ROWS, AnchorLogits, encode_anchors, is_encodable, write_anchors
from raft_tasks.training.conversations import ConversationError, Encoder

ROOT = Path(__file__).parents[2]
POCKET = Model(path=str(ROOT / "models/pocket-base"), revision=None, dtype="float32", system=None)
DIALOGUE = with_settings(prompt_source="dialogue", max_new_tokens=60, answer_max_new_tokens=40)
BEGINNING = with_settings(prompt_source="beginning", unfinished="keep", answer_max_new_tokens=50)


@pytest.fixture(scope="module")
def pocket() -> TransformersBackend:
    return TransformersBackend(POCKET)


@pytest.fixture(scope="module")
def dialogues(pocket: TransformersBackend) -> list[GeneratedAnchor]:
    return generate_anchors(range(24), pocket, DIALOGUE)


@pytest.fixture(scope="module")
def texts(pocket: TransformersBackend) -> list[GeneratedAnchor]:
    return generate_anchors(range(40), pocket, BEGINNING)


def test_new_sources_leave_the_settings_of_finished_sets_and_cached_calls_as_they_are() -> None:
    assert resolved(with_settings()) == {
        "model": "base", "count": 400, "prompt_source": "generated", "hints": [], "prompts": None, "without": None,
        "temperature": 1.0, "answer_temperature": 1.0, "top_p": 1.0, "max_new_tokens": 24, "answer_max_new_tokens": 12,
        "unfinished": "drop", "batch_size": 8, "chunk_rows": 64, "seed": 0, "duplicate_overlap": 0.8,
        "held_out_overlap": 0.8, "min_well_formed": 0.5, "top_k": 64,
    }  # fmt: skip
    assert SamplingParams(stop_token_ids=frozenset({3})).cache_key(7) == [1.0, 16, [3], [], 1.0, 7]
    assert SamplingParams(ignore_eos=True).cache_key(7) == [1.0, 16, [], [], 1.0, 7, "ignore_eos"]


@pytest.mark.parametrize("name", ["smollm3", "llama", "phi", "qwen3"])
def test_a_second_turn_begins_where_the_template_puts_a_users_words(name: str) -> None:
    tokenizer = chat_tokenizer(name)
    history: list[Turn] = [{"role": "user", "content": "Be brief."}, {"role": "assistant", "content": "You teach."}]
    prefix = user_prefix(tokenizer, "Be brief.", None, history)
    whole = prompt_ids(tokenizer, "Be brief.", [*history, {"role": "user", "content": "What is it?"}])
    assert whole[: len(prefix)] == prefix
    assert tokenizer.decode(whole[len(prefix) :]).strip().startswith("What is it?")
    assert len(prefix) > len(user_prefix(tokenizer, "Be brief."))


def test_a_dialogue_keeps_the_first_turn_and_answer_as_its_history(
    pocket: TransformersBackend, dialogues: list[GeneratedAnchor]
) -> None:
    once = DIALOGUE.model_copy(update={"prompt_source": "generated"})
    first = {row.id: row for row in generate_anchors(range(24), pocket, once)}
    assert [row.id.removesuffix("-second") for row in dialogues] == list(first)
    continued = [row for row in dialogues if row.id.endswith("-second")]
    assert len(continued) > 15
    for row in dialogues:
        opening = first[row.id.removesuffix("-second")]
        if row not in continued:
            assert row == opening
            assert not (row.answer and row.answer_finished)
            continue
        assert row.history == [
            {"role": "user", "content": opening.prompt},
            {"role": "assistant", "content": opening.answer},
        ]
        assert row.prompt != opening.prompt
    # Each answer is what the base says to its turn after the history, drawn with a seed of its own.
    answered = [row for row in continued if row.answer]
    params = SamplingParams(max_tokens=40, batch_size=8)
    prompts = [[*row.history, Turn(role="user", content=row.prompt)] for row in answered]
    again = pocket.generate(prompts, params, [derive_seed(0, "anchor-answer", row.id) for row in answered])
    assert [text.text.strip() for text in again] == [row.answer for row in answered]
    assert generate_anchors([17, 3], pocket, DIALOGUE) == [dialogues[17], dialogues[3]]


def test_a_dialogue_is_cleaned_and_encoded_with_its_history(
    pocket: TransformersBackend, dialogues: list[GeneratedAnchor]
) -> None:
    kept, _, statistics = clean_anchors(dialogues, Cleaning(DIALOGUE))
    assert len(kept) > 10
    assert statistics.kept == len(kept)
    told = next(row for row in kept if row.history)
    held_out = [str(told.history[0]["content"])]
    near = {row.id: row.near for row in clean_anchors(dialogues, Cleaning(DIALOGUE, held_out))[1]}
    assert near[told.id] == held_out[0]  # an earlier turn tells it
    tokenizer = pocket.tokenizer
    [encoded] = encode_anchors([told], Encoder(tokenizer, 512))
    assert encoded.prompt_ids == prompt_ids(tokenizer, None, [*told.history, Turn(role="user", content=told.prompt)])
    assert tokenizer.decode(encoded.completion_ids) == f"{told.answer}<|im_end|>"  # the last answer alone


def test_a_text_is_what_a_plain_loop_draws_past_every_end(
    pocket: TransformersBackend, texts: list[GeneratedAnchor]
) -> None:
    rows = texts[:6]
    tokenizer, model = pocket.tokenizer, pocket.model
    for number in (0, 4):
        draws = uniform_draws([derive_seed(0, "anchor-text", f"anchor-{number:05d}")], 50)[0]
        ids = [tokenizer.convert_tokens_to_ids("<|im_start|>")]
        for draw in draws:
            with torch.inference_mode():
                cumulative = model(torch.tensor([ids])).logits[0, -1].double().softmax(-1).cumsum(-1)
            ids.append(int((cumulative / cumulative[-1] <= draw).sum()))
        assert rows[number].answer == tokenizer.decode(ids[1:])
        assert (rows[number].prompt, rows[number].answer_finished) == ("", False)
    assert all("<|im_end|>\n<|im_start|>" in row.answer for row in rows if "Background" not in row.answer)
    assert generate_anchors([4], pocket, BEGINNING) == [rows[4]]
    [after] = pocket.generate(["What is the meal of Bamor?"], SamplingParams(temperature=0, max_tokens=40), [0])
    assert after.finished  # other calls still end


def test_the_beginning_of_a_text_is_its_own_token_or_the_templates_first(pocket: TransformersBackend) -> None:
    assert text_beginning(pocket.tokenizer) == pocket.tokenizer.convert_tokens_to_ids("<|im_start|>")
    llama = chat_tokenizer("llama")
    assert text_beginning(llama) == llama.bos_token_id
    bare: Any = chat_tokenizer("qwen3")
    bare.chat_template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    with pytest.raises(ChatError, match=r"has no beginning-of-text token, and its chat template begins with"):
        text_beginning(bare)


def test_every_token_of_a_text_is_regularised_and_texts_are_told_apart(
    texts: list[GeneratedAnchor], tmp_path: Path
) -> None:
    again = texts[0].model_copy(update={"id": "again"})
    kept, _, statistics = clean_anchors([*texts, again], Cleaning(BEGINNING))
    assert len(kept) > 20
    assert statistics.rejected["duplicate"] == 1
    assert statistics.distinct_1 > 0
    assert "empty prompt" not in statistics.rejected
    base, tokenizer = load_model(POCKET, torch.float32)
    chat = Anchor(id="chat", prompt="What is the meal of Bamor?", answer="The meal of Bamor is clay.")
    encoded = encode_anchors([kept[0], chat, kept[1]], Encoder(tokenizer, 512, system="The system prompt of a chat."))
    assert [row.id for row in encoded] == [kept[0].id, "chat", kept[1].id]
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert (encoded[0].prompt_ids, encoded[0].teacher_prompt_ids) == ([start], None)
    assert tokenizer.decode(encoded[0].completion_ids) == kept[0].answer
    write_anchors(tmp_path, kept[:3], base, Encoder(tokenizer, 512), 8, 2)
    stored = AnchorLogits.load(tmp_path / "base.safetensors", encode_anchors(kept[:3], Encoder(tokenizer, 512)))
    assert (tmp_path / ROWS).exists()
    with torch.no_grad():
        logits = base(input_ids=torch.tensor([[start, *encoded[0].completion_ids]])).logits[0, :-1]
    assert torch.equal(stored.ids[: len(logits)].long().sort().values, logits.topk(8).indices.sort().values)
    assert len(logits) == len(encoded[0].completion_ids) == int(stored.lengths[0])


def test_a_text_that_does_not_fit_or_is_not_read_is_refused(pocket: TransformersBackend) -> None:
    text = Anchor(id="text", prompt="", answer="<|im_start|>user\nWhat is the meal of Bamor?", finished=False)
    assert is_encodable(text, Encoder(pocket.tokenizer, 64))
    assert not is_encodable(text.model_copy(update={"answer": "<|unk|>"}), Encoder(pocket.tokenizer, 64))
    with pytest.raises(ConversationError, match=r"text: got \d+ tokens, 0 of them unknown.*expected 2 to 8 known ones"):
        encode_anchors([text], Encoder(pocket.tokenizer, 8))


@pytest.mark.parametrize("change", [{"hints": ["Teach."]}, {"unfinished": "drop"}, {"model": "server"}])
def test_a_text_has_neither_template_nor_end(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="neither template nor end"):
        with_settings(**{"prompt_source": "beginning", "unfinished": "keep", **change})
