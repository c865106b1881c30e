"""Keep what the real model's study measured: one line per model, with the outcome of every item.

    python benchmarks/real_outcomes.py real > benchmarks/studies/real-model.jsonl

`real` is the project that `make real` makes; more seeds, methods and domains in its params.yaml widen the study, and
`raft run` goes on with what is missing. An outcome is "1" (right) or "0" by the task's main metric, in items' order.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from raft_tasks.artifacts import read_json, read_rows
from raft_tasks.evaluation.verdicts import main_metric
from raft_tasks.schemas import ItemResult


def outcomes(folder: Path) -> dict[str, Any]:
    """Scores and outcomes by task."""
    rows = read_rows(folder / "items.jsonl", ItemResult)
    marks: dict[str, str] = {}
    for row in rows:
        marks[row.task] = marks.get(row.task, "") + str(int(row.metrics[main_metric(row.metrics)] == 1))
    scores = {task: round(of_task.count("1") / len(of_task), 4) for task, of_task in marks.items()}
    return {"scores": scores, "outcomes": marks}


def main() -> None:
    artifacts = Path(sys.argv[1], "artifacts")
    for items in sorted(artifacts.glob("*/benchmarks/*/items.jsonl")):
        domain, model = items.parts[-4], items.parts[-2]
        facts: dict[str, Any] = {"domain": domain, "model": model}
        summary = artifacts / domain / "runs" / model / "summary.json"
        if summary.exists():
            facts |= {key: read_json(summary)[key] for key in ("steps", "seconds", "rows", "final", "lambda")}
        print(json.dumps(facts | outcomes(items.parent)))


if __name__ == "__main__":
    main()
