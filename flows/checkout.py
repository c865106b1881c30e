"""The clean checkout in which a retrain works: its lock, its clone, and how commits and tags come back.

The checkout is a clone of its own, never a workspace of people. It shares with the repository that it serves what is
keyed by content: DVC's cache with its run cache, the response cache, checkpoints. Nothing finished is done twice.
"""

import fcntl
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from dvc.config_schema import RelPath
from dvc.repo import Repo

from raft_tasks.artifacts import atomic_folder
from raft_tasks.config import Retrain
from raft_tasks.errors import InputError, OperationalError

ORPHAN_SECONDS = 60.0  # for the processes of a killed run to end
SERVICE = {"user.name": "RAFT Refinery", "user.email": "retrain@localhost", "merge.ours.driver": "true"}
TAGS = "+refs/tags/raft-*:refs/tags/raft-*"  # the registry's; all others are people's own


class GitFailed(OperationalError):
    """git ended with an error, which the message holds; a remote that is away is one."""


def git(*arguments: str, folder: Path = Path()) -> str:
    """What `git ...` prints, run in `folder`; never asks for a password. GitFailed says what git said."""
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise GitFailed(
            f"git {' '.join(arguments)} in {folder.resolve()}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout.strip()


def origin(repository: Path, settings: Retrain) -> str:
    """Address of the repository that keeps the service's branch and tags: a remote's, or `repository` itself.

    Raises:
        InputError: if `repository` is no git repository with a commit, or has no such remote.
    """
    try:
        git("rev-parse", "--verify", "HEAD", folder=repository)
        if settings.remote is None:
            return str(repository.resolve())
        address = git("remote", "get-url", settings.remote, folder=repository)
    except GitFailed as error:
        raise InputError(
            f"retrain works on a commit of a git repository, and on its remote if params name one: {error}"
        ) from error
    local = (repository / address).resolve()  # relative ones are relative to the repository
    return str(local) if local.exists() else address


@contextmanager
def retrain_lock(origin: str, repository: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the retrain lock; while another run holds it, wait and say so.

    It lies in the git folder of `origin` where that is on this machine, and so is shared by all of its clones;
    otherwise in `repository`'s, where other machines do not see it: their pushes decide (`publish`). The kernel
    releases it however its holder ends.
    """
    shared = Path(origin) if Path(origin).exists() else repository
    path = shared / git("rev-parse", "--git-common-dir", folder=shared) / "raft-retrain.lock"
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            say(f"another retrain of {origin} is running ({file.read().strip()}); waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()} of {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield


def update_checkout(repository: Path, origin: str, settings: Retrain) -> Path:
    """The service's checkout: the branch as `origin` has it, with `repository`'s last commit merged in.

    What a killed run left there is gone: files, commits and tags that were never pushed.

    Raises:
        GitFailed: if the origin does not answer.
        InputError: if the two histories change the same lines.
    """
    folder = (repository / settings.folder / "checkout").resolve()
    _wait_for_orphans(folder)
    if not (folder / ".git").exists():
        with atomic_folder(folder) as partial:
            git("clone", "--quiet", "--no-checkout", origin, str(partial))
    for lock in (folder / ".git").rglob("*.lock"):  # of a killed git; whoever may write here holds our own lock
        lock.unlink()
    for name, value in SERVICE.items():
        git("config", name, value, folder=folder)
    # A conflict in dvc.lock is no conflict: DVC itself sees which entries no longer fit.
    (folder / ".git" / "info" / "attributes").write_text("dvc.lock merge=ours\n")
    git("remote", "set-url", "origin", origin, folder=folder)
    git("fetch", "--quiet", "--prune", "origin", "+refs/heads/*:refs/remotes/origin/*", TAGS, folder=folder)
    git("fetch", "--quiet", "--no-tags", str(repository.resolve()), "HEAD", folder=folder)
    code = git("rev-parse", "FETCH_HEAD", folder=folder)
    remote_branch = git("branch", "--remotes", "--list", f"origin/{settings.branch}", folder=folder)
    start = f"origin/{settings.branch}" if remote_branch else code
    git("checkout", "--quiet", "--force", "--no-track", "-B", settings.branch, start, folder=folder)
    git("clean", "-ffdxq", folder=folder)
    try:
        git("merge", "--quiet", "--no-edit", "-m", f"Merge {code[:12]} into {settings.branch}", code, folder=folder)
    except GitFailed as error:
        raise InputError(
            f"the branch {settings.branch!r} and the commit {code[:12]} of {repository} change the same lines; merge "
            f"them by hand and push the result as {settings.branch!r} ({error})"
        ) from error
    _share_caches(repository, folder)
    return folder


def _wait_for_orphans(folder: Path) -> None:
    """Return once no process works in `folder`: those of a killed run end by themselves, moments after it."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    while working := [process.pid for process in psutil.process_iter() if _is_working_in(process, folder)]:
        if time.monotonic() > deadline:
            raise InputError(f"processes {working} work in {folder}, which is the retrain service's own; end them")
        time.sleep(0.2)


def _is_working_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder)
    except (psutil.Error, OSError):  # gone, or another user's
        return False


def _share_caches(repository: Path, folder: Path) -> None:
    """Let the checkout use the repository's caches, and its local DVC settings (remotes, credentials)."""
    (repository / ".cache").mkdir(exist_ok=True)
    (folder / ".cache").symlink_to((repository / ".cache").resolve())
    local = repository / ".dvc" / "config.local"
    if local.exists():
        shutil.copy(local, folder / ".dvc" / "config.local")
    with Repo(str(repository)) as served, Repo(str(folder)) as repo, repo.config.edit("local") as config:
        config["cache"]["dir"] = served.cache.local_cache_dir
        config["core"]["autostage"] = True
        for name, url in _relative_remotes(repo).items():
            config["remote"].setdefault(name, {})["url"] = os.path.abspath(repository / ".dvc" / url)


def _relative_remotes(repo: Repo) -> dict[str, str]:
    """The DVC remotes in folders that are named as seen from .dvc, with those paths; {} of none."""
    levels = (repo.config.read(level)["remote"].items() for level in ("repo", "local"))
    urls = {name: remote["url"] for level in levels for name, remote in level if "url" in remote}
    paths = {name: os.path.relpath(url, repo.dvc_dir) for name, url in urls.items() if isinstance(url, RelPath)}
    return {name: path for name, path in paths.items() if ":" not in path.partition("/")[0]}  # no host:path


def commit(message: str) -> bool:
    """Commit all that differs in the checkout (the working directory); returns whether something did."""
    git("add", "--all")
    if not git("status", "--porcelain"):
        return False
    git("commit", "--quiet", "-m", message)
    return True


def publish(branch: str, tags: list[str]) -> None:
    """Push the checkout's commits and `tags` to the origin: all of them or none, the branch fast-forward, the tags new.

    Raises:
        InputError: if the origin refuses, because someone pushed in the meantime.
        GitFailed: if it does not answer.
    """
    wanted = [f"HEAD:refs/heads/{branch}", *(f"refs/tags/{tag}" for tag in tags)]
    try:
        git("push", "--quiet", "--atomic", "origin", *wanted)
    except GitFailed as error:
        if "rejected]" not in str(error):
            raise
        raise InputError(
            f"the origin refuses the branch {branch!r} or the tags {tags}; someone else pushed there, or has the "
            f"branch checked out. Nothing was changed; the next run starts from what is there now ({error})"
        ) from error
