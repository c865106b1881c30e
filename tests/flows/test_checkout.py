"""The checkout of its own in which a retrain works."""

import signal
import subprocess
import sys
from contextlib import chdir

import pytest
from dvc.repo import Repo
from retrain_repository import commit_all, prepared

from flows import checkout
from flows.checkout import GitFailed, git, publish, retrain_lock, update_checkout
from raft_tasks.config import load_config
from raft_tasks.errors import InputError


def test_a_dirty_workspace_stays_out_of_the_checkout_and_untouched(repository, settings):
    (repository / "params.yaml").write_text("broken")
    (repository / "stray.txt").write_text("mine")
    folder = prepared(repository, settings)
    assert load_config(folder / "params.yaml").retrain == settings
    assert not (folder / "stray.txt").exists()
    assert (repository / "params.yaml").read_text() == "broken"
    assert git("branch", "--show-current", folder=folder) == "retrain"
    assert git("status", "--porcelain", folder=folder) == ""


def test_the_caches_are_the_repositorys(repository, settings):
    folder = prepared(repository, settings)
    (folder / ".cache" / "responses.sqlite").write_text("calls")
    assert (repository / ".cache" / "responses.sqlite").read_text() == "calls"
    with Repo(str(folder)) as repo:
        assert repo.cache.local_cache_dir == str(repository / ".dvc" / "cache")


def test_a_remote_named_by_a_relative_path_is_the_repositorys(repository, settings, tmp_path):
    urls = {"shared": "../../shared", "cloud": "s3://bucket/x", "scp": "me@host:data", "absolute": "/mnt/data"}
    with (repository / ".dvc" / "config").open("a") as file:
        file.writelines(f"['remote \"{name}\"']\n    url = {url}\n" for name, url in urls.items())
    private = "['remote \"private\"']\n    url = ../../private\n['remote \"cloud\"']\n    endpointurl = http://here\n"
    (repository / ".dvc" / "config.local").write_text(private)
    commit_all(repository)
    with Repo(str(prepared(repository, settings))) as repo:
        remotes = {name: remote.get("url") for name, remote in repo.config["remote"].items()}
        kept = repo.config.read("local")["remote"]
    assert remotes["local"] == str(repository / ".cache" / "dvc-remote")
    assert remotes["shared"] == str(tmp_path / "shared")
    assert remotes["private"] == str(tmp_path / "private")
    assert (remotes["cloud"], remotes["absolute"]) == ("s3://bucket/x", "/mnt/data")
    assert set(kept) == {"local", "shared", "private", "cloud"}
    assert kept["cloud"] == {"endpointurl": "http://here"}


def test_what_a_killed_run_left_is_gone(repository, settings):
    folder = prepared(repository, settings)
    (folder / "data" / "archive" / "half.jsonl").write_text("{")
    commit_all(folder)
    git("-c", "user.name=t", "-c", "user.email=t@t", "tag", "-am", "x", "raft-archive@v1.0.0", folder=folder)
    (folder / "artifacts").mkdir()
    (folder / "artifacts" / "rest").write_text("x")
    (folder / ".git" / "index.lock").write_text("")
    prepared(repository, settings)
    assert git("rev-parse", "HEAD", folder=folder) == git("rev-parse", "HEAD", folder=repository)
    assert git("tag", folder=folder) == ""
    assert not (folder / "artifacts").exists()
    assert (repository / ".cache").is_dir()  # shared, not cleaned


def test_the_branch_goes_on_from_the_last_run_with_new_code_merged_in(repository, settings):
    folder = prepared(repository, settings)
    (folder / "data" / "archive" / "week.jsonl").write_text("{}\n")
    (folder / "dvc.lock").write_text("schema: '2.0'\n")
    with chdir(folder):
        assert checkout.commit("week 1")
        assert not checkout.commit("nothing")
        publish("retrain", [])
    (repository / "README.md").write_text("new words")
    (repository / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")  # both sides have one: no conflict
    commit_all(repository)
    prepared(repository, settings)
    assert (folder / "README.md").read_text() == "new words"
    assert (folder / "data" / "archive" / "week.jsonl").exists()
    assert (folder / "dvc.lock").read_text() == "schema: '2.0'\n"


def test_the_same_lines_changed_on_both_sides_are_for_people(repository, settings):
    folder = prepared(repository, settings)
    for side, text in ((folder, "one"), (repository, "two")):
        (side / "README.md").write_text(text)
        commit_all(side)
    with chdir(folder):
        publish("retrain", [])
    with pytest.raises(InputError, match="merge them by hand and push the result as 'retrain'"):
        prepared(repository, settings)


def test_an_origin_that_does_not_answer(repository, settings, tmp_path):
    with pytest.raises(GitFailed, match="nowhere"):
        update_checkout(repository, str(tmp_path / "nowhere"), settings)
    with pytest.raises(InputError, match="elsewhere"):
        checkout.origin(repository, settings.model_copy(update={"remote": "elsewhere"}))


def test_two_clones_at_once_leave_one_winner(repository, settings, tmp_path):
    git("clone", "-q", "--bare", str(repository), str(tmp_path / "bare"))
    shared = settings.model_copy(update={"remote": "origin"})
    folders = []
    for name in ("a", "b"):
        git("clone", "-q", str(tmp_path / "bare"), str(tmp_path / name))
        assert checkout.origin(tmp_path / name, shared) == str(tmp_path / "bare")
        folders.append(prepared(tmp_path / name, shared))
    for folder in folders:
        (folder / "model").write_text(folder.parent.parent.name)
        with chdir(folder):
            checkout.commit("a model")
            git("tag", "-am", "x", "raft-archive@v1.0.0")
    with chdir(folders[0]):
        publish("retrain", ["raft-archive@v1.0.0"])
    with chdir(folders[1]), pytest.raises(InputError, match="someone else pushed there"):
        publish("retrain", ["raft-archive@v1.0.0"])
    with chdir(folders[1]), pytest.raises(InputError, match="someone else pushed there"):
        publish("another", ["raft-archive@v1.0.0"])  # all or nothing: the branch is new, the tag is not
    assert git("show", "retrain:model", folder=tmp_path / "bare") == "a"
    assert git("branch", "--list", "another", folder=tmp_path / "bare") == ""


# --- the lock

HOLD = """
import sys, time
from pathlib import Path
from flows.checkout import retrain_lock
with retrain_lock(sys.argv[1], Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_waits_until_the_first_one_ends_however_it_ends(repository):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(repository)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    said = []

    def say(text):
        said.append(text)
        holder.send_signal(signal.SIGKILL)

    with retrain_lock(str(repository), repository, say):
        assert holder.wait(10) == -signal.SIGKILL
    holder.stdout.close()
    assert len(said) == 1
    assert f"process {holder.pid} of " in said[0]


# --- new data
