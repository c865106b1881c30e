"""Task of the stage `report`: artifacts -> metrics and the page."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from raft_tasks.params import Params
from raft_tasks.reporting.report import write_report
from raft_tasks.reporting.study import collect
from raft_tasks.reporting.tables import measure


@task(cache_policy=NO_CACHE)
def report_run(params: Params, artifacts: Path, page: Path) -> dict[str, Any]:
    """Write the page of everything under `artifacts` to `page`; returns the metrics."""
    study = collect(artifacts, params)
    metrics = measure(study)
    write_report(study, metrics, git_revision(), page)
    return metrics


def git_revision() -> str | None:
    """The commit that is checked out, with `-dirty` if tracked files differ from it; None outside a git repository."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or None
