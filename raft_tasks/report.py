"""Task of the stage `report`: artifacts -> metrics and the page."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from raft_tasks.artifacts import read_yaml
from raft_tasks.config import Config
from raft_tasks.reporting.report import Origin, write_report, write_summary
from raft_tasks.reporting.study import collect
from raft_tasks.reporting.tables import measure


@task(cache_policy=NO_CACHE)
def report_run(config: Config, artifacts: Path, sweeps: Path, lock: Path, page: Path, summary: Path) -> dict[str, Any]:
    """Write the page and the Markdown of everything under `artifacts` and `sweeps`; returns the metrics.

    Args:
        lock: dvc.lock, which says in which version the data was read.
    """
    study = collect(artifacts, sweeps, config)
    metrics = measure(study)
    origin = Origin(git_revision(), data_versions(lock))
    write_report(study, metrics, origin, page)
    write_summary(metrics, origin, summary)
    return metrics


def data_versions(lock: Path) -> dict[str, str]:
    """{path under data/ or documents/: version} of what the stages that have run read; empty without a lock file."""
    if not lock.exists():
        return {}
    stages = read_yaml(lock)["stages"].values()
    read = [one for stage in stages for one in stage.get("deps", []) if one["path"].startswith(("data/", "documents/"))]
    return {one["path"]: f"{one['hash']} {one[one['hash']]}" for one in sorted(read, key=lambda one: one["path"])}


def git_revision() -> str | None:
    """The commit that is checked out, with `-dirty` if tracked files differ from it; None outside a git repository."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=False
    )
    return described.stdout.strip() or None
