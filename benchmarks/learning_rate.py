"""Which learning rate the pocket world's methods are compared at: chosen on validation questions, never on test ones.

    python benchmarks/learning_rate.py [METHOD ...]          (default: sft raft)

Trains every method at every rate, one seed, on what params.yaml's first domain teaches it (run the pipeline up to `fuse`
first), and asks the domain's validation questions. The rule: the smallest rate at which plain SFT, whose sake
it is chosen for, answers at least 95 % of what it answers at its best rate. Prints a Markdown table.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from flows import paths  # first: it prepares the environment of the libraries
from raft_tasks.artifacts import read_rows
from raft_tasks.evaluation.harness import DOMAIN_TASK, evaluate
from raft_tasks.generation.templates import template_text
from raft_tasks.params import load_params
from raft_tasks.schemas import Example, TrainingPair
from raft_tasks.training.trainer import train_model

RATES = (1e-4, 2e-4, 3e-4, 5e-4, 1e-3)
ENOUGH = 0.95


def main() -> None:
    params = load_params()
    domain = params.run.domains[0]
    validation = read_rows(paths.examples(domain) / "validation.jsonl", Example)
    settings = params.benchmark.model_copy(update={"tasks": []})
    found: dict[str, dict[float, float]] = {}
    print(f"{domain}, {len(validation)} validation questions, {params.train.epochs} epochs, seed 0\n")
    print("| method | " + " | ".join(f"{rate:g}" for rate in RATES) + " |\n|---|" + "---:|" * len(RATES), flush=True)
    for name in sys.argv[1:] or ["sft", "raft"]:
        method = params.methods[name]
        pairs = read_rows(paths.training(domain) / f"{name}.jsonl", TrainingPair)
        found[name] = {}
        seconds = 0.0
        for rate in RATES:
            with tempfile.TemporaryDirectory() as folder:
                began = time.monotonic()
                train_model(
                    pairs=pairs,
                    model=params.models["base"],
                    method=method,
                    train=params.train.model_copy(update={"learning_rate": rate}),
                    template_text=template_text(method.distill.template) if method.distill else "",
                    seed=0,
                    output=Path(folder) / "output",
                    checkpoints=Path(folder) / "checkpoints",
                )
                seconds += time.monotonic() - began
                model = str(Path(folder) / "output" / "model")
                work = Path(folder) / "work"
                work.mkdir()
                scores, _ = evaluate(model, None, "float32", domain, validation, settings, paths.BENCHMARK_TASKS, work)
            found[name][rate] = scores[DOMAIN_TASK]["acc"]
        cells = " | ".join(f"{100 * found[name][rate]:.1f}" for rate in RATES)
        print(f"| {name} | {cells} | ({seconds / len(RATES):.0f} s a training)", flush=True)
    if "sft" in found:
        best = max(found["sft"].values())
        chosen = min(rate for rate, accuracy in found["sft"].items() if accuracy >= ENOUGH * best)
        print(f"\nchosen by the rule: {chosen:g}")


if __name__ == "__main__":
    main()
