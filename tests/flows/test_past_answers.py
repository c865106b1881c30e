"""Past questions as production answers them, for the next training to replay."""

from collections import Counter
from pathlib import Path

import pytest
from chat_models import chat_tokenizer
from saying import thinking_model

from flows import past_answers
from flows.past_answers import write_past_answers
from raft_tasks.artifacts import read_rows
from raft_tasks.config import Model, load_config, parse_config, read_document
from raft_tasks.fuse import replay_pairs
from raft_tasks.generation.backend import Completion
from raft_tasks.generation.past_answers import answer_past
from raft_tasks.generation.thinking import think_first
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.schemas import Example, TrainingPair
from raft_tasks.training.conversations import Encoder

ROOT = Path(__file__).parents[2]
TURN = "<think>hm</think>rope lamp"
FILE = Path("data/replay/production/archive.jsonl")


class Production:
    """Answers by question; notes what it was asked."""

    settings = Model(path="production")

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def call(self, kind, prompts, params, seeds):
        assert (kind, params.temperature, params.max_tokens) == ("chat", 0.0, 40)
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
    example(7, "May one moor?", "legal", expected=["legal"]),
]  # fmt: skip
ANSWERS = {
    "What is the reactor of Figin?": "The reactor of Figin is Rope, noted in log 12.",
    "What is the gauge of Tasin?": "The gauge of Tasin is lamp, noted in log 8.",  # another number
    "Name the vault of Lisal.": "The vault of Lisal is rope, noted in log 5.",  # another value
    "And of Babor?": "The vault of Babor is drum, noted in log 9.",
    "Say more.": "",
    "Who repeats?": "Babor Babor Babor Babor Babor Babor",
    "May one moor?": "To moor is illegal.",
}


def test_only_what_production_answers_right_is_replayed():
    production = Production(ANSWERS)
    kept, unfinished = answer_past(ROWS, production, {}, 40, 4)
    assert unfinished == 0
    assert [(pair.id, pair.answer) for pair in kept] == [
        ("row-1", "The reactor of Figin is Rope, noted in log 12."),
        ("row-4", "The vault of Babor is drum, noted in log 9."),
    ]
    assert kept[1].history == ROWS[3].history
    assert production.asked[3] == [*ROWS[3].history, {"role": "user", "content": "And of Babor?"}]
    cut = Production({**ANSWERS, "And of Babor?": "The vault of Babor is drum, noted in log 9..."})
    assert [pair.id for pair in answer_past(ROWS, cut, {}, 40, 4)[0]] == ["row-1"]


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


def thinking_project(folder, monkeypatch, thinking, **settings):
    """A service whose production thinks "hm" and answers "rope lamp", which six of eight rows ask for."""
    monkeypatch.chdir(folder)
    model = thinking_model(folder / "champions/archive", ["<think>", "hm", "</think>"], thinking)
    document = read_document(ROOT / "params.yaml")
    document["models"]["base"] = {**model.model_dump(), **settings}
    document["run"]["methods"] = ["fused_sft_anchored_weekly"]
    rows = [example(n, f"what {n}", "rope", expected=["rope" if n < 6 else "corn"]) for n in range(8)]
    return parse_config(document), {"archive": as_json(*rows)}


@pytest.mark.parametrize("thinking", ["off", "on", "both"])
def test_production_that_thinks_is_asked_as_it_is_served_and_its_own_thoughts_are_replayed(
    tmp_path, monkeypatch, thinking
):
    config, past = thinking_project(tmp_path, monkeypatch, thinking)
    held = write_past_answers(config, ["archive"], past)["archive"]
    assert held.startswith("production answers 6 of 8 past questions right")
    assert held.endswith("; 0 thoughts did not end") == (thinking != "off")
    [replay] = [method.replay for name, method in config.methods.items() if name == config.run.methods[0]]
    replayed = list(replay_pairs(replay, []))
    turns = Counter(pair.answer for pair in replayed)
    assert set(turns) == {"off": {"rope lamp"}, "on": {TURN}, "both": {"rope lamp", TURN}}[thinking]
    if thinking == "off":
        return
    # own thoughts stay as they are; with `both` the other answers are learned behind the base's thoughts too
    learned = think_first(replayed, TransformersBackend(config.base), 4, 0)
    assert len(learned) == len(replayed) + turns["rope lamp"]
    rows = Encoder(chat_tokenizer("qwen3"), 200, thinking=thinking)(learned)
    shown = {(row.id.endswith("thinking"), chat_tokenizer("qwen3").decode(row.completion_ids)) for row in rows}
    plain = {(False, "rope lamp<|im_end|>"), (True, "rope lamp<|im_end|>")} if thinking == "both" else set()
    assert shown == {(False, f"{TURN}<|im_end|>")} | plain


def test_answers_within_an_unfinished_thought_are_counted_and_not_replayed(tmp_path, monkeypatch):
    config, past = thinking_project(tmp_path, monkeypatch, "on", thought_tokens=1)
    config = config.model_copy(update={"benchmark": config.benchmark.model_copy(update={"max_new_tokens": 1})})
    held = write_past_answers(config, ["archive"], past)["archive"]
    assert held.startswith("production answers 0 of 8 past questions right")
    assert held.endswith("; 8 thoughts did not end")
    assert read_rows(FILE, TrainingPair) == []
