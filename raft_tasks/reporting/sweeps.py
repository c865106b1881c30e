"""Sweeps: what one setting does to the scores, read from `sweeps/<name>.csv`.

A row of such a file is one score of one experiment:

    parameter,value,domain,method,seeds,measure,estimate,low,high,experiment
    semantic_filter.tau,0.5,archive,raft,3,domain_acc,0.93,0.88,0.97,tau-0.5
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from raft_tasks.errors import InputError

COLUMNS = ("parameter", "value", "domain", "method", "seeds", "measure", "estimate", "low", "high", "experiment")


@dataclass(frozen=True)
class SweptScore:
    parameter: str  # key of params.yaml
    value: str  # as it stands there: a number, or a word such as `ema`
    domain: str
    method: str
    seeds: int
    measure: str  # a name of metrics.json
    estimate: float  # a share, as in metrics.json; the interval's ends are None where there is none
    low: float | None
    high: float | None
    experiment: str  # of `dvc exp`, or a commit


@dataclass(frozen=True)
class Sweep:
    name: str
    path: Path
    scores: list[SweptScore]


def read_sweeps(folder: Path) -> list[Sweep]:
    """Every sweep of the folder, in the order of their names.

    Raises:
        InputError: naming the file, line and column that is not what it should be.
    """
    return [Sweep(path.stem, path, _read(path)) for path in sorted(folder.glob("*.csv"))]


def _read(path: Path) -> list[SweptScore]:
    with path.open(encoding="utf-8", newline="") as lines:
        table = csv.DictReader(lines)
        missing = [name for name in COLUMNS if name not in (table.fieldnames or [])]
        if missing:
            raise InputError(f"{path}: got no column {', '.join(missing)}; expected {', '.join(COLUMNS)}")
        return [_score(path, number, row) for number, row in enumerate(table, start=2)]


def _score(path: Path, number: int, row: dict[str, str]) -> SweptScore:
    try:
        low, high = (float(row[end]) if row[end] else None for end in ("low", "high"))
        return SweptScore(
            row["parameter"], row["value"], row["domain"], row["method"], int(row["seeds"]), row["measure"],
            float(row["estimate"]), low, high, row["experiment"],
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}:{number}: expected numbers under seeds, estimate, low and high: {error}") from error
