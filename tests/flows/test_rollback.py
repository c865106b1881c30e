"""Rolling back in a clone: the registry's tags become the remote's, all others stay as they are."""

from types import SimpleNamespace

import pytest
from project_copies import ROOT

from flows.checkout import git
from flows.history import history
from flows.prune import prune
from flows.rollback import roll_back_domain
from raft_tasks.errors import InputError


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Two versions of the domain `law`, pushed to a bare origin; a tag of one's own that the origin has otherwise."""
    text = (ROOT / "params.yaml").read_text()
    changed = text.replace("\nretrain: {", "\nretrain: {remote: origin, branch: main, ")
    assert changed != text
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    git("init", "-q", "--bare", str(tmp_path / "origin.git"))
    git("init", "-q", "-b", "main")
    for name, value in {"user.name": "test", "user.email": "test@localhost"}.items():
        git("config", name, value)
    git("remote", "add", "origin", str(tmp_path / "origin.git"))
    (tmp_path / "mine/params.yaml").write_text(changed)
    (tmp_path / "mine/models").symlink_to(ROOT / "models")
    git("add", "params.yaml")
    for version in (1, 2):
        git("commit", "-q", "--allow-empty", "-m", f"version {version}")
        git("tag", "-am", "new", f"raft-law@v{version}.0.0")
        git("tag", "-am", "new", f"raft-law#prod#{version}")
    git("tag", "draft", "HEAD~1")
    git("push", "-q", "origin", "main", "--tags")
    git("tag", "--force", "draft", "HEAD")
    git("tag", "before-cleanup")
    return tmp_path / "mine"


def tags(folder):
    return git("for-each-ref", "--format=%(refname:short)", "refs/tags", folder=folder).splitlines()


def assert_own_tags_are_as_before(repository):
    assert {"before-cleanup", "draft"} < set(tags(repository))
    assert git("rev-parse", "draft", "before-cleanup") == git("rev-parse", "HEAD", "HEAD")


def test_the_registrys_tags_become_the_remotes_and_ones_own_stay(repository):
    git("tag", "-am", "never pushed", "raft-law@v9.0.0")
    assert "raft-law@v1.0.0 is in production again" in roll_back_domain("law", "two was bad")
    assert_own_tags_are_as_before(repository)
    assert "raft-law@v9.0.0" not in tags(repository)
    assert "raft-law#prod#3" in tags(repository.parent / "origin.git")
    with pytest.raises(InputError, match="nothing was before raft-law@v1"):
        roll_back_domain("law", "one, too")


@pytest.mark.parametrize("read", [history, lambda folder: prune(folder, now=False)], ids=["history", "prune"])
def test_what_reads_the_remotes_tags_moves_none_of_ones_own(repository, read, monkeypatch):
    done = SimpleNamespace(returncode=0, stdout="")  # of `dvc gc`
    monkeypatch.setattr("flows.prune.subprocess", SimpleNamespace(run=lambda *_, **__: done, DEVNULL=None))
    git("tag", "--delete", "raft-law@v2.0.0")
    read(repository)
    assert_own_tags_are_as_before(repository)
    assert "raft-law@v2.0.0" in tags(repository)
