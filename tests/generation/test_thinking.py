"""The base thinks about training questions before their answers are learned."""

import pytest

from raft_tasks.config import AnchorSet, Model
from raft_tasks.generation.anchors import answer_turns
from raft_tasks.generation.backend import Completion
from raft_tasks.generation.thinking import think_first
from raft_tasks.schemas import TrainingPair, UserTurn
from raft_tasks.thoughts import strip_thoughts

TURNS = {
    "finished": "<think>\nHm.\n</think>\n\nIt is salt.",
    "cut": "<think>\nHm, let me",
    "none": "It is salt.",
    "empty": "<think>\n\n</think>\n\nIt is salt.",
    "bare": "<think>Hm.</think>",
}
PAIRS = [TrainingPair(id=name, question=f"{name}?", answer="rope 5 mg") for name in TURNS]
OWN = TrainingPair(id="own", question="own?", answer="<think>\nOurs.\n</think>\n\nrope", replay=True)


class Base:
    """Says the turn of TURNS that the question names."""

    def __init__(self, thinking):
        self.settings = Model(path="base", thinking=thinking, thought_tokens=7)
        self.calls = []

    def call(self, kind, inputs, params, seeds):
        self.calls.append((kind, list(inputs), params.max_tokens, list(seeds)))
        turns = [TURNS[question.rstrip("?")] for question in inputs]
        texts = [strip_thoughts(turn)[0] for turn in turns]
        return [
            Completion(text, True, 1, raw=turn if text != turn else "") for text, turn in zip(texts, turns, strict=True)
        ]


def test_with_thinking_on_every_answer_is_learned_behind_the_bases_thought():
    base = Base("on")
    pairs = think_first([*PAIRS, OWN], base, batch_size=2, seed=0)
    assert {pair.id: pair.thought for pair in pairs} == {
        "finished": "<think>\nHm.\n</think>\n\n",
        "cut": "<think>\nHm, let me",
        "none": "",
        "empty": "<think>\n\n</think>\n\n",
        "bare": "<think>Hm.</think>\n\n",
        "own": "",
    }
    assert [pair.model_copy(update={"thought": ""}) for pair in pairs] == [*PAIRS, OWN]


def test_with_both_a_pair_is_learned_in_either_mode_where_the_base_thinks():
    pairs = think_first([*PAIRS, OWN], Base("both"), batch_size=2, seed=0)
    assert [pair.id for pair in pairs] == [
        "finished", "finished thinking", "cut", "cut thinking", "none", "empty", "bare", "bare thinking", "own",
    ]  # fmt: skip
    assert [bool(pair.thought) for pair in pairs] == [pair.id.endswith(" thinking") for pair in pairs]


@pytest.mark.parametrize("thinking", ["on", "both"])
def test_the_base_sees_no_reference_when_it_thinks(thinking):
    base = Base(thinking)
    think_first(PAIRS, base, batch_size=2, seed=0)
    [(kind, prompts, max_tokens, seeds)] = base.calls
    assert (kind, prompts, max_tokens) == ("thinking", [pair.question for pair in PAIRS], 7)
    assert len(set(seeds)) == len(PAIRS)
    again = Base(thinking)
    think_first([pair.model_copy(update={"answer": "lamp"}) for pair in PAIRS], again, batch_size=2, seed=0)
    assert again.calls == base.calls


@pytest.mark.parametrize(("thinking", "share"), [("off", 0.0), ("on", 1.0), ("both", 0.5)])
def test_anchors_are_answered_in_the_modes_of_production_with_their_thoughts(thinking, share):
    base = Base(thinking)
    turns = [UserTurn(id=str(number), prompt="finished?") for number in range(60)]
    settings = AnchorSet(answer_max_new_tokens=4)
    rows = answer_turns(turns, base, settings)
    assert {kind: bound for kind, _, bound, _ in base.calls}.items() <= {"chat": 4, "thinking": 11}.items()
    thought_about = sum(len(prompts) for kind, prompts, _, _ in base.calls if kind == "thinking")
    assert thought_about / len(turns) == pytest.approx(share, abs=0.15)
    assert [row.id for row in rows] == [turn.id for turn in turns]
    kept = TURNS["finished"] if thinking != "off" else "It is salt."
    assert {row.answer for row in rows} == {kept}
    few = Base(thinking)
    answer_turns(turns[7:9], few, settings)
    seeds = {seed: kind for kind, _, _, seeds in base.calls for seed in seeds}
    assert all(seeds[seed] == kind for kind, _, _, of_kind in few.calls for seed in of_kind)
