"""What made the numbers, beside the artifacts: the commit and the versions of the data."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from raft_tasks.artifacts import read_yaml


@dataclass(frozen=True)
class Origin:
    git_revision: str | None  # of the code; None outside a git repository
    data: dict[str, str]  # path of a data set -> its version, as DVC notes it


def read_origin(lock: Path) -> Origin:
    """The present commit and the data versions in `lock`, which is dvc.lock."""
    return Origin(git_revision(), data_versions(lock))


def data_versions(lock: Path) -> dict[str, str]:
    """{path under data/ or documents/: version} of what the stages that have run read; empty without a lock file."""
    if not lock.exists():
        return {}
    stages = read_yaml(lock)["stages"].values()
    deps = [dep for stage in stages for dep in stage.get("deps", []) if dep["path"].startswith(("data/", "documents/"))]
    return {dep["path"]: f"{dep['hash']} {dep[dep['hash']]}" for dep in sorted(deps, key=lambda dep: dep["path"])}


def git_revision() -> str | None:
    """The commit that is checked out, with `-dirty` if tracked files differ from it; None outside a git repository."""
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or None
