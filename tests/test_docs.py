"""The documentation: excerpts of params.yaml load, relative links lead somewhere, commands are those of today."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from typer.main import get_command

from flows.cli import app
from raft_tasks.artifacts import parse_yaml
from raft_tasks.config import Config, parse_config

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    {
        path.relative_to(ROOT)
        for pattern in ("*.md", "docs/**/*.md", "*/README.md", "data/*/README.md", "raft_tasks/**/README.md")
        for path in ROOT.glob(pattern)
        if not path.relative_to(ROOT).parts[0].startswith(".")
    }
)
GENERATED = Path("docs/reference/config.md")
BLOCK = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^()\s#]*)(?:#([^()\s]*))?\)")


def excerpts() -> Iterator[Any]:
    """The YAML blocks of the pages that have sections of params.yaml; others are of DVC or Prefect."""
    for page in PAGES:
        for number, block in enumerate(BLOCK.findall((ROOT / page).read_text(encoding="utf-8")), start=1):
            document = yaml.safe_load(block)
            if page != GENERATED and Config.model_fields.keys() & document.keys():
                yield pytest.param(document, id=f"{page}-{number}")


def overlaid(base: Any, excerpt: Any) -> Any:
    """`excerpt` laid over `base`, key by key; lists and single values are replaced."""
    if isinstance(base, dict) and isinstance(excerpt, dict):
        return {**base, **{key: overlaid(base.get(key), value) for key, value in excerpt.items()}}
    return excerpt


def heading_ids(text: str) -> set[str]:
    """As GitHub makes them: lower case, without punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("excerpt", [*excerpts()])
def test_an_excerpt_of_params_loads(excerpt: Any) -> None:
    document = overlaid(parse_yaml((ROOT / "params.yaml").read_text(encoding="utf-8"), "params.yaml"), excerpt)
    for domain in document["retrain"]["fetch"]:  # an excerpt need not show the domains that it names
        document["domains"].setdefault(domain, {"hub": {"id": "owner/name", "revision": 40 * "0"}})
    parse_config(document)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    broken = []
    for name, heading in LINK.findall(FENCED.sub("", text)):
        target = (ROOT / page.parent / name).resolve() if name else ROOT / page
        if not target.exists() or (heading and heading not in heading_ids(target.read_text(encoding="utf-8"))):
            broken.append(f"{name}#{heading}" if heading else name)
    assert not broken


@pytest.mark.parametrize("page", [page for page in PAGES if page != Path("CHANGELOG.md")], ids=str)
def test_commands_are_those_of_raft(page: Path) -> None:
    assert "python -m flows." not in (ROOT / page).read_text(encoding="utf-8")


def test_the_workflow_of_the_gate_calls_what_there_is() -> None:
    """Stages of dvc.yaml, options of `raft`, and the files that the next step reads."""
    page = (ROOT / "docs/guides/gate.md").read_text(encoding="utf-8")
    [workflow] = [document for block in BLOCK.findall(page) if "jobs" in (document := yaml.safe_load(block))]
    steps = workflow["jobs"]["gate"]["steps"]
    commands = [shlex.split(step["run"], comments=True) for step in steps if "run" in step]
    [stage] = [command[2] for command in commands if command[:2] == ["dvc", "repro"]]
    with Repo(ROOT) as repo:
        assert stage in {found.addressing for found in repo.index.stages}
    [arguments] = [command[2:] for command in commands if command[:2] == ["raft", "gate"]]
    values = get_command(app).commands["gate"].make_context("gate", arguments).params  # type: ignore[attr-defined]
    assert values["candidate"] == "artifacts/archive/runs/raft-0/model"
    assert (ROOT / values["base"] / "config.json").is_file()
    written = str(values["output"])
    assert any(f"{written}/comment.md" in step.get("run", "") for step in steps)
    assert steps[-1]["with"]["path"] == written


def test_the_tests_of_faults_exist() -> None:
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs" / "reference" / "faults.md").read_text())
    assert len(named) > 20
    for file, test in named:
        assert not test or f"def {test}(" in (ROOT / "tests" / file).read_text(), test


def test_the_tests_that_the_table_of_faults_names_are_there() -> None:
    table = (ROOT / "docs" / "reference" / "faults.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", table)
    assert len(named) > 40
    assert [
        f"{file}::{name}" for file, name in named if f"def {name or 'test_'}" not in (ROOT / "tests" / file).read_text()
    ] == []
