"""What the forgetting curve costs and shows: the pocket archive, with and without greedy answers.

    OMP_NUM_THREADS=1 python benchmarks/forgetting.py [--epochs 4]      # the pocket model, on the CPU; minutes

Trains SFT on the references, fused SFT and fused SFT with anchors for the epochs of params.yaml, measures every 40
steps on 16 rows and prints every curve.csv, and the time of the measurements against that of the steps.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from pathlib import Path

import torch
from anchors_cost import ANCHORED, PLAIN, PROJECT, domain_pairs, make_set
from measuring import machine, table

from raft_tasks.config import Config, Curve, load_config
from raft_tasks.schemas import Example, TrainingPair
from raft_tasks.training.job import CurveInputs, TrainingJob
from raft_tasks.training.train import train_model

METHODS = ("sft", PLAIN, ANCHORED)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40, help="between measurements")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--tokens", nargs="+", type=int, default=[0, 40], help="of greedy answers; 0: none")
    sizes = parser.parse_args(arguments)
    torch.set_num_threads(1)
    config = load_config(PROJECT / "params.yaml")
    print(f"Pocket model, batch {config.train.batch_size}, 1 thread; {machine('cpu')}\n")
    with tempfile.TemporaryDirectory() as temporary:
        place, sets = Path(temporary), {}
        for name, count in (("generated", 400), ("held_out", 100)):
            loss = config.methods[ANCHORED].anchors
            assert loss is not None
            make_set(config, loss.model_copy(update={"set": name}), count, place / name)
            sets[name] = place / name
        for method in sizes.methods:
            for tokens in sizes.tokens:
                curve = Curve(steps=sizes.steps, rows=sizes.rows, answer_max_new_tokens=tokens or None)
                train = config.train.model_copy(update={"epochs": sizes.epochs, "curve": curve})
                report(config.model_copy(update={"train": train}), method, sets, place / f"{method}-{tokens}")


def report(config: Config, method: str, sets: dict[str, Path], folder: Path) -> None:
    fused, references, validation = domain_pairs(), [], []
    for row in map(json.loads, (PROJECT / "data/archive/pairs.jsonl").read_text().splitlines()):
        if row["split"] == "train":
            references.append(TrainingPair(id=row["id"], question=row["question"], answer=row["answer"]))
        elif row["split"] == "validation":
            validation.append(Example(domain="archive", **row))
    row = config.methods[method]
    summary = train_model(
        TrainingJob(
            pairs=references if row.target == "reference" else fused,
            model=config.base,
            method=row,
            train=config.train,
            template_text="",
            seed=0,
            output=folder / "output",
            checkpoints=folder / "checkpoints",
            anchors=sets["generated"] if row.anchors else None,
            curve=CurveInputs(validation, {"held_out": sets["held_out"]}),
        )
    )
    assert summary is not None
    with (folder / "output" / "curve.csv").open(newline="") as file:
        points = list(csv.DictReader(file))
    print(table(list(points[0]), [[f"{float(value):.4g}" for value in point.values()] for point in points]))
    shares = f"{summary['curve']['time_share']:.1%} of the steps' {summary['seconds']:.1f} s"
    print(f"\n{method}: the curve takes {shares} ({summary['steps']} steps)\n", flush=True)


if __name__ == "__main__":
    main()
