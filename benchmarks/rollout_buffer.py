"""What a rollout buffer costs and saves: RAFT with 1, 2, 4 and 8 optimiser steps served by one sampling.

    python benchmarks/rollout_buffer.py [SEED ...]           (default: 0 1 2)

Run the pipeline up to `fuse` first. Trains the first domain by `raft` at every buffer size and seed, the other settings
from params.yaml, and evaluates on validation items (see benchmarks/learning_rate.py): the domain's accuracy, the mean
of the general tasks, seconds of training and the share of them that sampling took. Prints a Markdown table of means
and, of the scores, the smallest and largest seed.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path
from statistics import mean

from learning_rate import validation_tasks

from flows import paths
from raft_tasks.artifacts import read_rows
from raft_tasks.config import Config, load_config
from raft_tasks.evaluation.harness import DOMAIN_TASK, Suite, evaluate
from raft_tasks.generation.templates import template_text
from raft_tasks.schemas import Example, TrainingPair
from raft_tasks.training.job import TrainingJob
from raft_tasks.training.train import train_model

METHOD = "raft"
STEPS = (1, 2, 4, 8)


def trained(config: Config, rollout_steps: int, seed: int, tasks: Path, work: Path) -> dict[str, float]:
    """Train with this buffer; accuracies on validation items, time, share of sampling."""
    domain, row, kind = config.run.domains[0], config.methods[METHOD], config.run.rows
    assert row.distillation is not None
    method = row.model_copy(
        update={"distillation": row.distillation.model_copy(update={"rollout_steps": rollout_steps})}
    )
    summary = train_model(
        TrainingJob(
            pairs=read_rows(paths.training(domain) / f"{METHOD}.{kind}", TrainingPair),
            model=config.base,
            method=method,
            train=config.train,
            template_text=template_text(row.distillation.template),
            seed=seed,
            output=work,
            checkpoints=work / "checkpoints",
        )
    )
    assert summary is not None
    with (work / "steps.csv").open(newline="") as table:
        sampling = sum(float(step["rollout_share"]) * float(step["seconds"]) for step in csv.DictReader(table))
    model = config.base.model_copy(update={"path": str(work / "model"), "revision": None})
    validation = read_rows(paths.split(domain, "validation", kind), Example)
    scores, _ = evaluate(model, Suite(domain, validation, config.benchmark, tasks))
    return {
        "domain": scores["tasks"][DOMAIN_TASK]["metrics"]["acc"],
        "general": mean(scores["tasks"][task]["metrics"]["acc"] for task in config.benchmark.tasks),
        "seconds": summary["seconds"],
        "sampling": sampling / summary["seconds"],
    }


def main() -> None:
    config, seeds = load_config(), [int(seed) for seed in sys.argv[1:]] or [0, 1, 2]
    print(f"{config.run.domains[0]}, {METHOD}, seeds {seeds}, {config.train.epochs} epochs; accuracies in percent\n")
    print("| steps a sampling serves | domain | general | seconds | share of sampling |\n|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        tasks = Path(folder) / "tasks"
        validation_tasks(tasks)
        for steps in STEPS:
            runs = []
            for seed in seeds:
                work = Path(folder) / f"{steps}-{seed}"
                (work / "lm-eval").mkdir(parents=True)
                runs.append(trained(config, steps, seed, tasks, work))
            cells = [
                "{:.1f} ({:.1f} - {:.1f})".format(*(100 * of([run[name] for run in runs]) for of in (mean, min, max)))
                for name in ("domain", "general")
            ]
            cells += [f"{mean(run['seconds'] for run in runs):.1f}", f"{mean(run['sampling'] for run in runs):.0%}"]
            print(f"| {steps} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
