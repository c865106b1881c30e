import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from qa import domain, ingest

from raft_tasks.config import Chat, SplitBySource

SPLIT = SplitBySource(by="source", validation=0.0, test=0.5, seed=0)
STRICT: dict[str, Any] = {"near_duplicates": 0.8, "contamination": 0.5}


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def talk(*words: str) -> list[dict[str, Any]]:
    return [turn("assistant" if number % 2 else "user", word) for number, word in enumerate(words)]


def mark(identity: str, number: int) -> str:
    return hashlib.sha256(json.dumps([identity, number]).encode()).hexdigest()[:8]


def read(folder: Path, conversation: str, *messages: Any) -> tuple[list[tuple[str, str, str]], list[str]]:
    rows = [{"id": f"r{number}", "m": found} for number, found in enumerate(messages)]
    rows += [{"id": f"good-{number}", "m": talk(f"q{number}", "a")} for number in range(20)]
    chat = Chat(column="m", conversation=conversation)  # type: ignore[arg-type]
    examples, rejects = ingest(folder, rows, chat=chat, split=SPLIT, columns={"id": "id", "split": None})
    found = [(row.id, row.question, row.answer) for row in examples if not row.id.startswith("good")]
    return found, [reject.reason for reject in rejects]


def with_histories(folder: Path, conversation: str, *messages: Any) -> dict[str, Any]:
    """By id the kept rows and their histories; the rest is two plain rows."""
    rows = [{"id": f"r{number}", "m": turns} for number, turns in enumerate(messages)]
    rows += [{"id": f"good-{number}", "m": talk(f"q{number}", "a")} for number in range(20)]
    chat = Chat(column="m", conversation=conversation)  # type: ignore[arg-type]
    examples, rejects = ingest(folder, rows, chat=chat, split=SPLIT, columns={"id": "id", "split": None}, **STRICT)
    assert not rejects, rejects
    assert all(row.history == [] for row in examples if row.id.startswith("good"))
    return {row.id: row for row in examples if not row.id.startswith("good")}


def test_single_first_last_or_all_pairs_keep_what_comes_before(tmp_path: Path) -> None:
    begin = [turn("system", "Be short.")]
    long = [*begin, *talk(" One?", "1", "Two?", "2")]
    before = [*begin, *talk("One?", "1")]
    second = "r0#2-" + mark("r0", 2)
    for conversation, expected in {
        "first": {"r0": ("One?", "1", begin)},
        "last": {"r0": ("Two?", "2", before)},
        "all": {"r0": ("One?", "1", begin), second: ("Two?", "2", before)},
    }.items():
        rows = with_histories(tmp_path, conversation, long)
        assert {id: (row.question, row.answer, row.history) for id, row in rows.items()} == expected
        assert {row.source for row in rows.values()} == {"One?"}
        assert len({row.split for row in rows.values()}) == 1


def test_a_question_under_several_system_messages_stays_in_one_split(tmp_path: Path) -> None:
    talks = [
        [turn("system", f"Today is 2026-0{month}-01."), *talk(f"Fee {n}?", f"{n} euros{'.' * month}")]
        for n in range(20)
        for month in (1, 2)
    ]
    splits: dict[str, set[str]] = {}
    for row in with_histories(tmp_path, "single", *talks).values():
        splits.setdefault(row.question, set()).add(row.split)
    assert len(splits) >= 20
    assert all(len(of_one) == 1 for of_one in splits.values())


def test_a_held_out_question_is_not_learned_under_another_system_message(tmp_path: Path) -> None:
    rows = [
        {
            "m": [turn("system", f"Today is 2026-11-0{day}."), *talk(f"Dose of X{n}?", f"{n * day} mg")],
            "ticket": f"{day}-{n}",
        }
        for day in (1, 2)
        for n in range(40)
    ]
    columns, chat = {"split": None, "source": "ticket"}, Chat(column="m", conversation="all")
    examples, rejects = ingest(tmp_path, rows, chat=chat, split=SPLIT, columns=columns, **STRICT)
    tested = {row.question for row in examples if row.split == "test"}
    assert tested
    assert not tested & {row.question for row in examples if row.split == "train"}
    assert {reject.rule for reject in rejects} == {"contamination"}


def test_a_row_without_a_history_is_written_as_before(tmp_path: Path) -> None:
    plain = with_histories(tmp_path, "all", talk("One?", "1"))["r0"]
    assert json.loads(plain.model_dump_json()) == {
        "id": "r0", "domain": "numbers", "question": "One?", "answer": "1", "source": "One?", "split": plain.split,
        "expected": [], "details": [], "explanation": "",
    }  # fmt: skip


def test_equal_questions_in_other_conversations_are_other_rows(tmp_path: Path) -> None:
    """Not duplicates, near duplicates or contamination of each other, whatever the splits."""
    talks = [
        talk(f"What is the price of item {n}?", f"It is {n * 7} euros.", "Are you sure?", "Yes.") for n in range(9)
    ]
    long = talk(*("Tell me much more about the river and its banks, please." if n % 2 == 0 else f"River {n}." * 3
                  for n in range(8)))  # fmt: skip
    rows = with_histories(tmp_path, "last", *talks)
    assert len(rows) == 9
    assert {row.split for row in rows.values()} == {"train", "test"}
    chat = Chat(column="m", conversation="all")
    lines = [{"m": long}, *({"m": talk(f"q{number}", "a")} for number in range(20))]
    examples, rejects = ingest(tmp_path, lines, chat=chat, split=SPLIT, columns={"split": None}, near_duplicates=0.8)
    assert rejects == []
    assert len({row.id for row in examples}) == 24  # ids come from the history too


def test_an_earlier_turn_is_looked_at_as_the_question_is(tmp_path: Path) -> None:
    private = talk("My address is ada@example.org. Who are you?", "A clerk.", "Thanks?", "Bye.")
    chat = Chat(column="m", conversation="last")
    for turns, reason in {
        "privacy": (private, "private: "),
        "thought": (talk("One?", "<think>\nHm.\n</think>\n1", "Two?", "2"), "an earlier turn of the assistant has a"),
        "blank": (talk("One?", " ", "Two?", "2"), "an earlier turn of the assistant is blank"),
        "long": (talk("x" * 8001, "1", "Two?", "2"), "an earlier turn of the user has 8001 characters"),
    }.values():
        rows = [{"m": turns}, *({"m": talk(f"q{number}", "a")} for number in range(20))]
        _, rejects = ingest(tmp_path, rows, chat=chat, split=SPLIT, columns={"split": None}, privacy="reject")
        assert [reject.reason[: len(reason)] for reject in rejects] == [reason]
        assert rejects[0].line == 1


def test_single_refuses_several_turns(tmp_path: Path) -> None:
    long = [turn("system", "Be short."), *talk("One?", "1", "Two?", "2")]
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
    "marked",
    [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"training": False}, {"loss": False}, {"loss": "false"},
     {"masked": True}, {"mask": 1}, {"output_with_loss": False}, {"weight": "0"}, {"trainable": " False"},
     {"loss_mask": 0}, {"train_on_turn": False}, {"trainOnTurn": False}, {"Weight": "0.0"}, {"is_masked": "yes"},
     {"deleted": True}, {"weight": -1}],
)  # fmt: skip
def test_turns_out_of_the_loss_are_not_learned(tmp_path: Path, marked: dict[str, Any]) -> None:
    messages = talk("One?", "wrong", "Two?", "2")
    messages[1] |= marked
    messages[3] |= {"weight": 1, "train": True, "masked": False, "channel": "final", "finish_reason": "stop"}
    assert read(tmp_path, "all", messages)[0] == [("r0#2-" + mark("r0", 2), "Two?", "2")]
    examples, reasons = read(tmp_path, "first", messages)
    assert examples == []
    assert reasons == ["m: no answer that chat.conversation asks for is to be learned (weight 0 or the like)"]


def test_an_earlier_answer_does_not_take_the_place_of_a_last_one_that_is_not_learned(tmp_path: Path) -> None:
    messages = talk("One?", "1", "Two?", "wrong")
    messages[3] |= {"weight": 0}
    reason = "m: no answer that chat.conversation asks for is to be learned (weight 0 or the like)"
    assert read(tmp_path, "last", messages) == ([], [reason])
    assert [question for _, question, _ in read(tmp_path, "all", messages)[0]] == ["One?"]


def test_share_gpt_other_names_and_columns_of_messages(tmp_path: Path) -> None:
    share = [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "1"}]
    named = [turn("developer", "Be short."), turn("User", "Two?"), turn("Assistant", "2")]
    columns = {"role": ["system", "user", "assistant"], "content": [None, "Three?", "3"]}
    parts = [
        turn("user", [{"type": "input_text", "text": "Four?"}]),
        turn("assistant", [{"type": "output_text", "text": "4"}]),
    ]
    assert read(tmp_path, "single", share, named, columns, parts) == (
        [("r0", "One?", "1"), ("r1", "Two?", "2"), ("r2", "Three?", "3"), ("r3", "Four?", "4")],
        [],
    )


def test_a_conversation_stays_in_one_split_whatever_its_turns_ask(tmp_path: Path) -> None:
    talks = [talk(*(f"Project {n}, step {s}?" if s % 2 == 0 else f"{n * s}." for s in range(8))) for n in range(30)]
    rows = [{"id": f"c{n}", "m": messages} for n, messages in enumerate(talks)]
    split = SplitBySource(by="source", validation=0.2, test=0.3, seed=0)
    chat = Chat(column="m", conversation="all")
    examples, rejects = ingest(tmp_path, rows, chat=chat, split=split, columns={"id": "id", "split": None})
    assert (len(examples), rejects) == (120, [])
    splits: dict[str, set[str]] = {}
    for example in examples:
        splits.setdefault(example.id.split("#")[0], set()).add(example.split)
    assert {len(several) for several in splits.values()} == {1}
    assert len(splits) == 30


def test_the_second_turns_id_is_no_other_rows(tmp_path: Path) -> None:
    rows = [{"id": "a", "m": talk("q1", "x", "q2", "y")}, {"id": "a-2", "m": talk("q3", "z")}]
    rows += [{"id": f"good-{number}", "m": talk(f"q{number}", "a")} for number in range(10, 30)]
    chat = Chat(column="m", conversation="all")
    examples, rejects = ingest(tmp_path, rows, chat=chat, split=SPLIT, columns={"id": "id", "split": None})
    assert rejects == []
    assert len({example.id for example in examples}) == 23


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
        (
            [turn("user", [{"type": "image"}]), turn("assistant", "1")],
            "m: a message of the user has parts that are not text",
        ),
        ([turn("user", 7), turn("assistant", "1")], "m: a message of the user: got int 7, expected text"),
        (talk("One?", " "), "answer is blank"),
        (talk("One?", "<think>Hm.</think> 1"), "the answer begins with a think block"),
        (
            [turn("user", "One?"), turn("assistant", "1") | {"tool_calls": [{"id": "c"}]}],
            "m: a message of the assistant calls a tool",
        ),
        (
            [turn("user", "One?"), turn("assistant", "1") | {"function_call": {"name": "f"}}],
            "m: a message of the assistant calls a",
        ),
        (
            [turn("user", "One?"), turn("assistant", "1") | {"reasoning_content": "Hm."}],
            "m: a message of the assistant has reas",
        ),
        ([turn("user", "One?"), turn("assistant", "1") | {"weight": 0.5}], "m: got weight float 0.5, expected 0 or 1"),
        (
            [turn("user", "One?") | {"context": "Two."}, turn("assistant", "1")],
            "m: a message of the user has 'context'",
        ),
        (
            [turn("system", "") | {"tools": [{"name": "f"}]}, turn("user", "One?"), turn("assistant", "1")],
            "m: a message of the system has 'tools' beside its content",
        ),
        ([turn("user", "One?"), turn("assistant", "1") | {"my_loss_flag": 0}], "m: got my_loss_flag int 0, expected 0"),
        ('[{"role": "user", "content": "?", "weight": 0, "weight": 1}]', "m is not a JSON list of messages: the key"),
        (
            [turn("user", "One?"), turn("assistant", "1") | {"train_detail": [[0, 1]]}],
            "m: a message of the assistant marks parts",
        ),
        (
            [turn("user", "One?"), turn("assistant", "1") | {"weight": 0}],
            "m: no answer that chat.conversation asks for is to",
        ),
        ({"role": ["user"], "content": ["One?", "1"]}, "m: columns of different lengths"),
        *(
            ([turn("user", "One?"), turn("assistant", "1") | more], f"m: a message of the assistant {reason}")
            for more, reason in [
                ({"channel": "analysis"}, "is on the channel 'analysis'"),
                ({"recipient": "functions.weather"}, "is on the channel None to 'functions.weather'"),
                ({"thinking_blocks": [{"thinking": "Hm."}]}, "has reasoning beside its content"),
                ({"finish_reason": "length"}, "was cut (finish_reason is 'length')"),
                ({"stop_reason": "max_tokens"}, "was cut (stop_reason is 'max_tokens')"),
                ({"finish_reason": None, "doneReason": "length"}, "was cut (doneReason is 'length')"),
                ({"finish_details": {"type": "max_tokens"}}, "was cut (finish_details is"),
                ({"status": "incomplete"}, "was cut (status is 'incomplete')"),
                ({"truncated": True}, "was cut (truncated is True)"),
                ({"end_turn": False}, "was cut (end_turn is False)"),
                ({"toolCalls": [{"id": "c"}]}, "calls a tool (toolCalls)"),
                ({"reasoningContent": "Hm."}, "has reasoning beside its content"),
                ({"chain_of_thought": "Hm."}, "has reasoning beside its content"),
                ({"partial": True}, "is the beginning of an answer"),
            ]
        ),
        *(
            ([turn("user", "One?"), turn("assistant", [{"type": "text", "text": "1"} | more])], reason)
            for more, reason in [
                ({"thought": True}, "m: a message of the assistant has reasoning beside its content"),
                ({"weight": 0}, "m: a message of the assistant marks parts of it as not learned"),
                ({"train": False}, "m: a message of the assistant marks parts of it as not learned"),
            ]
        ),
    ],
)
def test_what_is_no_conversation_is_rejected(tmp_path: Path, messages: Any, reason: str) -> None:
    found, reasons = read(tmp_path, "all", messages)
    assert found == []
    assert reasons[0].startswith(reason)


@pytest.mark.parametrize("column", ["expected", "details", "explanation"])
def test_what_belongs_to_one_answer_is_refused_for_all_answers_of_a_conversation(column: str) -> None:
    columns = {"question": None, "answer": None, column: "e"}
    for conversation in ("single", "first", "last"):
        domain(["x"], columns=columns, chat=Chat(conversation=conversation))
    with pytest.raises(ValueError, match=rf"\['{column}'\] belong to one answer .*: expected single, first or last"):
        domain(["x"], columns=columns, chat=Chat(conversation="all"))


def test_a_domain_has_columns_or_conversations() -> None:
    with pytest.raises(ValueError, match="expected either both columns, or chat"):
        domain(["x"], columns={"question": None})
    with pytest.raises(ValueError, match="files is empty and hub is null"):
        domain([])
