"""The models of a comparison: a folder, a model of the hub, or a model in a revision of this repository.

models/pocket-base                      a folder with a config.json, or with a LoRA row's adapter
HuggingFaceTB/SmolLM3-3B@<revision>     a hub id; without a revision its newest state
git:main:raft-0                         the trained, or merged, model of that run in a commit, branch, tag
git:clear-mole:raft-0                   or experiment (`dvc exp show` names them)
git:v1:models/pocket-base               any folder of a revision, kept by git or DVC
"""

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

from raft_tasks.adapter_folder import is_adapter
from raft_tasks.config import Model, load_config
from raft_tasks.errors import InputError

REVISION = "git:"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def base_settings() -> Model:
    """The project's `models.base`; outside of a project float32, which holds any weights exactly."""
    return load_config().base if Path("params.yaml").exists() else Model(path="", dtype="float32")


@contextmanager
def locate_model(source: str, folders: list[str], settings: Model) -> Iterator[Model]:
    """The model that `source` names; one of a revision exists until the block ends.

    Args:
        folders: of a revision's run, the first that exists counts; "{}" stands for method and seed.
        settings: dtype and system prompt, the same for all that is compared.

    Raises:
        InputError: if there is no such model.
    """
    revision = None
    with TemporaryDirectory() as work:
        if source.startswith(REVISION):
            path = str(_fetch(source, folders, Path(work)))
        elif Path(source).exists():
            path = str(_check_folder(Path(source), source))
        elif HUB_ID.fullmatch(source) and not source.startswith(("models/", "artifacts/")):
            path, _, revision = source.partition("@")
        else:
            raise InputError(
                f"got {source!r}, expected a folder with a model (there is none of that name), a hub id such as "
                "owner/name@revision, or git:REVISION:METHOD-SEED"
            )
        yield settings.model_copy(update={"path": path, "revision": revision or None})


def _fetch(source: str, folders: list[str], work: Path) -> Path:
    revision, _, name = source.removeprefix(REVISION).rpartition(":")
    if not revision or not name:
        raise InputError(f"got {source!r}, expected git:REVISION:METHOD-SEED or git:REVISION:FOLDER")
    candidates = [name] if "/" in name else [folder.format(name) for folder in folders]
    try:
        with Repo() as repository:
            commit = resolve_rev(repository.scm, revision)
        files = DVCFileSystem(repo=".", rev=commit)
        folder = next((folder for folder in candidates if files.isdir(folder)), None)
        if folder is None:
            raise InputError(f"{source}: revision {commit[:12]} has none of {', '.join(candidates)}")
        files.get(folder, str(work / "model"), recursive=True)
    except (DvcException, DataIndexDirError, OSError) as error:
        raise InputError(
            f"{source}: cannot be had: {error}; check the revision (`git log`, `dvc exp show`), and that its model is "
            "in the cache or in a remote (`dvc push` where it was made)"
        ) from error
    return _check_folder(work / "model", source)


def _check_folder(folder: Path, source: str) -> Path:
    if not (folder / "config.json").is_file() and not is_adapter(folder):
        raise InputError(f"{source}: got a folder without a config.json, expected a model as transformers saves it")
    return folder
