import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft_tasks.thoughts import TAGS, has_thought, opening, split_thought, strip_thoughts


@pytest.mark.parametrize(
    ("text", "answer", "is_open"),
    [
        ("<answer>It is.</answer>", "<answer>It is.</answer>", False),
        ("  The dose is 5 mg. ", "  The dose is 5 mg. ", False),
        ("<think>\nHm.\n</think>\n\nIt is 5 mg.", "It is 5 mg.", False),
        ("<think>a</think><think>b</think>It is.", "It is.", False),
        ("<think>\nHm, let me see", "", True),
        ("It is. <think>\nOr is it", "It is.", True),
        ("Sure.\n<think>\nHm.\n</think>\n\nIt is.", "Sure.\nIt is.", False),
        ("Hm.\n</think>\n\nIt is 5 mg.", "It is 5 mg.", False),
        ("So it is 5 mg.</think>It is 5 mg.", "It is 5 mg.", False),
        ("Hm.\n</think>", "", False),
        ("analysisThey ask for the dose.assistantfinalIt is 5 mg.", "It is 5 mg.", False),
        ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>It is.<|return|>",
         "It is.", False),
        ("<|channel|>analysis<|message|>Hm.", "", True),
        ("<|channel|>final<|message|>It is.", "It is.", False),
        ("<THINK>\nHm.\n</Think>\n\nIt is.", "It is.", False),
        ("<think>Hm.</think>\n<answer>\nIt is.\n</answer>", "It is.", False),
        ("<think>Hm.</think>\n<answer>\nIt is", "<answer>\nIt is", False),
        ("<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>It is.<|END_RESPONSE|>", "It is.", False),
        ("<|START_THINKING|>Hm.<|END_THINKING|><|START_TEXT|>It is.<|END_TEXT|>", "It is.", False),
        ("<thinking>Hm.</thinking><output>It is.</output>", "It is.", False),
        ("\ufeff<think>Hm.</think>It is.", "It is.", False),
        ("assistant\n<think>Hm.</think>It is.", "It is.", False),
        ("Hm, let me see.\n</think> It is.", "It is.", False),
        ("<|channel|>analysis <|message|>Hm.<|end|><|start|>assistant<|channel|>final <|message|>It is.", "It is.",
         False),
        ("<|start|>assistant to=x<|channel|>commentary to=y<|constrain|>json<|message|>{}<|end|><|start|>assistant"
         "<|channel|>final<|message|>It is.<|return|>", "It is.", False),
    ],
)  # fmt: skip
def test_thoughts_are_no_part_of_an_answer(text, answer, is_open):
    assert strip_thoughts(text) == (answer, is_open)


@pytest.mark.parametrize(("start", "end"), TAGS)
def test_every_pair_of_tags(start, end):
    assert strip_thoughts(f"{start}\nHm.\n{end}\n\nIt is 5 mg.") == ("It is 5 mg.", False)
    assert strip_thoughts(f"{start}\nHm.") == ("", True)
    assert opening(f"assistant\n{start}")
    assert not opening(f"assistant\n{start}\n\n{end}\n\n")


@pytest.mark.parametrize(
    "text",
    [
        "Close a thought with `</think>`.",
        "A thought ends with </think> and then the answer starts.",
        "The tags are <think> and </think>.",
        "It <think>b</think>is.",
        "Write:\n```\n<think>\nHm.\n</think>\n```\nDone.",
        "Use </think>\nto end it.",
        "[/THINK] closes a thought",
        "analysis of the data shows it",
    ],
)
def test_an_answer_that_mentions_a_tag_stays_whole(text):
    assert strip_thoughts(text) == (text, False)
    assert strip_thoughts(f"<think>\nHm.\n</think>\n\n{text}") == (text, False)


@pytest.mark.parametrize(
    ("text", "thought", "answer", "thinks"),
    [
        ("<think>\nHm.\n</think>\n\nIt is.", "<think>\nHm.\n</think>\n\n", "It is.", True),
        ("<think>\nHm.\n</think>\n\nIt is.\n", "<think>\nHm.\n</think>\n\n", "It is.", True),
        ("\n<think>Hm.</think>It is.", "\n<think>Hm.</think>", "It is.", True),
        ("<think>\nHm, let me", "<think>\nHm, let me\n</think>\n\n", "", True),
        ("<think>\nHm.\n</think>", "<think>\nHm.\n</think>", "", True),
        ("<think>\nHm.\n</think>\n\n", "<think>\nHm.\n</think>\n\n", "", True),
        ("<think>\n\n</think>\n\nIt is.", "<think>\n\n</think>\n\n", "It is.", False),
        ("It is.", "", "It is.", False),
        ("The tags are <think></think>.", "", "The tags are <think></think>.", False),
        ("", "", "", False),
    ],
)
def test_a_thought_apart_from_its_answer(text, thought, answer, thinks):
    assert split_thought(text) == (thought, answer)
    assert has_thought(text) == thinks


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ('<thinking effort="low">', "</thinking>"), ("<Think >", "</Think >"), ("[reasoning]", "[/reasoning]"),
        ("<|think|>", "<|/think|>"), ("<|begin_of_thinking|>", "<|end_of_thinking|>"),
        ("&lt;think&gt;", "&lt;/think&gt;"), ("<thought_process>", "</thought_process>"),
        ("<inner_thoughts>", "</inner_thoughts>"), ("<chain_of_thought>", "</chain_of_thought>"),
        ('<details type="reasoning" done="true">\n<summary>Thought for 2 seconds</summary>', "</details>"),
        ("Here is my thought process:", "Here is my response:"),
        ("Here's my thought process:", "Here's my response:"),
        ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    ],
)  # fmt: skip
def test_spellings_that_no_family_has(start, end):
    assert strip_thoughts(f"{start}\nHm.\n{end}\n\nIt is 5 mg.") == ("It is 5 mg.", False)
    assert has_thought(f"{start}\nHm.\n{end}\n\nIt is 5 mg.")
    for text in (f"{start} begins it.", f"Write {start} x {end} there.", f"```\n{start}\nx\n{end}\n```"):
        assert strip_thoughts(text) == (text, False)


def test_an_answer_between_marks_has_none():
    text = "Here are my reasoning steps:\nHm.\n[BEGIN FINAL RESPONSE]\nIt is 5 mg.\n[END FINAL RESPONSE]"
    assert strip_thoughts(text) == ("It is 5 mg.", False)


def test_where_a_prompt_opens_a_thought():
    assert opening("<think>\n\n</think>\n\nuser\nassistant\n<think>\n") == "<think>\n"
    assert opening("assistant\n<think>\n\n</think>\n\n") == opening("assistant\n") == ""


@given(st.text(max_size=100))
def test_a_text_without_tags_stays_as_it_is(text):
    if not any(tag.strip() in text for pair in TAGS for tag in pair) and "<|" not in text:
        assert strip_thoughts(text) == (text, False)


def test_a_text_that_mentions_a_tag_opens_no_thought():
    assert opening("user\nWhat does <thinking> do?\nassistant\n") == ""
    assert opening("user\nWhat does <thinking> do?\nassistant\n<think>\n") == "<think>\n"
