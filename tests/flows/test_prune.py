"""Pruning: what a tag, branch, experiment or the workspace names stays; what is old goes; first it is only said."""

import os
import shutil
import subprocess
import time
from contextlib import chdir
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from flows import paths
from flows.checkout import git
from flows.prune import prune
from raft_tasks.generation.response_cache import CachedCall, ResponseCache, Tally

ROOT = Path(__file__).resolve().parents[2]
DAY = 86400


def run(folder, *command):
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Three models, one after the other: the released one, one that nothing names any more, the present one."""
    folder = tmp_path_factory.mktemp("template")
    run(folder, "git", "init", "-q")
    run(folder, "git", "config", "user.name", "test")
    run(folder, "git", "config", "user.email", "test@localhost")
    Repo.init(str(folder)).close()
    shutil.copy(ROOT / "params.yaml", folder)
    for name in ("released", "refused", "present"):
        (folder / "model").write_text(name)
        with chdir(folder), Repo() as repo:
            repo.add("model")
        run(folder, "git", "add", "--all")
        run(folder, "git", "commit", "-qm", name)
        if name == "released":
            run(folder, "git", "tag", "raft-archive@v1.0.0")
    for age in (1, 30):
        state = folder / paths.CHECKPOINTS / f"training-{age}" / "complete"
        state.parent.mkdir(parents=True)
        for path in (state, state.parent):
            path.touch()
            os.utime(path, times=(time.time() - age * DAY,) * 2)
        targets = folder / paths.CHECKPOINTS / f"targets-{age}.jsonl"
        targets.touch()
        os.utime(targets, times=(time.time() - age * DAY,) * 2)
    store = ResponseCache(folder / paths.RESPONSES)
    store.begin("run", "rewrite")
    store.put([CachedCall("a", "rewrite", "m", False, 1, 1, 0.0, "x")], "run", Tally())
    store.close()
    return folder


@pytest.fixture
def repository(template, tmp_path):
    return Path(shutil.copytree(template, tmp_path / "repository"))


def cached(repository):
    files = (repository / ".dvc/cache/files").rglob("*")
    return sorted(path.read_text() for path in files if path.is_file())


def checkpoints(repository):
    return sorted(path.name for path in (repository / paths.CHECKPOINTS).iterdir())


def test_first_it_is_said_then_done(repository, capsys):
    prune(repository, now=False)
    said = capsys.readouterr().out
    assert "training-30" in said
    assert "training-1\n" not in said
    assert "calls: 0" in said
    assert cached(repository) == ["present", "refused", "released"]
    assert checkpoints(repository) == ["targets-1.jsonl", "targets-30.jsonl", "training-1", "training-30"]

    prune(repository, now=True)
    assert cached(repository) == ["present", "released"]
    assert checkpoints(repository) == ["targets-1.jsonl", "training-1"]


def test_old_calls_are_counted_and_forgotten(repository, monkeypatch, capsys):
    later = time.time() + 91 * DAY
    monkeypatch.setattr(time, "time", lambda: later)
    monkeypatch.setattr("flows.prune.prune_cache", lambda *_: None)  # `dvc gc`, seconds each time: the other tests'
    prune(repository, now=False)
    assert "calls: 1" in capsys.readouterr().out
    prune(repository, now=True)
    capsys.readouterr()
    prune(repository, now=False)
    assert "calls: 0" in capsys.readouterr().out


def test_what_the_retrain_checkout_holds_stays(repository):
    checkout = repository / ".raft/checkout"
    run(repository, "git", "clone", "-q", str(repository), str(checkout))
    run(checkout, "git", "checkout", "-q", "--detach", "HEAD~1")  # the refused model's commit, on no branch
    prune(repository, now=True)
    assert cached(repository) == ["present", "refused", "released"]


def test_what_an_experiment_names_stays(repository):
    refused = git("rev-parse", "HEAD~1", folder=repository)
    head = git("rev-parse", "HEAD", folder=repository)
    git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/tau-0.5", refused, folder=repository)
    prune(repository, now=True)
    assert cached(repository) == ["present", "refused", "released"]


def test_an_origin_that_is_away_ends_it_before_anything_goes(repository):
    run(repository, "git", "remote", "add", "team", str(repository / "nowhere"))
    config = yaml.safe_load((repository / "params.yaml").read_text())
    config["retrain"]["remote"] = "team"
    (repository / "params.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(RuntimeError, match="nowhere"):
        prune(repository, now=True)
    assert cached(repository) == ["present", "refused", "released"]
