"""From one raw row to examples: the roles' values checked and cleaned, ids, the split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, get_args

from raft_tasks.config import Chat, Domain, Ingest, SplitBySource
from raft_tasks.schemas import Example, Split
from raft_tasks.sources.cleaning import cleaned, normalised
from raft_tasks.sources.files import RawRow

SPLITS: tuple[Split, ...] = get_args(Split)


class UnusableError(Exception):
    """Why a row cannot be used; `rule` is what such rows are counted by."""

    def __init__(self, reason: str, rule: str = "unusable") -> None:
        super().__init__(reason)
        self.rule = rule


def examples_of(row: RawRow, name: str, domain: Domain, ingest: Ingest) -> Iterator[Example]:
    """The example of a row, or those of a conversation's turns.

    Raises:
        UnusableError: the row lacks something, or has it in a form or length that is not allowed.
    """
    if domain.chat is None:
        yield _example(row.values, name, domain, ingest)
        return
    for number, (question, answer) in enumerate(_turns(row.values.get("chat"), domain.chat), start=1):
        values = {**row.values, "question": question, "answer": answer}
        if number > 1 and values.get("id") is not None:
            values["id"] = f"{values['id']}-{number}"
        yield _example(values, name, domain, ingest)


def split_of_source(source: str, split: SplitBySource) -> Split:
    """Draw the split of a source by a hash: it never depends on the other sources, so grown data moves no row."""
    drawn = int.from_bytes(hashlib.sha256(f"{split.seed}\n{source}".encode()).digest()[:8]) / 2**64
    if drawn < split.test:
        return "test"
    return "validation" if drawn < split.test + split.validation else "train"


def content_key(question: str, answer: str) -> bytes:
    """32 bytes that are equal where question and answer are, white space and Unicode form aside."""
    return hashlib.sha256(json.dumps([normalised(question), normalised(answer)]).encode()).digest()


def _example(values: dict[str, Any], name: str, domain: Domain, ingest: Ingest) -> Example:
    question, answer = _text(values, "question", ingest), _text(values, "answer", ingest)
    if domain.columns.id is None:
        identity = f"{name}-{content_key(question, answer).hex()[:16]}"
    else:
        identity = _label(values, "id")
        if not identity:
            raise UnusableError(f"no id: column {domain.columns.id!r} is empty")
    # Without a source of its own, a row can still leak through the same question in another split.
    source = _label(values, "source") or normalised(question)
    if isinstance(domain.split, SplitBySource):
        split = split_of_source(source, domain.split)
    else:
        label = _label(values, "split")
        if label not in SPLITS:
            raise UnusableError(f"split: got {label!r}, expected one of {', '.join(SPLITS)}")
        split = label
    return Example(
        id=identity,
        domain=name,
        question=question,
        answer=answer,
        source=source,
        split=split,
        expected=_strings(values, "expected"),
        details=_strings(values, "details"),
    )


def _turns(messages: Any, chat: Chat) -> list[tuple[str, str]]:
    """The (question, answer) pairs of a conversation; a system turn stands before the first question."""
    if isinstance(messages, str):  # CSV has no other way to write a list
        try:
            messages = json.loads(messages)
        except (ValueError, RecursionError) as error:
            raise UnusableError(f"{chat.column} is not a JSON list of messages: {error}") from error
    if not isinstance(messages, list) or not messages:
        raise UnusableError(f"{chat.column}: got {_shown(messages)}, expected a list of messages")
    turns = [_message(message, chat.column) for message in messages]
    system = [content for role, content in turns if role == "system"]
    if [role for role, _ in turns[: len(system)]].count("system") != len(system):
        raise UnusableError(f"{chat.column}: a system message after the first turn")
    turns = turns[len(system) :]
    wanted = ["user", "assistant"] * (len(turns) // 2)
    if not turns or [role for role, _ in turns] != wanted:
        roles = ", ".join(role for role, _ in turns[:6]) or "none"
        raise UnusableError(f"{chat.column}: got the turns {roles}; expected user and assistant in turn, answer last")
    pairs = [(turns[at][1], turns[at + 1][1]) for at in range(0, len(turns), 2)]
    pairs[0] = "\n\n".join([*system, pairs[0][0]]), pairs[0][1]
    if chat.conversation == "single" and len(pairs) > 1:
        raise UnusableError(
            f"{chat.column}: {len(pairs)} questions, expected one (chat.conversation: single)", "several turns"
        )
    return pairs if chat.conversation == "all" else pairs[:1]


def _message(message: Any, column: str) -> tuple[str, str]:
    """(role, content) of a message; content in parts is joined, as long as all are text."""
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise UnusableError(f"{column}: got {_shown(message)}, expected messages of role and content")
    role, content = message["role"], message["content"]
    if role not in ("system", "user", "assistant"):
        raise UnusableError(f"{column}: got the role {_shown(role)}, expected system, user or assistant")
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
            raise UnusableError(f"{column}: a {role} message has parts that are not text")
        content = "\n".join(map(str, texts))
    return role, _string(content, f"{column}: a {role} message")


def _text(values: dict[str, Any], role: str, ingest: Ingest) -> str:
    if role not in values:
        raise UnusableError(f"no {role}", "missing")
    text = cleaned(_string(values[role], role)).strip()
    if not text:
        raise UnusableError(f"{role} is blank", "missing")
    if len(text) > ingest.max_characters:
        raise UnusableError(
            f"{role} has {len(text)} characters, at most {ingest.max_characters} (ingest.max_characters)", "too long"
        )
    if len(text) < ingest.min_characters:
        raise UnusableError(
            f"{role} has {len(text)} characters, at least {ingest.min_characters} (ingest.min_characters)", "too short"
        )
    return text


def _label(values: dict[str, Any], role: str) -> str:
    """An id, source or split: text or a whole number; "" where there is none."""
    value = values.get(role, "")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return normalised(cleaned(_string(value, role)))


def _strings(values: dict[str, Any], role: str) -> list[str]:
    """A list of strings, a JSON list of strings (CSV has no other way to write one), or a single string."""
    value = values.get(role, [])
    if isinstance(value, str):
        text = value.strip()
        try:
            value = json.loads(text) if text.startswith("[") and text.endswith("]") else [text] if text else []
        except (ValueError, RecursionError) as error:
            raise UnusableError(f"{role} is not a JSON list of strings: {error}") from error
    if not isinstance(value, list):
        raise UnusableError(f"{role}: got {_shown(value)}, expected a list of strings")
    strings = [cleaned(_string(item, f"an entry of {role}")).strip() for item in value]
    if not all(strings):
        raise UnusableError(f"{role}: a blank entry would be found in any answer")
    return strings


def _string(value: Any, role: str) -> str:
    if not isinstance(value, str):
        raise UnusableError(f"{role}: got {_shown(value)}, expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnusableError(f"{role} is not valid Unicode (a lone surrogate at character {error.start + 1})") from error
    return value


def _shown(value: Any) -> str:
    """A value's type, and a single value itself, short enough for a message."""
    return type(value).__name__ if isinstance(value, list | dict) else f"{type(value).__name__} {value!r:.60}"
