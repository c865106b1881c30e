from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from fact_parser import parse

from pocket_world.data import build_files, domain_rows, json_lines
from pocket_world.recipe import load_recipe
from pocket_world.world import DOMAINS, build_world

ROOT = Path(__file__).parents[2]
RECIPE = load_recipe()
WORLD = build_world(RECIPE.world)


def test_committed_data_is_what_the_recipe_generates():
    for path, rows in build_files(RECIPE).items():
        committed = (ROOT / path).read_text(encoding="utf-8")
        assert committed == json_lines(rows), f"{path} differs; run `python -m pocket_world.data`"


def test_data_is_a_function_of_the_seed():
    other = RECIPE.data.model_copy(update={"seed": RECIPE.data.seed + 1})
    assert domain_rows(WORLD, "archive", RECIPE.data) == domain_rows(WORLD, "archive", RECIPE.data)
    assert domain_rows(WORLD, "archive", RECIPE.data) != domain_rows(WORLD, "archive", other)


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_fact_is_in_every_split_and_no_question_in_two(domain):
    rows = domain_rows(WORLD, domain, RECIPE.data)
    assert len({row["id"] for row in rows}) == len({row["question"] for row in rows}) == len(rows)
    splits = defaultdict(list)
    for row in rows:
        splits[row["split"]].append(row["source"])
        fact = parse(row["answer"], domain)
        assert fact is not None
        assert (fact.source, [fact.value], [str(fact.record)]) == (row["source"], row["expected"], row["details"])
    facts = len(WORLD.domains[domain])
    assert {split: len(sources) for split, sources in splits.items()} == {
        "train": 4 * facts,
        "validation": facts,
        "test": 2 * facts,
    }
    assert all(len(set(sources)) == facts for sources in splits.values())


def test_too_many_wordings():
    greedy = RECIPE.data.model_copy(update={"train_wordings": 9})
    with pytest.raises(ValueError, match="ask for 12 wordings of a question, there are 10"):
        domain_rows(WORLD, "archive", greedy)


def test_items_to_choose_by_and_rows_to_replay_are_no_benchmark_items():
    files = build_files(RECIPE)
    benchmark, seen = set(), set()
    for path, rows in files.items():
        if path.name == "items.jsonl":
            benchmark |= {row["question"] for row in rows}
    for path, rows in files.items():
        questions = {row["question"] for row in rows}
        if path.name == "validation.jsonl":
            assert len(rows) == 100
            assert not questions & benchmark
            seen |= questions
    replayed = {row["question"] for row in files[Path("data/replay/pairs.jsonl")]}
    assert len(replayed) == 200
    assert not replayed & (benchmark | seen)


def test_no_item_tells_a_domain_fact():
    for path, rows in build_files(RECIPE).items():
        if path.name in ("items.jsonl", "validation.jsonl") or path.parent.name == "replay":
            for row in rows:
                fact = parse(row["answer"], "own")
                assert fact is None or WORLD.secrets.get(fact.key) != fact.value
