"""What a comparison may be of: a folder, a model of the hub, or what a revision of this repository holds.

models/pocket-base                      a folder with a config.json
HuggingFaceTB/SmolLM3-3B@<revision>     a hub id; without a revision its newest state
git:main:raft-0                         what this run's training, and recovery, left in a commit, branch, tag
git:clear-mole:raft-0                   or experiment (`dvc exp show` names them)
git:v1:models/pocket-base               any folder of a revision, kept by git or DVC
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import resolve_rev
from dvc_data.index import DataIndexDirError

from raft_tasks.config import Model
from raft_tasks.errors import InputError

REVISION = "git:"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@contextmanager
def located(what: str, folders: list[str], settings: Model) -> Iterator[Model]:
    """The model that `what` names; one that comes from a revision is there until the block ends.

    Args:
        folders: of a revision's run, the first that is there counts; "{}" stands for method and seed.
        settings: dtype and system prompt, the same for all that is compared.

    Raises:
        InputError: if there is no such model.
    """
    if what.startswith(REVISION):
        with TemporaryDirectory() as work:
            yield settings.model_copy(update={"path": str(_fetched(what, folders, Path(work))), "revision": None})
    elif Path(what).exists():
        yield settings.model_copy(update={"path": str(_checked(Path(what), what)), "revision": None})
    elif HUB_ID.fullmatch(what) and not what.startswith(("models/", "artifacts/")):
        name, _, revision = what.partition("@")
        yield settings.model_copy(update={"path": name, "revision": revision or None})
    else:
        raise InputError(
            f"got {what!r}, expected a folder with a model (there is none of that name), a hub id such as "
            "owner/name@revision, or git:REVISION:METHOD-SEED"
        )


def _fetched(what: str, folders: list[str], work: Path) -> Path:
    revision, _, name = what.removeprefix(REVISION).rpartition(":")
    if not revision or not name:
        raise InputError(f"got {what!r}, expected git:REVISION:METHOD-SEED or git:REVISION:FOLDER")
    wanted = [name] if "/" in name else [folder.format(name) for folder in folders]
    try:
        with Repo() as repository:
            commit = resolve_rev(repository.scm, revision)
        files = DVCFileSystem(repo=".", rev=commit)
        found = next((folder for folder in wanted if files.isdir(folder)), None)
        if found is None:
            raise InputError(f"{what}: revision {commit[:12]} has none of {', '.join(wanted)}")
        files.get(found, str(work / "model"), recursive=True)
    except (DvcException, DataIndexDirError, OSError) as error:
        raise InputError(
            f"{what}: cannot be had: {error}; check the revision (`git log`, `dvc exp show`), and that its model is in "
            "the cache or in a remote (`dvc push` where it was made)"
        ) from error
    return _checked(work / "model", what)


def _checked(folder: Path, what: str) -> Path:
    if not (folder / "config.json").is_file():
        raise InputError(f"{what}: got a folder without a config.json, expected a model as transformers saves it")
    return folder
