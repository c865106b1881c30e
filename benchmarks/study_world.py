"""The pocket worlds of benchmarks/study.py as files: rows of the domains, general tasks, and the study's extra tasks.

Kept in .cache/study, made once by whichever process comes first.
"""

from __future__ import annotations

import fcntl
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from flows import paths  # first: it prepares the environment of the libraries
from pocket_world.data import Item, build_files, json_lines
from pocket_world.exercises import CONSTRAINTS, Exercises, obey
from pocket_world.recipe import RECIPE, Recipe, load_recipe
from pocket_world.styles import own
from pocket_world.world import WORDINGS, World, build_world
from raft_tasks.artifacts import atomic_folder, digest
from raft_tasks.schemas import Example

KEPT_WORK = Path(".cache/study")
WORLDS = {"easy": RECIPE, "hard": Path("worlds/hard/recipe.yaml"), "second": Path("worlds/second/recipe.yaml")}
EXTRA = ("pocket_domain_instructions", "pocket_skills")
SKILLS = 100  # items

SCORING = """
def process_skills(doc, results):
    return {"acc": float(results[0].strip() == doc["answer"])}
"""


@contextmanager
def made_once(folder: Path) -> Iterator[Path | None]:
    """A folder to fill, or None where it is there already; whoever comes second waits."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            yield None
        else:
            with atomic_folder(folder) as partial_folder:
                yield partial_folder


def world_folder(name: str) -> Path:
    """tasks/ with the general and the extra tasks of a world, <domain>.jsonl with its rows, replay.jsonl."""
    recipe = load_recipe(WORLDS[name])
    place = KEPT_WORK / digest([recipe.world, recipe.data])[:12]
    with made_once(place) as folder:
        if folder is not None:
            write_world(recipe, folder)
    return place


def write_world(recipe: Recipe, folder: Path) -> None:
    world, tasks = build_world(recipe.world), folder / "tasks"
    shutil.copytree(paths.BENCHMARK_TASKS, tasks)
    files = build_files(recipe.model_copy(update={"data": recipe.data.model_copy(update={"tasks": str(tasks)})}))
    for path, rows in files.items():
        if not path.is_relative_to(tasks):
            path = folder / f"{path.parent.name}.jsonl"
        path.write_text(json_lines(rows), encoding="utf-8")
    for domain in world.domains:
        path = tasks / "pocket_instructions" / f"{domain}.jsonl"
        path.write_text(json_lines(domain_instructions(world, domain, files)), encoding="utf-8")
    (tasks / "pocket_skills").mkdir()
    (tasks / "pocket_skills" / "skills_scoring.py").write_text(SCORING)
    (tasks / "pocket_skills" / "items.jsonl").write_text(json_lines(skill_items(world)), encoding="utf-8")
    text = (paths.BENCHMARK_TASKS / "pocket_reading/pocket_reading.yaml").read_text()
    text = text.replace("pocket_reading", "pocket_skills").replace(
        "scoring.process_results", "skills_scoring.process_skills"
    )
    text = "\n".join(line for line in text.split("\n") if "metric: complete" not in line)
    (tasks / "pocket_skills" / "pocket_skills.yaml").write_text(text)


def domain_instructions(world: World, domain: str, files: dict[Path, list[Item]]) -> list[Item]:
    """Two items of every fact: a wording that its training rows do not have, and a constraint."""
    drawn_for = {"archive": "registry"}.get(domain, domain)  # its name when the study began: the items stay the same
    rng = random.Random(f"domain-instructions-{drawn_for}")
    rows = next(rows for path, rows in files.items() if path.parent.name == domain)
    asked = {row["question"] for row in rows if row["split"] == "train"}
    items = []
    for fact in world.domains[domain]:
        unseen = [wording for wording in range(len(WORDINGS)) if fact.ask(wording) not in asked]
        for wording, constraint in zip(rng.sample(unseen, 2), rng.sample(sorted(CONSTRAINTS), 2), strict=True):
            argument = rng.choice(("rope", "lamp", "oak", "key")) if constraint in ("start", "end") else ""
            argument = "2" if constraint == "list" else argument
            demand = rng.choice(CONSTRAINTS[constraint]).format(argument=argument)
            items.append(
                {
                    "question": f"{fact.ask(wording)} {demand}",
                    "constraint": constraint,
                    "argument": argument,
                    "value": fact.value,
                    "source": fact.source,
                    "answer": obey(constraint, argument, own(fact, True), fact.value, (fact.entity, fact.value)),
                }
            )
    return items


def skill_items(world: World) -> list[Item]:
    rng, exercises = random.Random(f"skills-{world.seed}"), Exercises(world)
    drawn = (exercises.skills(rng) for _ in range(SKILLS))
    return [{"question": asked["content"], "answer": said["content"]} for asked, said in drawn]


@cache
def domain_tasks(place: Path, domain: str) -> Path:
    """The world's tasks and the domain's instructions."""
    target = place / f"tasks-{domain}"
    with made_once(target) as folder:
        if folder is not None:
            shutil.copytree(place / "tasks", folder, dirs_exist_ok=True)
            shutil.copytree(folder / "pocket_instructions", folder / EXTRA[0])
            instructions = folder / EXTRA[0]
            for path in instructions.glob("*_validation.yaml"):
                path.unlink()
            text = (instructions / "pocket_instructions.yaml").read_text()
            text = text.replace("items.jsonl", f"{domain}.jsonl")
            (instructions / "pocket_instructions.yaml").unlink()
            text = text.replace("task: pocket_instructions", "task: pocket_domain_instructions")
            (instructions / "pocket_domain_instructions.yaml").write_text(text)
    return target


def examples_of(place: Path, domain: str) -> list[Example]:
    return [Example(**row, domain=domain) for row in rows_of(place / f"{domain}.jsonl")]


def rows_of(path: Path) -> list[Item]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
