"""Sweeps: the effect of one setting on the scores, read from `sweeps/<name>.csv`.

A row of such a file is one score of one experiment:

    parameter,value,domain,method,seeds,measure,estimate,low,high,experiment
    semantic_filter.tau,0.5,archive,raft,3,domain_acc,0.93,0.88,0.97,tau-0.5
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from raft_tasks.errors import InputError


class SweptScore(BaseModel):
    model_config = ConfigDict(frozen=True)

    parameter: str  # key of params.yaml
    value: str  # as in params.yaml: a number, or a word such as `ema`
    domain: str
    method: str
    seeds: int
    measure: str  # a name of metrics.json
    estimate: float  # a share, as in metrics.json
    low: float | None  # both ends are None where there is no interval
    high: float | None
    experiment: str  # of `dvc exp`, or a commit

    @field_validator("low", "high", mode="before")
    @classmethod
    def _empty_is_none(cls, cell: str | float | None) -> str | float | None:
        return None if cell == "" else cell


COLUMNS = tuple(SweptScore.model_fields)


@dataclass(frozen=True)
class Sweep:
    name: str
    path: Path
    scores: list[SweptScore]


def read_sweeps(folder: Path) -> list[Sweep]:
    """Every sweep of the folder, in the order of their names.

    Raises:
        InputError: naming the file, line and column that is malformed.
    """
    return [Sweep(path.stem, path, _read(path)) for path in sorted(folder.glob("*.csv"))]


def _read(path: Path) -> list[SweptScore]:
    scores = []
    with path.open(encoding="utf-8", newline="") as lines:
        table = csv.DictReader(lines)
        if missing := [name for name in COLUMNS if name not in (table.fieldnames or [])]:
            raise InputError(f"{path}: got no column {', '.join(missing)}; expected {', '.join(COLUMNS)}")
        for number, row in enumerate(table, start=2):
            try:
                scores.append(SweptScore.model_validate(row))
            except ValidationError as error:
                faults = "; ".join(f"{fault['loc'][0]}: {fault['msg']}" for fault in error.errors())
                raise InputError(f"{path}:{number}: {faults}") from error
    return scores
