"""The history of a retrained model: every retraining and every rollback, as a self-contained page and as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from raft_tasks.reporting.report import page_environment, render


@dataclass(frozen=True)
class Event:
    """The gate's decision on one domain's candidate, or one rollback."""

    when: datetime
    domain: str
    outcome: str  # promoted | kept | rolled back
    winner: str  # the version in production afterwards
    reason: str
    commit: str
    verdict: Mapping[str, Any] | None = None  # releases/<domain>.json; None for a rollback
    new_rows: str = ""
    questions: str = ""
    duration: str = ""

    def margin(self, rule: str) -> str:
        """The candidate's margin under a rule of the gate; empty where it has no such rule."""
        return next((check["candidate"] for check in self._checks if check["rule"] == rule), "")

    @property
    def _checks(self) -> list[dict[str, Any]]:
        return self.verdict["checks"] if self.verdict else []

    @property
    def general(self) -> str:
        """The general average, or the only general task."""
        rules = [check["rule"] for check in self._checks if check["rule"].startswith("general")]
        return self.margin(rules[-1]) if rules else ""

    @property
    def opponent(self) -> str:
        return (self.verdict["champion"] or "the base") if self.verdict else ""


def write_history(events: Sequence[Event], folder: Path) -> None:
    """Write history.html and history.md into `folder`, newest event first."""
    newest_first = sorted(events, key=lambda event: event.when, reverse=True)
    current: dict[str, str] = {}
    for event in newest_first:
        current.setdefault(event.domain, event.winner)
    outcomes = ("promoted", "kept", "rolled back")
    view = {
        "events": newest_first,
        "current": current,
        "counts": {outcome: sum(event.outcome == outcome for event in events) for outcome in outcomes},
    }
    for suffix in ("html", "md"):
        render(page_environment(), f"history.{suffix}.jinja", view, folder / f"history.{suffix}")
