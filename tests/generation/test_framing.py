"""Words of the prompt and of the chat around it stay out of what is learned."""

import pytest

from raft_tasks.generation.framing import drop_framing, find_framing
from raft_tasks.generation.semantic_filter import semantic_filter
from raft_tasks.generation.templates import template_text
from raft_tasks.schemas import Filtered, Rewritten

TEMPLATE = "{{ question }}\nThe correct answer is: {{ answer }}\nSay it in one full sentence, in your own words."
GOODS = ["woven nylon fabrics", "frozen shrimps", "graphite flakes", "alums", "paper sacks", "steel bolts"]


def row(number: int, rewritten: str) -> Filtered:
    written = Rewritten(
        id=f"row-{number}", domain="hs", question=f"Which chapter covers {GOODS[number]}?", answer=f"29{number:02}.10",
        explanation=f"chapter {30 + number}", source=GOODS[number], split="train", rewritten=rewritten,
    )  # fmt: skip
    return semantic_filter([written], [1.0], tau=0.8, fidelity_veto=False)[0]


def targets(texts: list[str], template: str = TEMPLATE) -> list[str | None]:
    """The fallback of each row; None where the rewrite is learned."""
    rows = [row(number, text) for number, text in enumerate(texts)]
    framing = find_framing(rows, template)
    kept = [drop_framing(of_row, framing) for of_row in rows]
    assert all(out.chosen == (out.rewritten if out.passed else out.answer) for out in kept)
    return [out.fallback for out in kept]


def test_a_rewrite_that_repeats_the_template_falls_back_to_the_reference():
    texts = ["Well, the correct answer is: chapter 30.", "Frozen shrimps are in chapter 31, in your own words."]
    assert targets([*texts, "Graphite flakes are in chapter 32."]) == ["framing", "framing", None]


def test_words_of_the_row_itself_are_no_framing():
    assert targets(["Which chapter covers woven nylon fabrics? Chapter 30."]) == [None]


@pytest.mark.parametrize(
    ("opening", "fallback"),
    [("To respond to this, it is", "framing"), ("The chapter that covers these is", None)],
)
def test_an_opening_of_many_rewrites_falls_back_unless_it_speaks_of_the_row(opening, fallback):
    texts = [f"{opening} chapter {30 + number}." for number in range(5)]
    assert targets([*texts, "Steel bolts are in chapter 35."]) == [*[fallback] * 5, None]


def test_an_opening_of_few_rewrites_is_kept():
    assert targets(["To respond to this, it is chapter 30.", "To respond to this, it is chapter 31."]) == [None, None]


def test_what_fell_back_already_keeps_its_reason():
    failed = row(0, "")
    assert drop_framing(failed, find_framing([failed], TEMPLATE)).fallback == "empty"


def test_our_template_for_terse_answers_shows_no_phrase_that_an_answer_could_repeat():
    shown = "Reply in one short sentence that contains chapter 30."
    assert targets([shown], template_text("rewrite_terse.jinja")) == ["framing"]
    assert targets(["Chapter 30 covers woven nylon fabrics."], template_text("rewrite_terse.jinja")) == [None]
