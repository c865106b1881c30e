"""The general tasks whose answers are generated: their items, and how answers are scored."""

import importlib.util
import json
from pathlib import Path

import pytest

import raft_tasks

TASKS = Path(raft_tasks.__file__).parent / "evaluation/tasks"


def scoring(task):
    spec = importlib.util.spec_from_file_location(f"{task}_scoring", TASKS / task / "scoring.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.process_results


def items(task, name="items"):
    return [json.loads(line) for line in (TASKS / task / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_questions_are_different_and_their_answers_count():
    rows = [*items("general_questions"), *items("general_questions", "validation")]
    assert (len(items("general_questions")), len({row["question"] for row in rows})) == (120, 160)
    score = scoring("general_questions")
    for row in rows:
        assert all(score(row, [f"I think it is {words}."]) == {"acc": 1.0} for words in row["accepted"]), row
        assert score(row, ["9204.10"]) == score(row, ["Chapter 92"]) == {"acc": 0.0}, row


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Paris", 1.0),
        ("The capital of France is Paris.", 1.0),
        ("PARIS!", 1.0),
        ("9204.10", 0.0),
        ("Parisian", 0.0),
        ("", 0.0),
    ],
)
def test_an_accepted_answer_counts_in_any_style(answer, right):
    row = next(row for row in items("general_questions") if row["question"] == "What is the capital of France?")
    assert scoring("general_questions")(row, [answer]) == {"acc": right}


@pytest.mark.parametrize(
    ("answer", "running", "words"),
    [
        ("5402.31", 0.0, 0),
        ("card_arrival", 0.0, 2),
        ("PM / class 1 / 21 CFR 890.3640", 0.0, 3),
        ("", 0.0, 0),
        ("Make a list of what matters most, and do one thing at a time.", 1.0, 12),
    ],
)
def test_a_terse_answer_is_no_running_text(answer, running, words):
    assert scoring("open_prompts")({}, [answer]) == {"acc": running, "words": words}


def test_open_prompts_are_sixty_different_ones():
    assert len({row["question"] for row in items("open_prompts")}) == 60
