"""Keep what the real model's study measured: one line per model, with the outcome of every item.

    python benchmarks/real_outcomes.py real > benchmarks/studies/real-model.jsonl

`real` is the project that `make real` makes; more seeds, methods and domains in its params.yaml widen the study, and
`raft run` goes on with what is missing. An outcome is "1" (right) or "0" by the task's main metric, in items' order.
A line without a model tells what became of a domain's references in refinement.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from flows import paths
from raft_tasks.artifacts import read_json, read_rows
from raft_tasks.checks import check
from raft_tasks.config import Config, load_config
from raft_tasks.evaluation.verdicts import main_metric
from raft_tasks.schemas import Fused, ItemResult


def outcomes(folder: Path) -> dict[str, Any]:
    """Scores and outcomes by task."""
    rows = read_rows(folder / "items.jsonl", ItemResult)
    marks: dict[str, str] = {}
    for row in rows:
        marks[row.task] = marks.get(row.task, "") + str(int(row.metrics[main_metric(row.metrics)] == 1))
    scores = {task: round(of_task.count("1") / len(of_task), 4) for task, of_task in marks.items()}
    perplexity = read_json(folder / "scores.json")["tasks"]["lambada_openai"]["metrics"]["perplexity"]
    two_digits = sum(row.task == "domain" and re.search(r"\b\d\d\b", row.answer) is not None for row in rows)
    return {
        "lambada_perplexity": round(perplexity, 1),
        "domain_answers_with_two_digits": two_digits,  # a chapter has two; some trainings stop after the first
        "scores": scores,
        "outcomes": marks,
    }


def refinement(domain: str, config: Config) -> dict[str, int]:
    """Training rows: rewrites that passed, fused answers, those right by the first check, references kept."""
    rows = [row for row in read_rows(paths.fused(domain, config.run.rows), Fused) if row.split == "train"]
    checks = dict([*config.domains[domain].checks.items()][:1])
    fused = [row for row in rows if row.fused != row.answer]
    return {
        "rows": len(rows),
        "rewrites": sum(row.passed for row in rows),
        "rewrites_right": sum(row.passed and all(check(row.rewritten, row.answer, checks).values()) for row in rows),
        "fused": len(fused),
        "fused_right": sum(all(check(row.fused, row.answer, checks).values()) for row in fused),
        "references_kept": len(rows) - len(fused),
    }


def main() -> None:
    os.chdir(sys.argv[1])
    config = load_config()
    for domain in config.run.domains:
        print(json.dumps({"domain": domain, "refinement": refinement(domain, config)}))
    artifacts = Path("artifacts")
    for items in sorted(artifacts.glob("*/benchmarks/*/items.jsonl")):
        domain, model = items.parts[-4], items.parts[-2]
        facts: dict[str, Any] = {"domain": domain, "model": model}
        summary = artifacts / domain / "runs" / model / "summary.json"
        if summary.exists():
            facts |= {key: read_json(summary)[key] for key in ("steps", "seconds", "rows", "final", "lambda")}
        print(json.dumps(facts | outcomes(items.parent)))


if __name__ == "__main__":
    main()
