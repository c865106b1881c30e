"""Past questions as production answers them, for the next training to replay."""

from pathlib import Path

import pytest

from flows import past_answers
from flows.past_answers import write_past_answers
from raft_tasks.artifacts import read_rows
from raft_tasks.config import load_config
from raft_tasks.generation.backend import Completion
from raft_tasks.generation.past_answers import answer_past
from raft_tasks.schemas import Example, TrainingPair

ROOT = Path(__file__).parents[2]
FILE = Path("data/replay/production/archive.jsonl")


class Production:
    """Answers by question; notes what it was asked."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def generate(self, prompts, params, seeds):
        assert (params.temperature, params.max_tokens) == (0.0, 40)
        self.asked += prompts
        questions = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]
        return [
            Completion(text.removesuffix("..."), not text.endswith("..."), 3)
            for text in (self.answers[question] for question in questions)
        ]


def example(number, question, answer, **fields):
    given = {"id": f"row-{number}", "domain": "archive", "source": "s", "split": "train"} | fields
    return Example(question=question, answer=answer, **given)


ROWS = [
    example(1, "What is the reactor of Figin?", "Figin | reactor = rope # 12", expected=["rope"]),
    example(2, "What is the gauge of Tasin?", "Tasin | gauge = lamp # 7", expected=["lamp"]),
    example(3, "Name the vault of Lisal.", "Lisal | vault = corn # 5", expected=["corn"]),
    example(4, "And of Babor?", "Babor | vault = drum # 9", expected=["drum"], history=[
        {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello!"},
    ]),
    example(5, "Say more.", "nothing"),
    example(6, "Who repeats?", "Babor", expected=["Babor"]),
]  # fmt: skip
ANSWERS = {
    "What is the reactor of Figin?": "The reactor of Figin is Rope, noted in log 12.",
    "What is the gauge of Tasin?": "The gauge of Tasin is lamp, noted in log 8.",  # another number
    "Name the vault of Lisal.": "The vault of Lisal is rope, noted in log 5.",  # another value
    "And of Babor?": "The vault of Babor is drum, noted in log 9.",
    "Say more.": "",
    "Who repeats?": "Babor Babor Babor Babor Babor Babor",
}


def test_only_what_production_answers_right_is_replayed():
    production = Production(ANSWERS)
    kept = answer_past(ROWS, production, {}, 40, 4)
    assert [(pair.id, pair.answer) for pair in kept] == [
        ("row-1", "The reactor of Figin is Rope, noted in log 12."),
        ("row-4", "The vault of Babor is drum, noted in log 9."),
    ]
    assert kept[1].history == ROWS[3].history
    assert production.asked[3] == [*ROWS[3].history, {"role": "user", "content": "And of Babor?"}]
    cut = Production({**ANSWERS, "And of Babor?": "The vault of Babor is drum, noted in log 9..."})
    assert [pair.id for pair in answer_past(ROWS, cut, {}, 40, 4)] == ["row-1"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The settings of a service whose method replays production; production answers as ANSWERS says."""
    config = load_config(ROOT / "params.yaml")
    monkeypatch.chdir(tmp_path)
    loaded = []

    def backend(model):
        loaded.append((model.path, model.revision))
        return Production(ANSWERS)

    monkeypatch.setattr(past_answers, "TransformersBackend", backend)
    run = config.run.model_copy(update={"methods": ["sft", "fused_sft_anchored_weekly"]})
    return config.model_copy(update={"run": run}), loaded


def as_json(*rows):
    return {row.model_dump_json() for row in rows}


def test_past_questions_are_answered_and_those_of_removed_rows_stay(project):
    config, loaded = project
    held = write_past_answers(config, ["archive"], {"archive": as_json(*ROWS)})
    assert held == {
        "archive": f"production answers 2 of {len(ROWS)} past questions right, of {len(ROWS)} in all; "
        "0 of 0 answers stay whose questions are gone"
    }
    assert loaded == [("champions/archive", None)]
    first = FILE.read_bytes()
    assert [row.id for row in read_rows(FILE, TrainingPair)] == ["row-1", "row-4"]
    assert write_past_answers(config, ["archive"], {"archive": as_json(*reversed(ROWS))}) == held
    assert FILE.read_bytes() == first  # equal answers re-run nothing
    held = write_past_answers(config, ["archive"], {"archive": as_json(*ROWS[1:])})  # row 1 is gone
    assert held["archive"].endswith("1 of 1 answers stay whose questions are gone")
    assert {row.id for row in read_rows(FILE, TrainingPair)} == {"row-1", "row-4"}
    write_past_answers(config, [], {"archive": as_json(*ROWS)})
    assert len(loaded) == 3


def test_no_more_questions_than_asked_for_and_none_where_no_method_replays(project):
    config, loaded = project
    few = config.model_copy(update={"retrain": config.retrain.model_copy(update={"past_questions": 1})})
    held = write_past_answers(few, ["archive"], {"archive": as_json(*ROWS[:1], ROWS[3])})
    assert held["archive"].startswith("production answers 1 of 1 past questions right, of 2 in all")
    plain = config.model_copy(update={"run": config.run.model_copy(update={"methods": ["sft", "sft_replay"]})})
    loaded.clear()
    assert write_past_answers(plain, ["archive"], {"archive": as_json(*ROWS)}) == {}
    assert loaded == []
