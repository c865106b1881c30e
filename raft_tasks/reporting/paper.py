"""The paper's tables with ours beside them; its figures stand in paper.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raft_tasks.artifacts import read_yaml

ABLATION = ("sft", "fused_sft", "raft")  # raw answers, fused answers, fused answers and the teacher


def load_paper() -> dict[str, Any]:
    """The figures, in percent, by the names of our methods."""
    return read_yaml(Path(__file__).parent / "paper.yaml")


def beside(paper: dict[str, Any], measures: list[str]) -> dict[str, str | None]:
    """{measure of the paper: ours that stands beside it}; None where nothing like it was benchmarked."""
    return {theirs: next((one for one in ours if one in measures), None) for theirs, ours in paper["measures"].items()}


def main_table(paper: dict[str, Any], overall: dict[str, Any]) -> list[dict[str, Any]]:
    """Table 1: a row per method of either side, with a cell per measure of the paper.

    A cell holds `ours` (score, share of SFT's score: estimates, None where there is none) and, by backbone, the paper's
    (score, relative change in percent).
    """
    ours = beside(paper, overall["measures"])
    rows = []
    for method in [*paper["methods"], *(one for one in overall["methods"] if one not in paper["methods"])]:
        own = overall["methods"].get(method)
        cells = []
        for place, (measure, mine) in enumerate(ours.items()):
            printed = {name: rows[method] for name, rows in paper["table"].items() if method in rows}
            cells.append(
                {
                    "measure": measure,
                    "score": own["scores"][mine] if own and mine else None,
                    "share": own.get("share_of_reference", {}).get(mine) if own and mine else None,
                    "paper": {
                        name: (row["scores"][place], row.get("changes", [None] * 3)[place])
                        for name, row in printed.items()
                    },
                }
            )
        rows.append({"method": method, "cells": cells, "measured": own is not None})
    return rows


def ablation_table(paper: dict[str, Any], domains: dict[str, Any]) -> list[dict[str, Any]]:
    """Raw SFT -> fused SFT -> RAFT: a row per domain, ours first; per measure of the paper the three scores in percent.

    A score of ours is an estimate, one of the paper a number; None where a method was not run or nothing is measured.
    """
    rows = []
    for name, found in domains.items():
        ours = beside(paper, list(found["measures"]))
        methods = found["methods"]
        cells = {
            measure: [methods[one]["scores"][mine] if mine and one in methods else None for one in ABLATION]
            for measure, mine in ours.items()
        }
        rows.append({"domain": name, "whose": "ours", "cells": cells})
    for name, scores in paper["ablation"].items():
        cells = {measure: [scores[one][place] for one in ABLATION] for place, measure in enumerate(paper["measures"])}
        rows.append({"domain": name, "whose": "paper", "cells": cells})
    return rows
