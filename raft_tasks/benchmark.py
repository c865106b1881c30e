"""Task of the stage `benchmark`: one model through lm-eval, on its domain's held-out rows and the general tasks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from raft_tasks import config
from raft_tasks.evaluation.harness import evaluate
from raft_tasks.schemas import Example, ItemResult


@task(cache_policy=NO_CACHE)
def benchmark_model(
    model: config.Model, domain: str, test_rows: list[Example], settings: config.Benchmark, tasks: Path
) -> tuple[dict[str, Any], list[ItemResult]]:
    """Scores and per-item outcomes. Never cached by request: lm-eval's own response cache does not see the weights."""
    with tempfile.TemporaryDirectory() as work:
        return evaluate(model, domain, test_rows, settings, tasks, Path(work))
