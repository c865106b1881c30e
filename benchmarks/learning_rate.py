"""Which learning rate the pocket world's methods are compared at: chosen for SFT's sake, on validation items alone.

    python benchmarks/learning_rate.py [METHOD ...]          (default: sft raft)

Run the pipeline up to `fuse` first. Trains every method at every rate (seed 0, the other settings from params.yaml) on
what the first domain teaches it. Score: the mean of the domain's validation accuracy and the average of the general
tasks, whose items are drawn with another seed than those of the benchmark (the facts of `pocket_recall` are the same
300, in one of two held-out wordings each, so about half of its items coincide). The rule: the rate at which plain
SFT scores highest. Prints a Markdown table.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from flows import paths  # first: it prepares the environment of the libraries
from pocket_world.data import build_files, json_lines
from pocket_world.recipe import RECIPE, load_recipe
from raft_tasks.artifacts import read_rows
from raft_tasks.config import Config, load_config
from raft_tasks.evaluation.harness import DOMAIN_TASK, Suite, evaluate
from raft_tasks.generation.templates import template_text
from raft_tasks.schemas import Example, TrainingPair
from raft_tasks.training.job import TrainingJob
from raft_tasks.training.train import train_model

RATES = (2e-4, 3e-4, 5e-4, 7e-4, 1e-3)
OTHER_SEED = 1001


def validation_tasks(folder: Path) -> None:
    """The general tasks with items of another seed, as lm-eval task folders in `folder`."""
    recipe = load_recipe(RECIPE)
    data = recipe.data.model_copy(update={"seed": OTHER_SEED, "tasks": str(folder)})
    recipe = recipe.model_copy(update={"data": data})
    shutil.copytree(paths.BENCHMARK_TASKS, folder)
    for path, rows in build_files(recipe).items():
        if path.is_relative_to(folder):
            path.write_text(json_lines(rows), encoding="utf-8")


def scored(config: Config, name: str, rate: float, tasks: Path, work: Path) -> dict[str, float]:
    """Train method `name` at `rate`; its accuracy on the validation items of every task."""
    method, domain = config.methods[name], config.run.domains[0]
    train_model(
        TrainingJob(
            pairs=read_rows(paths.training(domain) / f"{name}.{config.run.rows}", TrainingPair),
            model=config.base,
            method=method,
            train=config.train.model_copy(update={"learning_rate": rate}),
            template_text=template_text(method.distillation.template) if method.distillation else "",
            seed=0,
            output=work,
            checkpoints=work / "checkpoints",
        )
    )
    validation = read_rows(paths.split(domain, "validation", config.run.rows), Example)
    model = config.base.model_copy(update={"path": str(work / "model"), "revision": None})
    scores, _ = evaluate(model, Suite(domain, validation, config.benchmark, tasks))
    return {task: scores["tasks"][task]["metrics"]["acc"] for task in (DOMAIN_TASK, *config.benchmark.tasks)}


def main() -> None:
    config = load_config()
    general = config.benchmark.tasks
    print(f"{config.run.domains[0]}, {config.train.epochs} epochs, batch {config.train.batch_size}, seed 0; percent\n")
    print(f"| method | rate | {' | '.join((DOMAIN_TASK, *general))} | general | score |")
    print("|---|---:|" + "---:|" * (len(general) + 3), flush=True)
    best: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tasks = Path(folder) / "tasks"
        validation_tasks(tasks)
        for name in sys.argv[1:] or ["sft", "raft"]:
            for rate in RATES:
                work = Path(folder) / f"{name}-{rate:g}"
                (work / "lm-eval").mkdir(parents=True)
                found = scored(config, name, rate, tasks, work)
                kept = sum(found[task] for task in general) / len(general)
                score = (found[DOMAIN_TASK] + kept) / 2
                cells = " | ".join(f"{100 * value:.1f}" for value in (*found.values(), kept, score))
                print(f"| {name} | {rate:g} | {cells} |", flush=True)
                best[name] = max(best.get(name, (0.0, 0.0)), (score, rate))
    print("\nbest: " + ", ".join(f"{name} at {rate:g}" for name, (_, rate) in best.items()))


if __name__ == "__main__":
    main()
