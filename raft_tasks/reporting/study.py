"""The artifacts of a finished run, read once for measures, figures and page. The layout is that of flows/paths.py."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from raft_tasks.artifacts import read_json, read_rows
from raft_tasks.config import Config
from raft_tasks.evaluation.gate import DOMAIN_TASKS
from raft_tasks.evaluation.verdicts import METRIC, add_verdicts
from raft_tasks.reporting.sweeps import Sweep, read_sweeps
from raft_tasks.schemas import Anchor, Example, Fused, ItemResult, Judged, Reject, RejectedAnchor

BASE = "base"  # the untrained model's name among the methods

Row = TypeVar("Row", bound=BaseModel)


@dataclass(frozen=True)
class Artifact:
    """A file that numbers come from, and the DVC stage that makes it."""

    path: Path
    stage: str
    holds: str


@dataclass(frozen=True)
class Run:
    """A model's answers, trained under one seed."""

    items: list[ItemResult]
    seed: int


@dataclass(frozen=True)
class Trained(Run):
    """One method under one seed."""

    summary: dict[str, Any]
    merge: dict[str, Any]  # the merge after training: merge.json
    analysis: dict[str, Any]  # distance to the base in weights, words and answers: docs/guides/analysis.md
    steps: dict[str, list[float | None]]  # column of steps.csv -> a value per optimiser step, None where empty
    curve: dict[str, list[float | None]] = field(default_factory=dict)  # the same of curve.csv; empty without one


@dataclass(frozen=True)
class Answered:
    """Models' answers to the questions of one domain and to the general ones."""

    test: list[Example]
    base: list[ItemResult]
    runs: Mapping[str, Sequence[Run]]  # by method, one entry per seed


@dataclass(frozen=True)
class DomainStudy(Answered):
    runs: Mapping[str, Sequence[Trained]]
    rejects: list[Reject]
    splits: dict[str, Any]  # rows per split, rejects and flags by rule
    questions: dict[str, Any] | None  # pairs made from documents; None where the domain has none
    fused: list[Fused]
    judging: dict[str, Any]  # the judges' agreement, and their calibration


@dataclass(frozen=True)
class AnchorSet:
    """General prompts and answers that the base generated to regularise students towards it."""

    statistics: dict[str, Any]  # AnchorStatistics
    kept: list[Anchor]
    rejected: list[RejectedAnchor]


@dataclass(frozen=True)
class Study:
    config: Config
    model: dict[str, Any]  # identity of the base model
    domains: dict[str, DomainStudy]
    anchors: dict[str, AnchorSet]  # those that a method of the run names
    sweeps: list[Sweep]
    files: list[Artifact]


def collect(artifacts: Path, sweeps: Path, config: Config) -> Study:
    """Read the artifacts of every domain, method and seed that `config.run` names, and every sweep of a folder.

    Raises:
        FileNotFoundError, ValueError: naming the file that is missing or malformed.
    """
    reader = _Reader(artifacts, config, [])
    model = reader.json(artifacts / "models" / "base.json", "models", "identity of the base model")
    domains = {domain: reader.domain(domain) for domain in config.run.domains}
    sets = sorted({row.set for method in config.run.methods if (row := config.methods[method].anchors)})
    return Study(
        config, model, domains, {name: reader.anchors(name) for name in sets}, read_sweeps(sweeps), reader.files
    )


def judged_alike(domains: Mapping[str, Answered]) -> dict[str, Answered]:
    """The domains; a verdict on a general item is left out of all where one has none, so that they can be averaged."""
    judged = [{(row.task, row.id) for row in domain.base if METRIC in row.metrics} for domain in domains.values()]
    shared = set.intersection(*judged)

    def keep(items: list[ItemResult]) -> list[ItemResult]:
        return [
            row
            if row.task in DOMAIN_TASKS or (row.task, row.id) in shared
            else row.model_copy(update={"metrics": {k: v for k, v in row.metrics.items() if k != METRIC}})
            for row in items
        ]

    return {
        name: replace(
            domain,
            base=keep(domain.base),
            runs={m: [replace(run, items=keep(run.items)) for run in runs] for m, runs in domain.runs.items()},
        )
        for name, domain in domains.items()
    }


@dataclass(frozen=True)
class _Reader:
    """Reads artifacts and lists every file that it read."""

    artifacts: Path
    config: Config
    files: list[Artifact]

    def path(self, path: Path, stage: str, holds: str) -> Path:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; `dvc repro {stage}` makes it (or `dvc pull` fetches it)")
        self.files.append(Artifact(path, stage, holds))
        return path

    def json(self, path: Path, stage: str, holds: str) -> dict[str, Any]:
        return read_json(self.path(path, stage, holds))

    def rows(self, path: Path, stage: str, holds: str, schema: type[Row]) -> list[Row]:
        return read_rows(self.path(path, stage, holds), schema)

    def domain(self, domain: str) -> DomainStudy:
        root, run, suffix = self.artifacts / domain, self.config.run, self.config.run.rows
        examples, ingest, fuse = root / "examples", f"ingest@{domain}", f"fuse@{domain}"
        splits = self.json(root / "ingest.json", ingest, "rows per split, rejects and flags by rule")
        rejects = self.rows(examples / "rejects.jsonl", ingest, "rejected rows", Reject)
        test = self.rows(examples / f"test.{suffix}", ingest, "held-out questions", Example)
        fused = self.rows(root / f"fused.{suffix}", fuse, "rewrites, similarities, decisions, fused answers", Fused)
        judging = self.json(root / "judging.json", fuse, "agreement and calibration of the judges")
        questions = judged = None
        if domain in run.documents:
            summary = root / "questions" / "summary.json"
            questions = self.json(summary, f"question@{domain}", "pairs made from documents, by outcome")
        if domain in run.judged:
            votes = root / "judged" / "votes.jsonl"
            judged = self.rows(votes, f"judge@{domain}", "the panel's votes on every answer", Judged)
        base = self.items(root, BASE, f"benchmark_base@{domain}", judged)
        runs = {method: [self.run(domain, method, seed, judged) for seed in run.seeds] for method in run.methods}
        return DomainStudy(test, base, runs, rejects, splits, questions, fused, judging)

    def items(self, root: Path, model: str, stage: str, judged: list[Judged] | None) -> list[ItemResult]:
        file = root / "benchmarks" / model / "items.jsonl"
        items = self.rows(file, stage, f"every answer and its scores, {model}", ItemResult)
        return items if judged is None else add_verdicts(items, model, judged)

    def run(self, domain: str, method: str, seed: int, judged: list[Judged] | None) -> Trained:
        root, name = self.artifacts / domain, f"{method}-{seed}"
        folder, distill, benchmark = root / "runs" / name, f"distill@{domain}-{name}", f"benchmark@{domain}-{name}"
        summary = self.json(folder / "summary.json", distill, f"training time and weight distance, {name}")
        steps = _read_steps(self.path(folder / "steps.csv", distill, f"losses and KL weight, {name}"))
        curve = {}
        if self.config.train.curve:
            curve = _read_steps(self.path(folder / "curve.csv", distill, f"forgetting curve, {name}"))
        merge = self.json(folder / "merged" / "merge.json", benchmark, f"merge after training, {name}")
        items = self.items(root, name, benchmark, judged)
        analysis = self.json(
            root / "analysis" / f"{name}.json", f"analyse@{domain}-{name}", f"distance to the base and drift, {name}"
        )
        return Trained(items, seed, summary, merge, analysis, steps, curve)

    def anchors(self, name: str) -> AnchorSet:
        folder = self.artifacts / "anchors" / "sets" / name
        return AnchorSet(
            self.json(folder / "statistics.json", "anchors", f"quality of the generated anchors, {name}"),
            self.rows(folder / "anchors.jsonl", "anchors", f"anchors, {name}", Anchor),
            self.rows(folder / "rejects.jsonl", "anchors", f"rejected anchors, {name}", RejectedAnchor),
        )


def _read_steps(path: Path) -> dict[str, list[float | None]]:
    with path.open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    try:
        return {name: [float(row[name]) if row[name] else None for row in rows] for name in (rows[0] if rows else {})}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: got a cell that is not a number: {error}; run `dvc repro` again") from error
