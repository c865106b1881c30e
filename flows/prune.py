"""Old caches and checkpoints go, by the policy of params.yaml (section `prune`).

DVC's cache keeps what a tag, a branch's tip, an experiment (of a sweep), the workspace or the retrain checkout names:
every version that was ever released, the champion among them. Calls and checkpoints go by age. A retrain that is at
work is waited for.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

from flows import paths
from flows.checkout import TAGS, git, origin, retrain_lock
from raft_tasks.config import load_config
from raft_tasks.errors import OperationalError
from raft_tasks.generation.response_cache import ResponseCache

DAY = 86400.0


def prune_cache(repository: Path, address: str, checkout: Path, now: bool) -> None:
    """`dvc gc` of the cache that the repository shares with the retrain checkout.

    Raises:
        GitFailed: the origin that keeps the released versions' tags does not answer; nothing is removed then.
        OperationalError: DVC ended with an error.
    """
    if address != str(repository.resolve()):
        git("fetch", "--quiet", address, TAGS, folder=repository)
    command = [sys.executable, "-m", "dvc", "gc", "--workspace", "--all-branches", "--all-tags", "--all-experiments"]
    if checkout.exists():
        command += ["--projects", str(checkout)]
    done = subprocess.run(
        [*command, "--force" if now else "--dry"],
        cwd=repository,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise OperationalError(f"dvc gc ended with code {done.returncode}: {done.stderr.strip()}")
    print(f"DVC's cache: {done.stdout.strip() or 'nothing to remove'}")


def old_checkpoints(folder: Path, days: float) -> list[Path]:
    """Those of trainings that have written none for so many days; a finished training leaves none."""
    limit = time.time() - days * DAY
    return sorted(
        run for run in folder.glob("*") if max(path.stat().st_mtime for path in (run, *run.rglob("*"))) < limit
    )


def prune(repository: Path, now: bool) -> None:
    """Print what is old, and with `now` remove it. InputError where `repository` is no git repository with a commit."""
    config = load_config(repository / "params.yaml")
    settings, retrain = config.prune, config.retrain
    address = origin(repository, retrain)
    with retrain_lock(address, repository, print):
        prune_cache(repository, address, (repository / retrain.folder / "checkout").resolve(), now)
        for checkpoint in old_checkpoints(repository / paths.CHECKPOINTS, settings.checkpoint_days):
            print(f"checkpoint: {checkpoint}")
            if now and checkpoint.is_dir():
                shutil.rmtree(checkpoint)
            elif now:  # a training's mixed targets, or the lock of a killed one
                checkpoint.unlink()
        if (repository / paths.RESPONSES).exists():
            store = ResponseCache(repository / paths.RESPONSES)
            old = settings.call_days * DAY
            gone = store.prune(older_than=old) if now else store.older(old)
            store.close()
            print(f"calls: {gone}")
        limit = time.time() - settings.call_days * DAY
        results = [path for path in (repository / paths.TASKS).glob("*") if path.stat().st_mtime < limit]
        print(f"results of chunks: {len(results)}")
        for path in results if now else ():
            path.unlink()
    if not now:
        print("nothing was removed; `raft prune --now` does it")
