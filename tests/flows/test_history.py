"""The history page, of a real git repository as retrain and rollback leave it."""

import json
import re
from pathlib import Path

import pytest
from project_copies import ROOT

from flows.checkout import git
from flows.history import history
from raft_tasks.errors import InputError
from raft_tasks.reporting.history import write_history

CHECKS = [
    {"rule": "domain", "candidate": "+3.1 points (+1.0 to +5.2)", "limit": "l", "evidence": "<e>", "result": "pass"},
    {"rule": "general: recall", "candidate": "-9.0 points (-9.9 to -8.1)", "limit": "l", "evidence": "", "result": "x"},
    {"rule": "general average", "candidate": "-0.5 points (-1.0 to +0.1)", "limit": "l", "evidence": "", "result": "x"},
]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "releases").mkdir()
    monkeypatch.chdir(tmp_path)
    git("init", "-q", "-b", "main")
    for name, value in {"user.name": "test", "user.email": "test@localhost"}.items():
        git("config", name, value)
    git("add", "params.yaml")
    git("commit", "-q", "-m", "start")
    return tmp_path


def at(monkeypatch, week):
    """Events a week apart, so that their order is theirs."""
    monkeypatch.setenv("GIT_COMMITTER_DATE", f"2026-01-{7 * week:02d}T03:00:00+00:00")


def retrained(week, champion, promoted):
    """A commit as flows.retrain makes it."""
    verdict = {"champion": champion, "promoted": promoted, "reason": f"because of week {week}", "checks": CHECKS}
    Path("releases/archive.json").write_text(json.dumps(verdict))
    git("add", "releases")
    costs = f"New-rows: archive: {week} of 200\nQuestions: rewrite: 8\nDuration: 61 s"
    git("commit", "-q", "-m", f"Retrain\n\narchive: a reason\n\n{costs}")


def tag(name, message, revision="HEAD"):
    git("tag", "-a", name, "-m", message, revision)


@pytest.fixture
def four_weeks(repository, monkeypatch):
    """Promoted, promoted, kept, rolled back."""
    git("checkout", "-q", "-b", "retrain")
    for week, (champion, promoted) in enumerate(
        [(None, True), ("raft-archive@v1.0.0", True), ("raft-archive@v2.0.0", False)], start=1
    ):
        at(monkeypatch, week)
        retrained(week, champion, promoted)
        if promoted:
            tag(f"raft-archive@v{week}.0.0", "new")
            tag(f"raft-archive#prod#{week}", "new")
    at(monkeypatch, 4)
    tag("raft-archive#prod#3", "two was bad", "raft-archive@v1.0.0^{commit}")
    return repository


def test_every_week_tells_who_won_by_how_much_and_at_what_cost(four_weeks):
    events = history(four_weeks)
    assert [(one.outcome, one.winner, one.opponent) for one in events] == [
        ("promoted", "raft-archive@v1.0.0", "the base"),
        ("promoted", "raft-archive@v2.0.0", "raft-archive@v1.0.0"),
        ("kept", "raft-archive@v2.0.0", "raft-archive@v2.0.0"),
        ("rolled back", "raft-archive@v1.0.0", ""),
    ]
    assert (events[1].new_rows, events[1].questions, events[1].duration) == ("archive: 2 of 200", "rewrite: 8", "61 s")
    assert (events[1].margin("domain"), events[1].general) == (CHECKS[0]["candidate"], CHECKS[2]["candidate"])
    assert (events[3].reason, events[3].duration) == ("two was bad", "")


def test_a_clone_shows_what_its_remote_has(four_weeks, tmp_path_factory, monkeypatch):
    clone = tmp_path_factory.mktemp("clone")
    git("clone", "-q", "--single-branch", "--no-tags", "--branch", "main", str(four_weeks), str(clone))
    text = (ROOT / "params.yaml").read_text()
    changed = text.replace("\nretrain: {", "\nretrain: {remote: origin, ")
    assert changed != text
    (clone / "params.yaml").write_text(changed)
    (clone / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(clone)
    assert [one.outcome for one in history(clone)] == ["promoted", "promoted", "kept", "rolled back"]


def test_the_pages_name_the_newest_first_and_need_nothing_beside_them(four_weeks):
    write_history(history(four_weeks), four_weeks / "reports")
    page = (four_weeks / "reports/history.html").read_text()
    assert "2 promoted, 1 kept the model in production, 1 rolled back" in page
    assert "In production: raft-archive@v1.0.0" in page
    assert page.index("rolled back</td>") < page.index("kept</td>")
    assert "&lt;e&gt;" in page
    assert not re.search(r'(src|href)="(?!#)', page)
    rows = [line for line in (four_weeks / "reports/history.md").read_text().splitlines() if line.startswith("| 2026")]
    assert ["rolled back" in row for row in rows] == [True, False, False, False]


def test_without_a_retraining_there_is_no_history(repository):
    with pytest.raises(InputError, match="has no branch 'retrain': nothing was retrained yet"):
        history(repository)
