"""New data of a domain, brought into the checkout (the working directory) from where params say that it comes from."""

import shutil
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from dvc.exceptions import DvcException
from dvc.repo import Repo

from flows.checkout import git
from raft_tasks.artifacts import atomic_file, digest_path
from raft_tasks.config import Config, DvcImport, Folder, HubRevision, Source, load_config
from raft_tasks.errors import InputError, OperationalError

PARAMS = Path("params.yaml")
UNFINISHED = (".partial", ".tmp")


def fetch(domain: str, source: Source, repository: Path, refused: Collection[str]) -> list[str]:
    """Bring what is new of `domain` into the checkout.

    Args:
        repository: the repository that is served; a folder's relative path is relative to it.
        refused: what came before and is not to come again, as this function named it.

    Returns:
        A line for each thing that came, which names it and its content.

    Raises:
        OperationalError: where trying again may help.
        InputError: where it will not.
    """
    match source:
        case Folder():
            return _dropped(repository / source.path, Path(source.into) / domain, refused)
        case HubRevision():
            return _newest_commit(domain, refused)
        case DvcImport():
            return _updated(source.path, refused)


def revert(domain: str, source: Source, commit: str) -> None:
    """Put what `fetch` changed back to what it is in `commit`."""
    if isinstance(source, HubRevision):
        with TemporaryDirectory() as work:
            earlier = Path(work) / PARAMS
            earlier.write_text(git("show", f"{commit}:{PARAMS}") + "\n", encoding="utf-8")
            _pin(domain, _revision(load_config(earlier), domain))
        return
    file = source.path if isinstance(source, DvcImport) else f"{source.into}/{domain}"
    tracked = [path for path in (file, f"{file}.dvc") if git("ls-files", path) or git("ls-tree", commit, path)]
    git("restore", "--source", commit, "--staged", "--worktree", "--", *tracked)


def _dropped(drop: Path, target: Path, refused: Collection[str]) -> list[str]:
    """Copy the files of `drop` that differ; what does not look like a finished file (.x, x.partial, x.tmp) waits."""
    if not drop.is_dir():
        raise OperationalError(f"retrain.fetch: the folder {drop} is not there; make it, or mount what it lies on")
    came = []
    for path in sorted(drop.rglob("*")):
        name = path.relative_to(drop)
        if any(part.startswith(".") for part in name.parts) or path.suffix in UNFINISHED or not path.is_file():
            continue
        copy, content = target / name, digest_path(path)
        line = f"{copy} sha256:{content[:16]}"
        if line in refused or (copy.is_file() and digest_path(copy) == content):
            continue
        with atomic_file(copy) as temporary:
            shutil.copyfile(path, temporary)
        _track(copy, target)
        came.append(line)
    return came


def _track(file: Path, folder: Path) -> None:
    """Have DVC track `file` where it or `folder` is under DVC already; otherwise it goes into git as others there."""
    for path in (file, folder):
        if path.with_name(f"{path.name}.dvc").exists():
            with Repo() as repo:
                repo.add(str(path))
            return
    git("add", "--force", "--", str(file))  # also where a rule of .gitignore fits it


def _newest_commit(domain: str, refused: Collection[str]) -> list[str]:
    """Pin the domain's data set to its newest commit, in params.yaml, whose comments and form stay."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    config = load_config()
    pinned = _revision(config, domain)
    hub = config.domains[domain].hub
    assert hub is not None  # _revision has looked
    try:
        newest = HfApi().dataset_info(hub.id).sha
    except (OSError, HTTPError, OfflineModeIsEnabled) as error:
        raise OperationalError(f"the hub does not say what the newest commit of {hub.id} is: {error}") from error
    line = f"domains.{domain}.hub {hub.id} revision:{newest}"
    if newest in (None, pinned) or line in refused:
        return []
    _pin(domain, str(newest))
    return [line]


def _revision(config: Config, domain: str) -> str:
    hub = config.domains[domain].hub
    if hub is None or hub.revision is None:
        raise InputError(
            f"params.yaml: domains.{domain}.hub: got {hub}, expected a data set of the hub with its revision"
        )
    return hub.revision


def _pin(domain: str, new: str) -> None:
    """Put the commit `new` where params.yaml has the domain's revision, and nowhere else."""
    text, old = PARAMS.read_text(encoding="utf-8"), _revision(load_config(), domain)
    node: Any = yaml.compose(text)
    for key in ("domains", domain, "hub", "revision"):
        node = next((value for name, value in node.value if name.value == key), None)
        if node is None:
            raise InputError(f"{PARAMS}: expected domains.{domain}.hub.revision written out, got it by a merge key")
    begin, end = node.start_mark.index, node.end_mark.index
    PARAMS.write_text(text[:begin] + text[begin:end].replace(old, new) + text[end:], encoding="utf-8")


def _updated(path: str, refused: Collection[str]) -> list[str]:
    """`dvc update` of an import."""
    file = Path(path)
    if not file.exists():
        raise InputError(
            f"retrain.fetch: {path} is not there; make it with `dvc import` or `dvc import-url` and commit it"
        )
    before = digest_path(file)
    try:
        with Repo() as repo:
            repo.update([path])
    except DvcException as error:
        raise OperationalError(f"`dvc update {path}` failed: {error}") from error
    content = digest_path(file)
    line = f"{path} sha256:{content[:16]}"
    if line in refused:
        git("restore", path)
        with Repo() as repo:
            repo.checkout([path], force=True)
        return []
    return [] if content == before else [line]
