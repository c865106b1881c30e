"""The history of a service: every retraining and every roll back, on a page that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from raft_tasks.artifacts import atomic_file
from raft_tasks.reporting.report import page_environment

PAGES = {"history.html.jinja": "history.html", "history.md.jinja": "history.md"}


@dataclass(frozen=True)
class Event:
    """One domain's candidate that was judged, or one model that a person put back into production."""

    when: datetime
    domain: str
    outcome: str  # promoted | kept | rolled back
    winner: str  # what was in production afterwards
    reason: str
    commit: str
    verdict: Mapping[str, Any] | None = None  # releases/<domain>.json; None of a roll back
    new_rows: str = ""
    questions: str = ""
    duration: str = ""

    def margin(self, rule: str) -> str:
        """By how much, as the verdict's table has it; empty where it has no such rule."""
        checks = self.verdict["checks"] if self.verdict else []
        return next((check["candidate"] for check in checks if check["rule"] == rule), "")

    @property
    def general(self) -> str:
        """The general average, or the only general task."""
        checks = self.verdict["checks"] if self.verdict else []
        rules = [check["rule"] for check in checks if check["rule"].startswith("general")]
        return self.margin(rules[-1]) if rules else ""

    @property
    def opponent(self) -> str:
        return (self.verdict["champion"] or "the base") if self.verdict else ""


def write_history(events: Sequence[Event], folder: Path) -> None:
    """Write history.html and history.md into `folder`; `events` in any order, shown newest first."""
    environment = page_environment()
    shown = sorted(events, key=lambda event: event.when, reverse=True)
    current: dict[str, str] = {}
    for event in shown:
        current.setdefault(event.domain, event.winner)
    counts = {
        outcome: sum(event.outcome == outcome for event in shown) for outcome in ("promoted", "kept", "rolled back")
    }
    for template, name in PAGES.items():
        with atomic_file(folder / name) as temporary:
            page = environment.get_template(template).render(events=shown, current=current, counts=counts)
            temporary.write_text(page, encoding="utf-8")
