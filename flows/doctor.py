"""`raft doctor`: all that would make a run fail, at once, each with what to do."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from math import prod
from pathlib import Path

import psutil

from flows import paths
from flows.environment import HEALTHY, PREFECT_PORT, ask_server
from raft_tasks.config import Config, Model
from raft_tasks.doctor import (
    WIDTH,
    Fault,
    check_endpoints,
    check_files,
    disk_of_run,
    read_leniently,
    weight_shapes,
)
from raft_tasks.errors import InputError
from raft_tasks.gguf import model_folder


def find_faults(params: Path = Path("params.yaml")) -> list[Fault]:
    """Every fault of the project in the working folder and of this machine."""
    config, faults = read_leniently(params)
    if config is not None:
        faults += [*quick_check(config), *check_endpoints(config)]
    else:
        faults += check_repository()
    return [*faults, *check_identity(), *check_remote(), *check_prefect()]


def check_before_run(config: Config) -> None:
    """The quick part of the doctor: an InputError names every fault."""
    faults = quick_check(config)
    if faults:
        raise InputError(f"{len(faults)} fault(s), nothing was run:\n{list_faults(faults)}")


def quick_check(config: Config) -> list[Fault]:
    """What can be seen without asking other machines."""
    return [*check_repository(), *check_files(config), *check_gpus(config), *check_space(config)]


def list_faults(faults: list[Fault]) -> str:
    return "\n".join(f"{number:3d}. {fault}" for number, fault in enumerate(faults, start=1))


def check_gpus(config: Config) -> Iterator[Fault]:
    """As many as resources.gpus says."""
    count, needed = len(gpu_bytes()), config.resources.gpus
    if count < needed:
        yield Fault("resources.gpus", f"{count} GPUs on this machine", str(needed), "`nvidia-smi` shows them")


def gpu_bytes() -> list[int]:
    """The memory of every NVIDIA GPU."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return []
    lines = [line.strip() for line in listing.stdout.splitlines()] if listing.returncode == 0 else []
    whole = psutil.virtual_memory().total  # of a GPU without a number: it shares the machine's
    return [int(line) * 2**20 if line.isdigit() else whole for line in lines if line.isdigit() or "N/A" in line]


def check_space(config: Config) -> Iterator[Fault]:
    """Disk for the models that are still to be trained and a checkpoint of each process; memory for each method."""
    base = config.models.get("base")
    shapes = weight_shapes(Path(base.path)) if isinstance(base, Model) else {}
    if not isinstance(base, Model) or not shapes:
        return
    models, artifacts, checkpoints = disk_of_run(config, shapes, is_missing)
    disk, free = artifacts + checkpoints, shutil.disk_usage(Path()).free
    if free < disk:
        yield Fault(
            "disk", f"{gb(free)} free in {Path.cwd()}", f"{gb(disk)} for {models} models", "`raft prune`, or free some"
        )
    memory = max(gpu_bytes(), default=psutil.virtual_memory().total)
    shards = config.train.launch.processes if config.train.launch.strategy == "fsdp2" else 1
    parameters = sum(map(prod, shapes.values()))
    for name, row in {name: config.methods[name] for name in config.run.methods if name in config.methods}.items():
        trained = 0 if row.lora else 4 * parameters * WIDTH["float32"]  # weights, gradients, AdamW's two moments
        needed = trained // shards + (parameters * WIDTH[base.dtype] if row.lora or row.distillation else 0)
        if memory < needed:
            action = "`lora: {}` for this method, or fsdp2 over several GPUs (train.launch)"
            yield Fault(f"methods.{name}", f"{gb(memory)} of memory", f"at least {gb(needed)} for the weights", action)


def is_missing(domain: str, method: str, seed: int) -> bool:
    return not paths.trained(domain, method, seed).exists()


def describe_disk(config: Config) -> str:
    """What `raft plan` says of the disk."""
    shapes = weight_shapes(model_folder(config.base.path))
    if not shapes:
        return f"disk              not estimated: {config.base.path} has no weights on this machine"
    models, artifacts, checkpoints = disk_of_run(config, shapes, is_missing)
    return (
        f"disk              {gb(artifacts)} for {models} trainings that are not there yet (with the copies in DVC's "
        f"cache), up to {gb(checkpoints)} for checkpoints meanwhile; {gb(shutil.disk_usage(Path()).free)} are free"
    )


def gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def check_repository() -> Iterator[Fault]:
    """A git repository, and a dvc.lock that no merge has left half done."""
    if _git("rev-parse", "--git-dir") is None:
        action = "`git init && git add . && git commit -m start`, `git clone`, or `raft init` in an empty folder"
        yield Fault("git", "no repository in this folder (a ZIP download has none)", "one", action)
    lines = paths.LOCK.read_text(encoding="utf-8").splitlines() if paths.LOCK.is_file() else []
    conflicts = [number for number, line in enumerate(lines, start=1) if line.startswith(("<<<<<<< ", ">>>>>>> "))]
    if conflicts:
        action = "`git checkout --ours dvc.lock` (or --theirs), then `raft run`: DVC sees which entries no longer fit"
        yield Fault(f"dvc.lock:{conflicts[0]}", "a conflict of a git merge", "one version", action)


def check_identity() -> Iterator[Fault]:
    """A name for commits."""
    if _git("var", "GIT_COMMITTER_IDENT") is None:
        action = "`git config --global user.name NAME` and `git config --global user.email ADDRESS`"
        yield Fault("git", "no identity", "a name and an address for the commits of `raft retrain`", action)


def _git(*arguments: str) -> str | None:
    command = ["git", "-c", "user.useConfigOnly=true", *arguments]  # no address guessed from the machine's name
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def check_remote() -> Iterator[Fault]:
    """A DVC repository with a default remote; a folder, where it is one, can be written."""
    if not Path("dvc.yaml").is_file():
        yield Fault(
            "dvc.yaml", "no such file", "the graph", "run from the project's folder, or `raft init` in an empty one"
        )
    if not Path(".dvc/config").is_file():
        yield Fault(".dvc/config", "no such file", "a DVC repository", "`dvc init`")
        return
    settings = ConfigParser()
    try:
        settings.read([".dvc/config", ".dvc/config.local"], encoding="utf-8")
        name = settings.get("core", "remote", fallback=None)
        url = settings.get(f"'remote \"{name}\"'", "url", fallback=None)
    except ConfigParserError as error:
        yield Fault(".dvc/config", str(error), "an INI file")
        return
    if url is None:
        action = "`dvc remote add --default NAME URL`"
        yield Fault(".dvc/config", f"the default remote {name!r} without url", "a place for artifacts", action)
    elif "://" not in url:
        folder = (Path(".dvc") / url).resolve()
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(existing, os.W_OK):
            yield Fault(
                f"DVC remote {name}", f"{existing} cannot be written", "a folder of yours", "`dvc remote modify`"
            )


def check_prefect() -> Iterator[Fault]:
    """PREFECT_API_URL answers, or nothing but Prefect is on its port; without a server `raft run` starts its own."""
    given = os.environ.get("PREFECT_API_URL")
    answer = ask_server(given or f"http://127.0.0.1:{PREFECT_PORT}/api")
    if given and answer != HEALTHY:
        action = "start it, or unset the variable: `raft run` then starts its own"
        yield Fault("PREFECT_API_URL", f"{given} does not answer as Prefect", "a server", action)
    elif answer not in (HEALTHY, None):
        action = "stop it, or set PREFECT_API_URL to the server of `raft ui --port`"
        yield Fault(
            f"port {PREFECT_PORT}", "something else than Prefect answers", "Prefect's server, or nothing", action
        )
