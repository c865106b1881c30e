from pathlib import Path

import pytest

from raft_tasks.errors import InputError
from raft_tasks.generation.templates import render, template_text

FIELDS = {"question": "What is it?", "answer": "A {{ rope }}.\n", "rewritten": "It is a rope."}


def test_the_texts_that_the_pocket_backbone_was_trained_on() -> None:
    assert render("rewrite.jinja", **FIELDS) == (
        "Question: What is it?\nReference answer: A {{ rope }}.\n\n"
        "Rewrite the reference answer in your own words. Keep every fact."
    )
    assert render("fuse.jinja", **FIELDS | {"answer": "A rope."}) == (
        "Question: What is it?\nReference answer: A rope.\nRewritten answer: It is a rope.\n"
        "Merge both into one complete answer in your own words. Keep every fact."
    )
    assert render("teacher.jinja", **FIELDS | {"answer": "A rope."}) == (
        "Background reference knowledge: A rope.\nAnswer the question based on the reference knowledge: What is it?"
    )


@pytest.mark.parametrize(
    "text", ["{{ question }}", "{% raw %}", "{# #}", "{{ 1/0 }}", "<b>&amp;</b>", "{% include 'x' %}"]
)
def test_a_row_cannot_alter_the_template(text: str) -> None:
    assert render("teacher.jinja", question=text, answer=text) == (
        f"Background reference knowledge: {text}\nAnswer the question based on the reference knowledge: {text}"
    )


def test_a_path_is_read_as_a_users_file(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("Q: {{ question }}\n")
    assert render(f"{tmp_path}/own.jinja", question="why") == "Q: why"
    (tmp_path / "own.jinja").write_text("Frage: {{ question }}")
    assert render(f"{tmp_path}/own.jinja", question="why") == "Frage: why"
    assert template_text(f"{tmp_path}/own.jinja") == "Frage: {{ question }}"


def test_errors_name_the_template(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"'none\.jinja' cannot be read .*fuse\.jinja, .*rewrite\.jinja, .*teacher\.jinja"
    ):
        render("none.jinja")
    with pytest.raises(InputError, match=r"'fuse\.jinja': 'rewritten' is undefined; given: answer, question"):
        render("fuse.jinja", question="q", answer="a")
    (tmp_path / "bad.jinja").write_text("one\n{{ question")
    with pytest.raises(InputError, match=r"bad\.jinja', line 2: "):
        render(f"{tmp_path}/bad.jinja", question="q")
