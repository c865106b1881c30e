"""The paper's tables with ours beside them; its figures are in paper.yaml."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raft_tasks.artifacts import read_yaml
from raft_tasks.reporting.metrics import DomainMetrics, OverallMetrics

ABLATION = ("sft", "fused_sft", "raft")  # reference answers, fused answers, fused answers and the teacher


@dataclass(frozen=True)
class AblationRow:
    domain: str
    paper: bool
    cells: dict[str, list[Any]]  # by measure of the paper, a score per step: an Interval of ours, percent of the paper


def load_paper() -> dict[str, Any]:
    """The figures, in percent, by the names of our methods."""
    return read_yaml(Path(__file__).parent / "paper.yaml")


def our_measures(paper: Mapping[str, Any], measures: Sequence[str]) -> dict[str, str | None]:
    """{measure of the paper: our corresponding measure}; None where nothing like it was benchmarked."""
    return {
        measure: next((name for name in ours if name in measures), None) for measure, ours in paper["measures"].items()
    }


def main_table(paper: Mapping[str, Any], overall: OverallMetrics) -> list[dict[str, Any]]:
    """Table 1: a row per method of the paper or of ours, with a cell per measure of the paper.

    A cell holds our `score` and `share` of SFT's score (None where there is none) and, by backbone, the `paper`'s
    (score, relative change), both in percent.
    """
    ours = our_measures(paper, overall["measures"])
    rows = []
    for method in dict.fromkeys([*paper["methods"], *overall["methods"]]):
        row = overall["methods"].get(method)
        backbones = {name: scores[method] for name, scores in paper["table"].items() if method in scores}
        cells = [
            {
                "measure": measure,
                "score": row["scores"][name] if row and name else None,
                "share": row.get("share_of_reference", {}).get(name) if row and name else None,
                "paper": {
                    backbone: (printed["scores"][i], printed.get("changes", [None] * 3)[i])
                    for backbone, printed in backbones.items()
                },
            }
            for i, (measure, name) in enumerate(ours.items())
        ]
        rows.append({"method": method, "cells": cells})
    return rows


def ablation_table(
    paper: Mapping[str, Any], domains: Mapping[str, DomainMetrics], ours: Mapping[str, str | None]
) -> list[AblationRow]:
    """SFT -> fused SFT -> RAFT: a row per domain, ours first; None where a method or a measure is missing.

    Args:
        ours: `our_measures` that all domains have.
    """
    rows = []
    for domain, scored in domains.items():
        methods = scored["methods"]
        cells: dict[str, list[Any]] = {
            measure: [methods[step]["scores"][name] if name and step in methods else None for step in ABLATION]
            for measure, name in ours.items()
        }
        rows.append(AblationRow(domain, False, cells))
    for domain, printed in paper["ablation"].items():
        cells = {measure: [printed[step][i] for step in ABLATION] for i, measure in enumerate(paper["measures"])}
        rows.append(AblationRow(domain, True, cells))
    return rows
