"""What a finished run left on disk, read once for tables, figures and page. The layout is that of flows/paths.py."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from raft_tasks.artifacts import read_json, read_rows
from raft_tasks.config import Config
from raft_tasks.evaluation.verdicts import add_verdicts
from raft_tasks.reporting.sweeps import Sweep, read_sweeps
from raft_tasks.schemas import Anchor, Example, Fused, ItemResult, Judged, Reject, RejectedAnchor

BASE = "base"  # the untouched model's place among the methods


@dataclass(frozen=True)
class Artifact:
    """A file that numbers come from, and the DVC stage that makes it."""

    path: Path
    stage: str
    holds: str


@dataclass(frozen=True)
class Benchmarked:
    scores: dict[str, Any]
    items: list[ItemResult]


@dataclass(frozen=True)
class Run(Benchmarked):
    """One model of several of a kind, trained under one seed."""

    seed: int


@dataclass(frozen=True)
class Trained(Run):
    """One method under one seed."""

    summary: dict[str, Any]
    recovery: dict[str, Any]  # what was taken back after training: recovery.json
    analysis: dict[str, Any]  # how far it is from the base, in its weights, words and answers: docs/guides/analysis.md
    steps: dict[str, list[float | None]]  # column of steps.csv -> a value per optimiser step, None where empty


class Answered(Protocol):
    """What models answered to the questions of one domain, and to the general ones."""

    @property
    def test(self) -> list[Example]: ...
    @property
    def base(self) -> Benchmarked: ...
    @property
    def runs(self) -> Mapping[str, Sequence[Run]]:
        """By method, one entry per seed."""


@dataclass(frozen=True)
class DomainStudy:
    rejects: list[Reject]
    splits: dict[str, Any]  # rows per split, rejects and flags by rule
    questions: dict[str, Any] | None  # what became of documents; None where the domain has none
    test: list[Example]
    fused: list[Fused]
    judging: dict[str, Any]  # the judges' agreement, and their calibration
    base: Benchmarked
    runs: dict[str, list[Trained]]  # by method, one entry per seed


@dataclass(frozen=True)
class AnchorSet:
    """General turns that the base invented for methods that are held to them."""

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
        FileNotFoundError, ValueError: naming the file that is missing or not what it should be.
    """
    files: list[Artifact] = []

    def note(path: Path, stage: str, holds: str) -> Path:
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there; `dvc repro {stage}` makes it (or `dvc pull` fetches it)")
        files.append(Artifact(path, stage, holds))
        return path

    def benchmarked(folder: Path, stage: str, whose: str, judged: list[Judged] | None) -> Benchmarked:
        scores = read_json(note(folder / "scores.json", stage, f"lm-eval's totals, {whose}"))
        items = read_rows(note(folder / "items.jsonl", stage, f"every answer and its scores, {whose}"), ItemResult)
        return Benchmarked(scores, items if judged is None else add_verdicts(items, whose, judged))

    model = read_json(note(artifacts / "models" / "base.json", "models", "identity of the base model"))
    domains, rows = {}, config.run.rows
    for domain in config.run.domains:
        root = artifacts / domain
        examples, ingest = root / "examples", f"ingest@{domain}"
        splits = read_json(note(root / "ingest.json", ingest, "rows per split, rejects and flags by rule"))
        rejects = read_rows(note(examples / "rejects.jsonl", ingest, "rejected rows"), Reject)
        test = read_rows(note(examples / f"test.{rows}", ingest, "held-out questions"), Example)
        fused = read_rows(
            note(root / f"fused.{rows}", f"fuse@{domain}", "rewrites, similarities, decisions, fused answers"),
            Fused,
        )
        judging = read_json(note(root / "judging.json", f"fuse@{domain}", "agreement and calibration of the judges"))
        questions = None
        if domain in config.run.documents:
            pairs = root / "questions" / "summary.json"
            questions = read_json(
                note(pairs, f"question@{domain}", "pairs made from documents, by what became of them")
            )
        judged = None
        if domain in config.run.judged:
            votes = note(root / "judged" / "votes.jsonl", f"judge@{domain}", "the panel's votes on every answer")
            judged = read_rows(votes, Judged)
        base = benchmarked(root / "benchmarks" / BASE, f"benchmark_base@{domain}", BASE, judged)
        runs: dict[str, list[Trained]] = {}
        for method in config.run.methods:
            runs[method] = []
            for seed in config.run.seeds:
                name = f"{method}-{seed}"
                folder, stage = root / "runs" / name, f"distill@{domain}-{name}"
                summary = read_json(note(folder / "summary.json", stage, f"training time and weight distance, {name}"))
                steps = _read_steps(note(folder / "steps.csv", stage, f"losses and lambda, {name}"))
                asked = f"benchmark@{domain}-{name}"
                rest = note(folder / "merged" / "merge.json", asked, f"what was taken back, {name}")
                taken_back = read_json(rest)
                result = benchmarked(root / "benchmarks" / name, asked, name, judged)
                moved = root / "analysis" / f"{name}.json"
                analysis = read_json(note(moved, f"analyse@{domain}-{name}", f"distance to the base and drift, {name}"))
                runs[method].append(Trained(result.scores, result.items, seed, summary, taken_back, analysis, steps))
        domains[domain] = DomainStudy(rejects, splits, questions, test, fused, judging, base, runs)
    anchors = {}
    for name in sorted({row.anchors.set for one in config.run.methods if (row := config.methods[one]).anchors}):
        folder = artifacts / "anchors" / "sets" / name
        anchors[name] = AnchorSet(
            read_json(note(folder / "statistics.json", "anchors", f"how well the base invents, {name}")),
            read_rows(note(folder / "anchors.jsonl", "anchors", f"anchors, {name}"), Anchor),
            read_rows(note(folder / "rejects.jsonl", "anchors", f"rejected anchors, {name}"), RejectedAnchor),
        )
    return Study(config, model, domains, anchors, read_sweeps(sweeps), files)


def _read_steps(path: Path) -> dict[str, list[float | None]]:
    with path.open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    try:
        return {name: [float(row[name]) if row[name] else None for row in rows] for name in (rows[0] if rows else {})}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: got a cell that is not a number: {error}; `dvc repro` the run anew") from error
