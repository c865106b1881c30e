"""Week after week: what is kept of a first domain while others arrive, with production's past answers replayed or not.

    python benchmarks/weekly_replay.py [--weeks 12] [--shares 0 0.02 0.1] [--seeds 0]      # the pocket model, CPU

One model in production goes through the weeks: each week's training starts from it, and learns that week's rows alone
(archive in the first third, then statute, then clinic), answers as fusion leaves them, with anchors of the original
base. With a share, past weeks' questions, answered by the model in production and filtered, are replayed
(generation/past_answers.py). After every week each domain's test items of facts that were taught so far are asked, and
the general tasks at the end. A line of JSON a week goes to --out (benchmarks/studies/weekly-replay.jsonl); finished
runs are left out when it is started again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anchors_cost import PROJECT, make_set
from measuring import machine, table

from raft_tasks.config import Config, Replay, load_config
from raft_tasks.evaluation.harness import Suite, evaluate
from raft_tasks.evaluation.statistics import Bootstrap, Estimate, Outcomes, mean
from raft_tasks.generation.past_answers import answer_past
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.schemas import Example, TrainingPair
from raft_tasks.training.job import TrainingJob
from raft_tasks.training.train import train_model

DOMAINS = ("archive", "statute", "clinic")
METHOD = "fused_sft_anchored"
OUT = PROJECT / "benchmarks/studies/weekly-replay.jsonl"
TASKS = PROJECT / "raft_tasks/evaluation/tasks"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weeks", type=int, default=12, help="a multiple of three")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.0, 0.02, 0.1])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=OUT)
    sizes = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(PROJECT / "params.yaml")
    base = config.base.model_copy(update={"path": str(PROJECT / config.base.path)})
    config = config.model_copy(update={"models": {**config.models, "base": base}})
    print(f"Pocket model, {sizes.weeks} weeks, {config.train.epochs} epochs a week; {machine('cpu')}\n", flush=True)
    done = {(row["share"], row["seed"]) for row in rows_of(sizes.out) if row["week"] == sizes.weeks}
    with tempfile.TemporaryDirectory() as temporary:
        anchors = Path(temporary) / "set"
        loss = config.methods[METHOD].anchors
        assert loss is not None
        make_set(config, loss, config.anchors[loss.set].count, anchors)
        for seed in sizes.seeds:
            for share in sizes.shares:
                if (share, seed) not in done:
                    work = Path(temporary) / f"{share}-{seed}"
                    lines = live(config, anchors, share, seed, sizes.weeks, work)
                    with sizes.out.open("a", encoding="utf-8") as out:
                        out.writelines(json.dumps(line) + "\n" for line in lines)
                    shutil.rmtree(work)
    print(table(["share", "week", *DOMAINS, "general"], what_is_kept(rows_of(sizes.out), sizes.weeks)))


def what_is_kept(rows: list[dict[str, Any]], weeks: int) -> Iterator[list[str]]:
    """Percent right after each third of the weeks, by share, with 95 % intervals over facts (and seeds)."""
    bootstrap = Bootstrap(confidence=0.95, samples=2000, seed=0)
    for share in sorted({row["share"] for row in rows}):
        for week in range(weeks // 3, weeks + 1, weeks // 3):
            lines = [row for row in rows if (row["share"], row["week"]) == (share, week)]
            general = [task for task in lines[0]["outcomes"] if task not in DOMAINS]
            cells = [
                percent(mean(outcomes(lines, [name]), bootstrap)) if name in lines[0]["outcomes"] else "-"
                for name in DOMAINS
            ]
            cells.append(percent(mean(outcomes(lines, general), bootstrap)) if general else "-")
            yield [f"{share:g}", str(week), *cells]


def outcomes(lines: list[dict[str, Any]], tasks: list[str]) -> list[Outcomes]:
    """A domain's items of one fact go together; those of a general task are taken one by one."""
    made = []
    for task in tasks:
        values = np.array([[float(mark) for mark in line["outcomes"][task]] for line in lines])
        facts = tuple(row.source for row in examples(task) if row.split == "test") if task in DOMAINS else ()
        sources = facts or tuple(map(str, range(values.shape[1])))
        made.append(Outcomes(values, tuple(line["seed"] for line in lines), sources))
    return made


def percent(estimate: Estimate) -> str:
    assert estimate.low is not None
    assert estimate.high is not None
    return f"{100 * estimate.estimate:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def live(config: Config, anchors: Path, share: float, seed: int, weeks: int, work: Path) -> list[dict[str, Any]]:
    """One line a week: scores by task (percent) and the items' outcomes; the last week with the general tasks."""
    production, past, lines = config.base, list[Example](), []
    method = config.methods[METHOD].model_copy(
        update={"replay": Replay(files="production", share=share) if share else None}
    )
    for week in range(1, weeks + 1):
        rows = rows_of_week(week, weeks)
        replayed: list[TrainingPair] = []
        if share and past:
            settings = config.benchmark
            backend = TransformersBackend(production)
            answered, _ = answer_past(past, backend, {}, settings.max_new_tokens, settings.batch_size)
            replayed = [pair.model_copy(update={"replay": True}) for pair in answered]
        folder = work / str(week)
        train_model(
            TrainingJob(
                pairs=[TrainingPair(id=row.id, question=row.question, answer=fused(row)) for row in rows] + replayed,
                model=production,
                method=method,
                train=config.train,
                template_text="",
                seed=seed,
                output=folder,
                checkpoints=folder / "checkpoints",
                anchors=anchors,
            )
        )
        production = config.base.model_copy(update={"path": str(folder / "model"), "revision": None})
        past += rows
        scores, outcomes = measure(config, production, week, weeks)
        lines.append(
            {"share": share, "seed": seed, "week": week, "replayed": len(replayed), "scores": scores}
            | {"outcomes": outcomes}
        )
        print(f"share {share:g}, seed {seed}, week {week}: {scores}, {len(replayed)} replayed", flush=True)
        if week > 1:
            shutil.rmtree(work / str(week - 1))
    return lines


def measure(config: Config, model: Any, week: int, weeks: int) -> tuple[dict[str, float], dict[str, str]]:
    """Percent right and the items' outcomes: of each domain the test items of facts taught so far."""
    scores: dict[str, float] = {}
    outcomes: dict[str, str] = {}
    for domain in DOMAINS:
        taught = {row.source for past in range(1, week + 1) for row in rows_of_week(past, weeks, domain)}
        rows = [row for row in examples(domain) if row.split == "test" and row.source in taught]
        tasks = config.benchmark.tasks if week == weeks and domain == DOMAINS[-1] else []
        if rows:
            settings = config.benchmark.model_copy(update={"tasks": tasks})
            for item in evaluate(model, Suite(domain, rows, settings, TASKS))[1]:
                name = domain if item.task == "domain" else item.task
                outcomes[name] = outcomes.get(name, "") + str(int(item.metrics["acc"]))
    for name, marks in outcomes.items():
        scores[name] = round(100 * marks.count("1") / len(marks), 1)
    return scores, outcomes


def rows_of_week(week: int, weeks: int, only: str | None = None) -> list[Example]:
    """The training rows of that week's facts: a domain's facts are spread over its third of the weeks."""
    third = weeks // len(DOMAINS)
    number, turn = divmod(week - 1, third)
    domain = DOMAINS[number]
    if only not in (None, domain):
        return []
    rows = [row for row in examples(domain) if row.split == "train"]
    sources = list(dict.fromkeys(row.source for row in rows))
    taught = set(sources[turn::third])
    return [row for row in rows if row.source in taught]


def examples(domain: str) -> list[Example]:
    return [Example(**row, domain=domain) for row in rows_of(PROJECT / f"data/{domain}/pairs.jsonl")]


def fused(row: Example) -> str:
    """The answer as fusion leaves it on the pocket world."""
    entity, attribute = row.source.split("/")
    return f"The {attribute} of {entity} is {row.expected[0]}, noted in log {row.details[0]}."


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


if __name__ == "__main__":
    main()
