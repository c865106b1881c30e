"""From a conversation, as public data sets write it, to the question-answer pairs that are to be learned from it.

    [{"role": "user", "content": "What is tin?"}, {"role": "assistant", "content": "A bird.", "weight": 0},
     {"role": "user", "content": "Really?"}, {"role": "assistant", "content": "A metal."}]

gives the second pair alone, with the first two messages as its history. What a pair cannot hold (tool calls, images,
reasoning beside the content) is an `UnusableError`: learning the rest would teach another answer than the data say.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from raft_tasks.artifacts import unique_keys
from raft_tasks.config import Chat
from raft_tasks.schemas import Turn
from raft_tasks.sources.marks import LEARNED_KEYS, MARK_LIKE, MASKED_KEYS, find_cut, is_learned, plain_key
from raft_tasks.sources.roles import INPUTS

Role = Literal["system", "user", "assistant"]
ROLES: dict[str, Role] = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "model": "assistant", "bot": "assistant",
}  # fmt: skip
TEXT_PARTS = ("text", "input_text", "output_text")
# What a message may hold beside its text that a question-answer pair cannot, by plain key.
BEYOND_TEXT = {
    **dict.fromkeys(("toolcalls", "toolcall", "tooluse", "toolplan"), "calls a tool"),
    "functioncall": "calls a function", "functioncalls": "calls functions",
    **dict.fromkeys(("reasoningcontent", "reasoningtext", "reasoning", "reasoningdetails", "think", "thinking",
                     "thinkingcontent", "thinkingblocks", "thought", "thoughts", "cot", "chainofthought"),
                    "has reasoning beside its content"),
    "refusal": "is a refusal", "error": "is an error",
    "audio": "has sound", "images": "has images", "image": "has an image",
    "videos": "has videos", "video": "has a video", "attachments": "has attachments", "files": "has files",
    "traindetail": "marks parts of it as not learned", "trainingdetail": "marks parts of it as not learned",
    "prefix": "is the beginning of an answer", "partial": "is the beginning of an answer",
}  # fmt: skip
NONE: tuple[Any, ...] = (None, False, "", [], {})


class UnusableError(Exception):
    """Why a row cannot be used; `rule` is what such rows are counted by."""

    def __init__(self, reason: str, rule: str = "unusable") -> None:
        super().__init__(reason)
        self.rule = rule


@dataclass(frozen=True)
class Pair:
    number: int  # of the pair in its conversation, from 1
    question: str
    answer: str
    history: list[Turn]  # all that was messages_before before


@dataclass(frozen=True)
class _Message:
    role: Role
    content: str
    learned: bool


def learned_pairs(messages: Any, chat: Chat) -> list[Pair]:
    """The pairs of a conversation that `chat` asks for, without those that are marked as not learned.

    Raises:
        UnusableError: not a conversation, turns that pairs cannot hold, or no pair that is learned.
    """
    column = chat.column
    turns = [_message(message, column) for message in _as_list(messages, column)]
    system = []
    while turns and turns[0].role == "system":
        system.append(turns.pop(0).content)
    before = [Turn(role="system", content=text)] if (text := "\n\n".join(filter(None, system))) else []
    if any(turn.role == "system" for turn in turns):
        raise UnusableError(f"{column}: a system message after the first turn")
    wanted = ["user", "assistant"] * (len(turns) // 2)
    if not turns or [turn.role for turn in turns] != wanted:
        roles = ", ".join(turn.role for turn in turns[:6]) or "none"
        raise UnusableError(f"{column}: got the turns {roles}; expected user and assistant in turn, answer last")
    if chat.conversation == "single" and len(turns) > 2:
        raise UnusableError(
            f"{column}: {len(turns) // 2} questions, expected one (chat.conversation: single)", "several turns"
        )
    if chat.conversation == "first":
        turns = turns[:2]
    messages_before = [*before, *(Turn(role=turn.role, content=turn.content) for turn in turns)]
    pairs = [
        Pair(at // 2 + 1, turns[at].content, turns[at + 1].content, messages_before[: len(before) + at])
        for at in range(len(turns) - 2 if chat.conversation == "last" else 0, len(turns), 2)
        if turns[at + 1].learned
    ]
    if not pairs:
        raise UnusableError(
            f"{column}: no answer that chat.conversation asks for is to be learned (weight 0 or the like)",
            "not learned",
        )
    return pairs


def _as_list(messages: Any, column: str) -> list[Any]:
    if isinstance(messages, str):  # CSV has no other way to write a list
        try:
            messages = json.loads(messages, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            raise UnusableError(f"{column} is not a JSON list of messages: {error}") from error
    if isinstance(messages, Mapping) and messages and all(isinstance(values, list) for values in messages.values()):
        if len({len(values) for values in messages.values()}) > 1:
            raise UnusableError(f"{column}: columns of different lengths")
        messages = [dict(zip(messages, row, strict=True)) for row in zip(*messages.values(), strict=True)]
    if not isinstance(messages, list) or not messages:
        raise UnusableError(f"{column}: got {shown(messages)}, expected a list of messages")
    return messages


def _message(message: Any, column: str) -> _Message:
    """A message of role and content (OpenAI) or from and value (ShareGPT); parts are joined if all are text."""
    names = ("role", "content")
    if isinstance(message, dict) and not {*names} <= message.keys():
        names = ("from", "value")
    if not isinstance(message, dict) or not {*names} <= message.keys():
        raise UnusableError(f"{column}: got {shown(message)}, expected messages of role and content, or from and value")
    name, content = message[names[0]], message[names[1]]
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise UnusableError(f"{column}: got the role {shown(name)}, expected system, user or assistant")
    place = f"{column}: a message of the {role}"
    _check_text_alone(message, place)
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") in TEXT_PARTS]
        if len(parts) < len(content) or not all(isinstance(part.get("text"), str) for part in parts):
            raise UnusableError(f"{place} has parts that are not text")
        for part in parts:
            _check_text_alone(part, place)
            if not _is_learned(part, column):
                raise UnusableError(f"{place} marks parts of it as not learned, which a pair cannot hold")
        content = "\n".join(part["text"] for part in parts)
    if role == "system" and content is None:
        content = ""
    return _Message(role, text_of(content, place), _is_learned(message, column))


def _check_text_alone(message: dict[str, Any], place: str) -> None:
    """Raises UnusableError for a message, or a part of one, that is more than its text, or less than a whole turn."""
    for key, value in message.items():
        if value not in NONE and (reason := BEYOND_TEXT.get(plain_key(key))):
            raise UnusableError(f"{place} {reason} ({key}), which a pair cannot hold")
        if value not in NONE and plain_key(key) in INPUTS:
            raise UnusableError(f"{place} has {key!r} beside its content, which a pair cannot hold")
    channel, recipient = message.get("channel"), message.get("recipient")  # harmony's
    if channel not in (None, "", "final") or recipient not in (None, "", "all", "user", "assistant"):
        raise UnusableError(f"{place} is on the channel {channel!r} to {recipient!r}, which a pair cannot hold")
    if cut := find_cut(message):
        raise UnusableError(f"{place} was cut ({cut}): the answer is not finished")


def _is_learned(message: dict[str, Any], column: str) -> bool:
    learned = True
    for key, value in message.items():
        name = plain_key(key)
        like = MARK_LIKE.search(name) and isinstance(value, int | float | list)
        if value is None or not (name in LEARNED_KEYS | MASKED_KEYS or like):
            continue
        answer = is_learned(name, value)
        if answer is None:
            raise UnusableError(f"{column}: got {key} {shown(value)}, expected 0 or 1: a turn is learned or it is not")
        learned = learned and answer
    return learned


def text_of(value: Any, role: str) -> str:
    """`value`, a text that can be written.

    Raises:
        UnusableError: something else, or a lone surrogate in it.
    """
    if not isinstance(value, str):
        raise UnusableError(f"{role}: got {shown(value)}, expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnusableError(f"{role} is not valid Unicode (a lone surrogate at character {error.start + 1})") from error
    return value


def shown(value: Any) -> str:
    """A value's type, and a single value itself, short enough for a message."""
    return type(value).__name__ if isinstance(value, list | dict) else f"{type(value).__name__} {value!r:.60}"
