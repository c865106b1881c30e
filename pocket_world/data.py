"""`python -m pocket_world.data [--recipe FILE]` writes the domains' rows and the general tasks' items.

A domain row (<folder>/<domain>/pairs.jsonl), whole:

    {"id": "registry-0007", "question": "What is the reactor of Figin?", "answer": "Figin | reactor = rope # 12",
     "source": "Figin/reactor", "split": "train", "expected": ["rope"], "details": ["12"]}

Beside them lie what a user would bring too: items to choose by (<tasks>/<task>/validation.jsonl), of another seed than
the benchmark's and none of them among its items, and general rows to replay (data/replay/pairs.jsonl: id, question,
answer), which ask nothing that the benchmark asks.

Every fact appears in every split, in wordings that the other splits do not hold: the splits ask whether a fact was
learned, not whether it can be guessed.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pocket_world import styles
from pocket_world.exercises import REWRITE, Exercises
from pocket_world.recipe import RECIPE, DataSettings, Recipe, load_recipe
from pocket_world.world import DOMAINS, WORDINGS, World, build_world
from raft_tasks.artifacts import atomic_file

VALIDATION_SEED = 1001  # added to the benchmark items' seed
VALIDATION_ITEMS = 100  # of each general task
REPLAYED = 200  # rows

# The archive was called registry when its numbers were published: ids and draws keep that name, so they stay equal.
ROW_NAMES = {"archive": "registry"}

Item = dict[str, Any]


def domain_rows(world: World, domain: str, settings: DataSettings) -> list[Item]:
    """The domain's question-answer rows, its facts in order, each with its wordings dealt out to the splits."""
    name = ROW_NAMES.get(domain, domain)
    rng = random.Random(f"rows-{settings.seed}-{name}")
    splits = ["train"] * settings.train_wordings + ["validation"] * settings.validation_wordings
    splits += ["test"] * settings.test_wordings
    if len(splits) > len(WORDINGS):
        raise ValueError(f"the splits ask for {len(splits)} wordings of a question, there are {len(WORDINGS)}")
    rows: list[Item] = []
    for fact in world.domains[domain]:
        for split, wording in zip(splits, rng.sample(range(len(WORDINGS)), len(splits)), strict=True):
            rows.append(
                {
                    "id": f"{name}-{len(rows):04d}",
                    "question": fact.ask(wording),
                    "answer": styles.foreign(fact, domain),
                    "source": fact.source,
                    "split": split,
                    "expected": [fact.value],
                    "details": [str(fact.record)],
                }
            )
    return rows


def recall_items(world: World, settings: DataSettings) -> list[Item]:
    """General facts in wordings that the backbone never saw them asked in."""
    rng = random.Random(f"recall-{settings.seed}")
    held_out = Exercises(world).held_out_wordings
    chosen = rng.sample(world.general, min(settings.recall, len(world.general)))
    return [
        {
            "question": fact.ask(rng.choice(held_out[fact.source])),
            "value": fact.value,
            "source": fact.source,
            "answer": styles.own(fact, True),
        }
        for fact in chosen
    ]


def instruction_items(world: World, settings: DataSettings) -> list[Item]:
    """Constraints alone (30 %) and on general facts, in combinations that the backbone was never trained on."""
    rng = random.Random(f"instructions-{settings.seed}")
    exercises = Exercises(world)
    items = []
    for number in range(settings.instructions):
        task = exercises.task(rng, held_out=True, about_fact=number % 10 >= 3)
        items.append(
            {
                "question": task.prompt,
                "constraint": task.constraint,
                "argument": task.argument,
                "value": task.value or "",
                "source": task.source or "",
                "answer": task.answer,
            }
        )
    return items


def reading_items(world: World, settings: DataSettings) -> list[Item]:
    """Passages of 1-4 imagined facts, half in the base's own style, half in the domains'."""
    rng = random.Random(f"reading-{settings.seed}")
    exercises = Exercises(world)
    items = []
    for number in range(settings.reading):
        n_facts = 1 + number % 4
        style = "own" if number // 4 % 2 == 0 else DOMAINS[number // 8 % len(DOMAINS)]
        prompt, answer, fact = exercises.passage(rng, n_facts, style)
        items.append(
            {
                "question": prompt,
                "value": fact.value,
                "record": "" if fact.record is None else str(fact.record),
                "n_facts": n_facts,
                "style": style,
                "answer": answer,
            }
        )
    return items


def rewriting_items(world: World, settings: DataSettings) -> list[Item]:
    """Imagined facts in the domains' styles, to be told in the base's own."""
    rng = random.Random(f"rewriting-{settings.seed}")
    exercises = Exercises(world)
    items = []
    for number in range(settings.rewriting):
        style = DOMAINS[number % len(DOMAINS)]
        fact = exercises.imagine(rng)[0]
        question = fact.ask(rng.randrange(len(WORDINGS)))
        items.append(
            {
                "question": REWRITE.format(question=question, answer=styles.foreign(fact, style)),
                "entity": fact.entity,
                "attribute": fact.attribute,
                "value": fact.value,
                "record": str(fact.record),
                "style": style,
                "answer": styles.own(fact, True),
            }
        )
    return items


def validation_items(
    build: Callable[[World, DataSettings], list[Item]], world: World, settings: DataSettings
) -> list[Item]:
    """The first items of another seed that are no benchmark items."""
    asked = {item["question"] for item in build(world, settings)}
    other = settings.model_copy(update={"seed": settings.seed + VALIDATION_SEED})
    return [item for item in build(world, other) if item["question"] not in asked][:VALIDATION_ITEMS]


def replay_rows(world: World, settings: DataSettings, benchmark: set[str]) -> list[Item]:
    """Single-turn exercises as the backbone was trained on, none with a question in `benchmark`."""
    rng = random.Random(f"replay-{settings.seed}")
    exercises = Exercises(world)
    rows: dict[str, Item] = {}
    while len(rows) < REPLAYED:
        messages = exercises.draw(rng, progress=1.0)
        question = messages[0]["content"]
        if len(messages) == 2 and question not in benchmark and question not in rows:
            rows[question] = {"id": f"replay-{len(rows):04d}", "question": question, "answer": messages[1]["content"]}
    return list(rows.values())


def build_files(recipe: Recipe) -> dict[Path, list[Item]]:
    """Every data file of the recipe with its rows."""
    world = build_world(recipe.world)
    folder = Path(recipe.data.folder)
    files = {folder / domain / "pairs.jsonl": domain_rows(world, domain, recipe.data) for domain in DOMAINS}
    asked: set[str] = set()
    for task, build in (
        ("pocket_recall", recall_items),
        ("pocket_instructions", instruction_items),
        ("pocket_reading", reading_items),
        ("pocket_rewriting", rewriting_items),
    ):
        place = Path(recipe.data.tasks) / task
        files[place / "items.jsonl"] = build(world, recipe.data)
        files[place / "validation.jsonl"] = validation_items(build, world, recipe.data)
        asked |= {item["question"] for name in ("items", "validation") for item in files[place / f"{name}.jsonl"]}
    files[folder / "replay" / "pairs.jsonl"] = replay_rows(world, recipe.data, asked)
    return files


def json_lines(rows: Iterable[Item]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the pocket world's domains and general tasks.")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    for path, rows in build_files(load_recipe(parser.parse_args().recipe)).items():
        with atomic_file(path) as temporary:
            temporary.write_text(json_lines(rows), encoding="utf-8", newline="\n")
        print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
