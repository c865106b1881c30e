"""The registry, on real git and DVC repositories."""

import subprocess
from contextlib import chdir

import dvc.cli
import pytest
from dvc.repo import Repo

from raft_tasks.errors import InputError, OperationalError
from raft_tasks.registry import champion, promote, promotions, roll_back


def git(folder, *arguments):
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for name, value in {"user.name": "test", "user.email": "test@localhost"}.items():
        git(folder, "config", name, value)
    Repo.init(str(folder)).close()
    with (folder / ".dvc/config").open("a") as config:
        config.write(f"[core]\n    remote = r\n['remote \"r\"']\n    url = {tmp_path / 'remote'}\n")
    (folder / "dvc.yaml").write_text("artifacts:\n  raft-law: {path: releases/law, type: model}\n")
    monkeypatch.chdir(folder)
    return folder


def test_a_folder_outside_of_git_is_named(tmp_path):
    with pytest.raises(InputError, match=r"expected a git repository.*git init"):
        champion(tmp_path, "law")


def release(folder, text, push=True):
    (folder / "releases/law").mkdir(parents=True, exist_ok=True)
    (folder / "releases/law/weights").write_text(text)
    with chdir(folder), Repo() as repo:
        repo.add("releases/law")
        if push:
            repo.push()
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", text)


def test_no_model_is_in_production_before_the_first_promotion(repository):
    release(repository, "one")
    assert champion(repository, "law") is None


def test_a_promoted_version_can_be_fetched_by_name(repository, tmp_path):
    release(repository, "one")
    assert promote(repository, "law", "first") == ["raft-law@v1.0.0", "raft-law#prod#1"]
    release(repository, "two")
    assert promote(repository, "law", "better") == ["raft-law@v2.0.0", "raft-law#prod#2"]
    found = champion(repository, "law")
    assert (str(found), found.revision) == ("raft-law@v2.0.0", git(repository, "rev-parse", "HEAD"))
    release(repository, "three")  # never promoted
    for option, name, text in (("--rev", "v1.0.0", "one"), ("--rev", "v2.0.0", "two"), ("--stage", "prod", "two")):
        out = tmp_path / name
        assert dvc.cli.main(["artifacts", "get", str(repository), "raft-law", option, name, "-o", str(out)]) == 0
        assert (out / "weights").read_text() == text


def test_nothing_is_tagged_before_it_is_stored(repository):
    release(repository, "one", push=False)
    with pytest.raises(OperationalError, match=r"releases/law\.dvc: the DVC remote lacks"):
        promote(repository, "law", "too early")
    assert git(repository, "tag") == ""


def test_rolling_back_puts_the_version_before_into_production(repository):
    for text in ("one", "two", "three"):
        release(repository, text)
        promote(repository, "law", text)
    version, tag = roll_back(repository, "law", "three was bad")
    assert (str(version), tag) == ("raft-law@v2.0.0", "raft-law#prod#4")
    assert str(champion(repository, "law")) == "raft-law@v2.0.0"
    assert [one.version.number for one in promotions(repository, "law")] == ["v1.0.0", "v2.0.0", "v3.0.0", "v2.0.0"]
    version, tag = roll_back(repository, "law", "two was bad too")  # not to three, which was bad
    assert (str(version), tag) == ("raft-law@v1.0.0", "raft-law#prod#5")
    with pytest.raises(InputError, match=r"nothing was before raft-law@v1\.0\.0 in production"):
        roll_back(repository, "law", "?")
    release(repository, "four")
    promote(repository, "law", "four")
    assert str(champion(repository, "law")) == "raft-law@v4.0.0"
    assert str(roll_back(repository, "law", "four was bad")[0]) == "raft-law@v1.0.0"  # what four replaced


def test_there_must_be_something_to_go_back_to(repository):
    with pytest.raises(InputError, match="no model has ever been in production"):
        roll_back(repository, "law", "?")
    release(repository, "one")
    promote(repository, "law", "one")
    with pytest.raises(InputError, match=r"nothing was before raft-law@v1\.0\.0 in production"):
        roll_back(repository, "law", "?")


def test_of_two_clones_that_promote_at_once_one_wins_and_the_tags_agree(repository, tmp_path):
    release(repository, "one")
    clones = [tmp_path / name for name in ("a", "b")]
    for clone in clones:
        git(tmp_path, "clone", "-q", str(repository), str(clone))
        for name, value in {"user.name": clone.name, "user.email": "test@localhost"}.items():
            git(clone, "config", name, value)
        release(clone, f"two of {clone.name}")
        tags = promote(clone, "law", clone.name)
        pushed = subprocess.run(
            ["git", "push", "--atomic", "origin", "HEAD:refs/heads/retrain", *tags], cwd=clone, capture_output=True
        )
        assert (pushed.returncode == 0) == (clone.name == "a")
    assert str(champion(repository, "law")) == "raft-law@v1.0.0"
    assert champion(repository, "law").revision == git(clones[0], "rev-parse", "HEAD")
