"""The model registry: versions and stages as git tags, made by GTO; the bytes lie where DVC keeps them.

    raft-archive@v3.0.0    version 3 of the model of the domain `archive`: in that commit, releases/archive.dvc
    raft-archive#prod#5    the fifth time that a version went into production; the newest one counts

`dvc artifacts get <repository> raft-archive --stage prod` fetches what is in production.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import gto.api
from dvc.repo import Repo
from gto.registry import GitRegistry

from raft_tasks.errors import InputError, OperationalError

PRODUCTION = "prod"
RELEASES = Path("releases")  # <domain>.dvc and <domain>.json, the verdict, are in git; the model in DVC


@dataclass(frozen=True)
class Version:
    """A released model."""

    name: str  # raft-<domain>
    number: str  # v3.0.0; GTO wants three parts
    revision: str  # the commit that its tag names, where the model lies at `released(domain)`

    def __str__(self) -> str:
        return f"{self.name}@{self.number}"


@dataclass(frozen=True)
class Promotion:
    """A version that went into production."""

    version: Version
    tag: str  # raft-<domain>#prod#5
    when: datetime
    message: str


def name_of(domain: str) -> str:
    return f"raft-{domain}"


def released(domain: str) -> Path:
    """Where the domain's released model lies, in every commit."""
    return RELEASES / domain


def promotions(repository: Path, domain: str) -> list[Promotion]:
    """What went into production, oldest first; a version as often as it did."""
    name = name_of(domain)
    assigned = [
        Promotion(Version(name, version.version, version.commit_hexsha), event.tag, event.created_at, event.message)
        for version in _versions(repository, name)
        if PRODUCTION in version.stages and version.stages[PRODUCTION].is_active  # not taken out again
        for event in version.stages[PRODUCTION].assignments
    ]
    # by the 5 of raft-archive#prod#5: the order in which stages were assigned, whatever the clocks said
    return sorted(assigned, key=lambda promotion: int(promotion.tag.rsplit("#", 1)[1]))


def champion(repository: Path, domain: str) -> Version | None:
    """The version in production, by the repository's own tags; None where none ever was."""
    return next((promotion.version for promotion in reversed(promotions(repository, domain))), None)


def promote(repository: Path, domain: str, message: str) -> list[str]:
    """Register the model of HEAD as the domain's next version and put it into production.

    The tags are made here and pushed by the caller: all in one push, which fails where another run was faster.

    Args:
        message: why, in one line; it becomes the tags' message.

    Raises:
        OperationalError: if the DVC remote lacks any of the model's files; nothing is tagged then.
    """
    target = str(repository / RELEASES / f"{domain}.dvc")
    with Repo(str(repository)) as repo:
        missing = repo.status(targets=[target], cloud=True)
    if missing:
        raise OperationalError(f"{target}: the DVC remote lacks {sorted(missing)}; push it before it is tagged")
    name, folder = name_of(domain), str(repository)
    numbers = [int(version.version.removeprefix("v").split(".")[0]) for version in _versions(repository, name)]
    version = gto.api.register(folder, name, "HEAD", version=f"v{max(numbers, default=0) + 1}.0.0", message=message)
    assigned = gto.api.assign(folder, name, PRODUCTION, ref="HEAD", message=message)
    return [version.tag, assigned.tag]


def roll_back(repository: Path, domain: str, message: str) -> tuple[Version, str]:
    """Put the version that the present one replaced into production again; returns it and the new tag.

    Raises:
        InputError: if there is no earlier version.
    """
    replaced = _replaced(promotion.version for promotion in promotions(repository, domain))
    if len(replaced) < 2:
        now = f"nothing was before {replaced[0]}" if replaced else "no model has ever been"
        raise InputError(f"domain {domain!r}: {now} in production, expected an earlier version to go back to")
    back = replaced[-2]
    assigned = gto.api.assign(str(repository), back.name, PRODUCTION, version=back.number, message=message, force=True)
    return back, assigned.tag


def _replaced(history: Iterable[Version]) -> list[Version]:
    """The version in production, last, behind each that the next one replaced; a version that returns undoes those."""
    stack: list[Version] = []
    for version in history:
        if version in stack:
            del stack[stack.index(version) :]
        stack.append(version)
    return stack


def _versions(repository: Path, name: str) -> list[Any]:
    """GTO's versions of an artifact; tags of git hold them."""
    if not (repository / ".git").exists():
        raise InputError(
            f"{repository.absolute()}: expected a git repository, whose tags say what is in production; "
            "`git init` makes it one"
        )
    with GitRegistry.from_url(str(repository)) as registry:
        artifact = registry.get_artifacts().get(name)
    return artifact.get_versions() if artifact else []
