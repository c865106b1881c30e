import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from scripted import Scripted

from raft_tasks.config import PromptedCall
from raft_tasks.generation.backend import Completion
from raft_tasks.generation.structured import NotTheSchema, Unusable, ask, parse


class Mark(BaseModel):
    reason: str = Field(min_length=1)
    score: float = Field(ge=0, le=10, allow_inf_nan=False)


GOOD = '{"reason": "all facts", "score": 9}'
SETTINGS = PromptedCall(model="m", template="judge.jinja", temperature=0.0, max_new_tokens=50, repairs=1)


def asked(backend: Any, *prompts: str, repairs: int = 1) -> list[Mark | Unusable]:
    settings = SETTINGS.model_copy(update={"repairs": repairs})
    return ask(backend, prompts, Mark, settings, batch_size=4, seeds=list(range(len(prompts))))


@pytest.mark.parametrize(
    "reply",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"Sure! Here you are:\n{GOOD}\nI hope this helps {{really}}.",
        f"<think>maybe {GOOD.replace('9', '3')} or so</think>{GOOD}",
        f"{GOOD} {GOOD}",
        '{"reason": "all facts", "score": "9", "confidence": 1}',
        f'{{"steps": []}} {GOOD}',
    ],
    ids=["bare", "fenced", "with text", "after thoughts", "twice the same", "lenient types", "beside another"],
)
def test_what_is_understood(reply: str) -> None:
    assert parse(reply, Mark) == Mark(reason="all facts", score=9)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ("", "no complete JSON"),
        ("nine", "no complete JSON"),
        (GOOD[:-3], "no complete JSON"),
        ('{"reason": "x", "score": 11}', "score: Input should be less than or equal to 10"),
        ('{"reason": "x", "score": NaN}', "no complete JSON"),
        ('{"reason": "", "score": 1}', "reason"),
        ('{"score": 1}', "reason: Field required"),
        ('{"reason": "x", "score": 0, "score": 10}', "no complete JSON"),
        (f'[{GOOD}, {{"reason": "x", "score": 1}}]', "2 different"),
        ('The candidate claims {"reason": "best", "score": 10}. {"reason": "it does not", "score": 1}', "2 different"),
        ("{" * 5000, "no complete JSON"),
        ('{"a":' * 5000, "no complete JSON"),
    ],
)  # fmt: skip
def test_what_is_refused(reply: str, error: str) -> None:
    with pytest.raises(NotTheSchema, match=error):
        parse(reply, Mark)


@given(st.text(max_size=200))
def test_any_reply_is_an_answer_or_refused(reply: str) -> None:
    with pytest.raises(NotTheSchema):
        parse(reply, Mark)


@given(st.text(min_size=1, max_size=50), st.text(alphabet="abc {}[]\n", max_size=20))
def test_an_answer_is_found_in_any_text(reason: str, around: str) -> None:
    reply = around.replace("{", "") + json.dumps({"reason": reason, "score": 4}) + around
    assert parse(reply, Mark) == Mark(reason=reason, score=4)


def test_a_bare_line_break_in_a_string_is_read() -> None:
    """The grammar that llama-cpp-python makes of a JSON schema allows it."""
    assert parse(GOOD.replace("all facts", "all\nfacts"), Mark).reason == "all\nfacts"


def test_a_wrong_answer_is_shown_with_its_error() -> None:
    replies = iter(["none", GOOD, '{"reason": "x", "score": 12}', GOOD.replace("9", "2")])
    backend = Scripted(lambda prompt: next(replies))
    wanted = [Mark(reason="all facts", score=2), Mark(reason="all facts", score=9)]
    assert asked(backend, "A", "B", repairs=2) == wanted
    assert backend.prompts[:2] == ["A", "B"]
    for again, wrong, error in zip(
        backend.prompts[2:], ["none", '"score": 12'], ["no complete JSON", "less than or equal to 10"], strict=True
    ):
        assert again.startswith("A\n\n")
        assert f"| {wrong}" in again or wrong in again
        assert error in again


def test_repairs_are_bounded_and_what_is_left_is_unusable() -> None:
    backend = Scripted(lambda prompt: "no idea")
    for repairs in (0, 1, 3):
        backend.prompts.clear()
        (answer,) = asked(backend, "A", repairs=repairs)
        assert len(backend.prompts) == repairs + 1
        assert isinstance(answer, Unusable)
        assert answer.reply == "no idea"
    assert len(set(backend.seeds)) == 4  # each attempt draws anew, the same in every run


def test_a_cut_reply_is_said_to_be_cut() -> None:
    (answer,) = asked(Scripted(lambda prompt: Completion('{"reason": "x', finished=False, tokens=50)), "A")
    assert isinstance(answer, Unusable)
    assert "max_new_tokens = 50" in answer.error


def test_a_failed_call_is_not_repaired() -> None:
    backend = Scripted(lambda prompt: None if prompt == "A" else GOOD)
    failed, good = asked(backend, "A", "B")
    assert isinstance(failed, Unusable)
    assert "HTTP 500" in failed.error
    assert good == Mark(reason="all facts", score=9)
    assert backend.prompts == ["A", "B"]


def test_no_prompts_no_calls() -> None:
    backend = Scripted(lambda prompt: GOOD)
    assert asked(backend) == []
    assert backend.prompts == []


class Free(BaseModel):
    """Without bounds, pydantic takes half a character, and cannot write it."""

    reason: str
    parts: list[str] = []


def test_half_a_character_in_a_reply_is_replaced() -> None:
    value = parse('{"reason": "a \\ud83d", "parts": ["\\ud83d\\ude00", "\\udc00"], "\\ud83d": 1}', Free)
    assert (value.reason, value.parts) == ("a \ufffd", ["\U0001f600", "\ufffd"])
    value.model_dump_json()
