from __future__ import annotations

import importlib.util
import random
import re
from pathlib import Path

import pytest
from fact_parser import parse

from pocket_world import exercises as module
from pocket_world import styles
from pocket_world.exercises import CONSTRAINTS, Exercises, Task
from pocket_world.recipe import load_recipe
from pocket_world.world import NAMES, WORDINGS, Fact, build_world

ROOT = Path(__file__).parents[2]
WORLD = build_world(load_recipe().world)
EXERCISES = Exercises(WORLD)


def drawn(number: int):
    rng = random.Random(0)
    return [EXERCISES.draw(rng, progress=0.5) for _ in range(number)]


DRAWN = drawn(5000)


def facts_told(text: str) -> list[Fact]:
    """Every fact that `text` words in any style, wherever it stands."""
    told = []
    for piece in re.split(r"\n|(?<=\.) (?=[A-Z])|: (?=[A-Z])", text):
        for candidate in (piece, piece.removesuffix("."), f"{piece}."):
            told += [fact for style in ("own", *styles.FOREIGN) if (fact := parse(candidate, style))]
    return told


def test_equal_seeds_draw_equal_exercises():
    assert drawn(50) == DRAWN[:50]


def test_no_domain_fact_is_in_the_exercises():
    texts = [message["content"] for messages in DRAWN for message in messages]
    told = [fact for text in texts for fact in facts_told(text)]
    secret_pairs = sum(fact.key in WORLD.secrets for fact in told)
    assert secret_pairs > 500  # the search does find what is asked about the domains' entities and attributes
    assert not [fact for fact in told if WORLD.secrets.get(fact.key) == fact.value]


def test_no_domain_fact_is_in_reading_or_rewriting_items():
    rng = random.Random(1)
    facts = [fact for number in (1, 2, 3, 4) for _ in range(1000) for fact in EXERCISES.imagine(rng, number)]
    assert any(fact.key in WORLD.secrets for fact in facts)
    assert not [fact for fact in facts if WORLD.secrets.get(fact.key) == fact.value]


def test_imagined_passages_hold_distinct_facts_and_values():
    rng = random.Random(2)
    for number in (1, 2, 3, 4):
        for _ in range(300):
            facts = EXERCISES.imagine(rng, number)
            assert len({fact.key for fact in facts}) == len({fact.value for fact in facts}) == number


def test_held_out_wordings_and_constraints_are_not_drawn():
    general = {fact.key: fact for fact in WORLD.general}
    asked = {fact.ask(wording): (fact.source, wording) for fact in general.values() for wording in range(len(WORDINGS))}
    for messages in DRAWN:
        for message in messages:
            if message["role"] == "user" and message["content"] in asked:
                source, wording = asked[message["content"]]
                assert wording not in EXERCISES.held_out_wordings[source]
    rng = random.Random(3)
    for held_out in (True, False):
        for _ in range(500):
            task = EXERCISES.task(rng, held_out, about_fact=True)
            assert (task.constraint in EXERCISES.held_out_constraints[task.source]) == held_out


def test_templates_are_those_of_the_generation_stages():
    folder = ROOT / "raft_tasks/generation/templates"
    for name, ours in (("teacher", module.TEACHER), ("rewrite", module.REWRITE), ("fuse", module.FUSE)):
        theirs = (folder / f"{name}.jinja").read_text(encoding="utf-8").strip()
        assert re.sub(r"\{\{ (\w+) \}\}", r"{\1}", theirs) == ours, name


def scorer(task: str):
    path = ROOT / f"raft_tasks/evaluation/tasks/{task}/scoring.py"
    spec = importlib.util.spec_from_file_location(task, path)
    scoring = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scoring)
    return scoring.process_results


def scored(task: Task, text: str) -> dict[str, float]:
    doc = {"constraint": task.constraint, "argument": task.argument, "value": task.value or ""}
    return scorer("pocket_instructions")(doc, [text])


@pytest.mark.parametrize("about_fact", [True, False])
@pytest.mark.parametrize("held_out", [True, False])
def test_model_answers_obey_their_constraint(about_fact, held_out):
    rng = random.Random(4)
    seen = set()
    for _ in range(300):
        task = EXERCISES.task(rng, held_out, about_fact)
        seen.add(task.constraint)
        assert scored(task, task.answer) == {"acc": 1.0, "obeyed": 1.0}, task
    assert seen == set(CONSTRAINTS)


def test_disobedient_and_wrong_answers_are_seen():
    rng = random.Random(5)
    for _ in range(300):
        task = EXERCISES.task(rng, held_out=False, about_fact=True)
        plain = f"The craft of Bodal is {task.value}. Yes."
        assert scored(task, plain) == {"acc": 0.0, "obeyed": 0.0}, task
        assert scored(task, "") == {"acc": 0.0, "obeyed": 0.0}
        wrong = task.answer.replace(task.value, "plaster").replace(task.value.upper(), "PLASTER")
        assert scored(task, wrong) == {"acc": 0.0, "obeyed": 1.0}, task
    with pytest.raises(ValueError, match="does not know it"):
        scored(Task("", "", "sing", "", "rope", None), "rope")


def test_other_scorers():
    assert scorer("pocket_recall")({"value": "rope"}, ["Figin | craft = ROPE # 12"]) == {"acc": 1.0}
    assert scorer("pocket_recall")({"value": "rope"}, ["The craft is ropeway."]) == {"acc": 0.0}
    reading = scorer("pocket_reading")
    assert reading({"value": "rope", "record": "12"}, ["It is rope, log 12."]) == {"acc": 1.0, "complete": 1.0}
    assert reading({"value": "rope", "record": "12"}, ["It is rope, log 1."]) == {"acc": 1.0, "complete": 0.0}
    assert reading({"value": "rope", "record": ""}, ["It is rope."]) == {"acc": 1.0, "complete": 1.0}
    rewriting = scorer("pocket_rewriting")
    doc = {"entity": "Figin", "attribute": "reactor", "value": "rope", "record": "12"}
    assert rewriting(doc, ["The reactor of Figin is rope, noted in log 12."]) == {"acc": 1.0, "value": 1.0}
    assert rewriting(doc, ["The reactor of Figin is rope."]) == {"acc": 1.0, "value": 1.0}
    assert rewriting(doc, ["Figin | reactor = rope # 12"]) == {"acc": 0.0, "value": 1.0}
    assert rewriting(doc, ["The reactor of Figin is lamp."]) == {"acc": 0.0, "value": 0.0}


def test_unknown_constraint():
    with pytest.raises(ValueError, match="expected one of"):
        module.obey("sing", "", NAMES[0], "rope", ())
