"""Copies of this repository in which tests run the pipeline."""

import shutil
import subprocess
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]


def copy_project(folder, changes):
    """A copy of the working tree's files (tracked or new, not ignored) in `folder`, with its params changed.

    A run's dvc.lock stays behind: `make demo` before `make test` changes nothing.
    """
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    config = yaml.safe_load((folder / "params.yaml").read_text())
    for section, values in changes.items():
        config.setdefault(section, {}).update(values)
    (folder / "params.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def project_processes(folder, *words):
    """Running processes with `folder` as working directory and all `words` in their command line."""
    processes = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == folder and all(word in " ".join(process.cmdline()) for word in words):
                processes.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            continue
    return processes
