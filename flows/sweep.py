"""Sweeps as queues of DVC experiments: `raft sweep tau` runs what is missing and writes sweeps/tau.csv.

Not a stage: an experiment is a run of the whole graph with one key of params.yaml changed, in a folder of DVC's own.
"""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from dvc.api import read as read_dvc

from flows import paths
from flows.checkout import git
from raft_tasks.artifacts import atomic_file, read_yaml
from raft_tasks.config import load_config
from raft_tasks.errors import InputError, check_name
from raft_tasks.reporting.sweeps import COLUMNS

DEFINITIONS = paths.SWEEPS / "sweeps.yaml"
EXAMPLE = """\
tau:
  parameter: semantic_filter.tau
  values: [0.5, 0.8]
  methods: [raft]
"""
METRICS = paths.REPORTS / "metrics.json"


def sweep(name: str) -> None:
    """Queue and run the sweep's experiments that HEAD has not yet, then collect them all.

    Raises:
        InputError: as `read_definition`, or experiments failed.
    """
    parameter, values, methods = read_definition(name)
    experiments = {f"{name}-{value}": value for value in values}
    missing = [experiment for experiment in experiments if revision(experiment) is None]
    where = ["--untracked-files=no"] if missing else ["--", str(DEFINITIONS)]  # which says whose scores are collected
    if changed := git("status", "--porcelain", *where):
        raise InputError(
            f"DVC keeps experiments by commit, and this folder is not as HEAD; commit or stash:\n{changed}"
        )
    for experiment in missing:
        changes = [f"++{parameter}={experiments[experiment]}", f"run.methods=[{','.join(methods)}]"]
        command = ["exp", "run", "--queue", "--name", experiment]
        # with the response cache an experiment asks models just for what is new; DVC cannot copy it without its folder
        command += ["--copy-paths", str(paths.RESPONSES.parent)] if paths.RESPONSES.exists() else []
        dvc(*command, *(part for change in changes for part in ("--set-param", change)))
    if missing:
        dvc("exp", "run", "--run-all", "--jobs", str(load_config().resources.processes))
    lost = [experiment for experiment in experiments if revision(experiment) is None]
    if lost:
        raise InputError(
            f"{', '.join(lost)} did not end well; `dvc queue logs {lost[0]}` says why. The same command, given "
            "again, goes on with what is missing"
        )
    path = paths.SWEEPS / f"{name}.csv"
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for experiment, value in experiments.items():
            metrics = json.loads(read_dvc(str(METRICS), rev=revision(experiment)))
            table.writerows([parameter, value, *row, experiment] for row in scores(metrics, methods))
    print(f"{path}: {len(experiments)} experiments. `dvc repro report` draws it")


def read_definition(name: str) -> tuple[str, list[Any], list[str]]:
    """Parameter, values and methods of a sweep. InputError: no such file or sweep, or it lacks one of the three."""
    expected = f"expected what a sweep varies, such as\n{EXAMPLE}"
    if not DEFINITIONS.is_file():
        raise InputError(f"{DEFINITIONS} is not there; {expected}Write it, and commit it")
    definitions = read_yaml(DEFINITIONS)
    check_name("sweep", name, definitions or (), str(DEFINITIONS))
    definition = definitions[name]
    if not isinstance(definition, dict) or definition.keys() != {"parameter", "values", "methods"}:
        raise InputError(f"{DEFINITIONS}: {name}: got {definition!r}, {expected}")
    return definition["parameter"], definition["values"], definition["methods"]


def scores(metrics: dict[str, Any], methods: list[str]) -> Iterator[list[Any]]:
    """domain, method, seeds, measure, estimate, low, high of every score of metrics.json."""
    for domain, measured in metrics["domains"].items():
        for method in methods:
            for measure, score in measured["methods"][method]["scores"].items():
                yield [domain, method, score["n_seeds"], measure, *(score[key] for key in ("estimate", "low", "high"))]


def revision(experiment: str) -> str | None:
    """The commit of a finished experiment on top of HEAD."""
    head = git("rev-parse", "HEAD")
    return git("for-each-ref", "--format=%(objectname)", f"refs/exps/{head[:2]}/{head[2:]}/{experiment}") or None


def dvc(*arguments: str) -> None:
    """Run DVC; its output is shown. InputError if it failed."""
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments])
    if done.returncode:
        raise InputError(f"dvc {' '.join(arguments)} ended with code {done.returncode}; its message stands above")
