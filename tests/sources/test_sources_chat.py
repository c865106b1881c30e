import json
from pathlib import Path
from typing import Any

import pytest
from qa import domain, ingest

from raft_tasks.config import Chat, SplitBySource

SPLIT = SplitBySource(by="source", validation=0.0, test=0.5, seed=0)


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def talk(*words: str) -> list[dict[str, Any]]:
    return [turn("assistant" if number % 2 else "user", word) for number, word in enumerate(words)]


def read(folder: Path, conversation: str, *messages: Any) -> tuple[list[tuple[str, str, str]], list[str]]:
    rows = [{"id": f"r{number}", "m": found} for number, found in enumerate(messages)]
    rows += [{"id": f"good-{number}", "m": talk(f"q{number}", "a")} for number in range(20)]
    chat = Chat(column="m", conversation=conversation)  # type: ignore[arg-type]
    examples, rejects = ingest(folder, rows, chat=chat, split=SPLIT, columns={"id": "id", "split": None})
    found = [(row.id, row.question, row.answer) for row in examples if not row.id.startswith("good")]
    return found, [reject.reason for reject in rejects]


def test_single_first_or_all_pairs(tmp_path: Path) -> None:
    long = [turn("system", "Be short."), *talk("One?", "1", "Two?", "2")]
    assert read(tmp_path, "first", long) == ([("r0", "Be short.\n\nOne?", "1")], [])
    assert read(tmp_path, "all", long)[0] == [("r0", "Be short.\n\nOne?", "1"), ("r0-2", "Two?", "2")]
    assert read(tmp_path, "single", long, talk("Three?", "3")) == (
        [("r1", "Three?", "3")],
        ["m: 2 questions, expected one (chat.conversation: single)"],
    )


def test_text_parts_and_json_text_are_messages_too(tmp_path: Path) -> None:
    parts = [turn("user", [{"type": "text", "text": "One"}, {"type": "text", "text": "two?"}]), turn("assistant", "3")]
    assert read(tmp_path, "single", parts, json.dumps(talk("Four?", "4")))[0] == [
        ("r0", "One\ntwo?", "3"),
        ("r1", "Four?", "4"),
    ]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "m: got NoneType None, expected a list of messages"),
        ("[{", "m is not a JSON list of messages"),
        (["hello"], "m: got str 'hello', expected messages of role and content"),
        (talk("One?"), "m: got the turns user; expected user and assistant in turn, answer last"),
        ([turn("assistant", "1"), turn("user", "2")], "m: got the turns assistant, user; expected"),
        ([turn("system", "x")], "m: got the turns none; expected"),
        ([*talk("One?", "1"), turn("system", "x")], "m: a system message after the first turn"),
        ([turn("tool", "x")], "m: got the role str 'tool', expected system, user or assistant"),
        ([turn("user", [{"type": "image"}]), turn("assistant", "1")], "m: a user message has parts that are not text"),
        ([turn("user", 7), turn("assistant", "1")], "m: a user message: got int 7, expected text"),
        (talk("One?", " "), "answer is blank"),
    ],
)
def test_what_is_no_conversation_is_rejected(tmp_path: Path, messages: Any, reason: str) -> None:
    found, reasons = read(tmp_path, "all", messages)
    assert found == []
    assert reasons[0].startswith(reason)


def test_a_domain_has_columns_or_conversations() -> None:
    with pytest.raises(ValueError, match="expected either both columns, or chat"):
        domain(["x"], columns={"question": None})
    with pytest.raises(ValueError, match="files is empty and hub is null"):
        domain([])
