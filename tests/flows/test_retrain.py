"""The scheduled service: its checkout, its lock, new data, one run after another, and a schedule with a worker."""

import json
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from dvc.repo import Repo
from prefect.client.orchestration import get_client
from retrain_repository import GRAPH, commit_all, prepared
from test_kill import wait_for

from flows import checkout, new_data, retrain
from flows.checkout import git
from flows.server import prefect_at
from raft_tasks.config import DvcImport, Folder, HubRevision, load_config
from raft_tasks.errors import InputError, OperationalError

DROP = Folder(kind="folder", path="inbox/archive", into="data")


def drop(repository, name, text):
    (repository / DROP.path / name).parent.mkdir(parents=True, exist_ok=True)
    (repository / DROP.path / name).write_text(text)


def test_a_folder_drop_brings_what_is_finished_and_differs(repository, settings):
    for name in ("new.jsonl", ".hidden", "x.partial", "sub/deep.jsonl"):
        drop(repository, name, "{}\n")
    with chdir(prepared(repository, settings)):
        came = new_data.fetch("archive", DROP, repository, [])
        assert [line.split()[0] for line in came] == ["data/archive/new.jsonl", "data/archive/sub/deep.jsonl"]
        assert new_data.fetch("archive", DROP, repository, []) == []
        start = git("rev-parse", "HEAD")
        checkout.commit("news")
        drop(repository, "new.jsonl", "{}\n{}\n")
        changed = new_data.fetch("archive", DROP, repository, [])
        assert len(changed) == 1
        assert changed[0] not in came
        checkout.commit("more news")
        new_data.revert("archive", DROP, start)
        assert git("diff", "--cached", start, "--stat") == ""
        assert len(new_data.fetch("archive", DROP, repository, changed)) == 1  # the deep one: the other was refused


def test_a_dropped_file_is_committed_whatever_gitignore_says(repository, settings):
    with chdir(prepared(repository, settings)):
        Path(".gitignore").write_text("*.jsonl\n")
        drop(repository, "new.jsonl", "{}\n")
        assert len(new_data.fetch("archive", DROP, repository, [])) == 1
        checkout.commit("news")
        assert git("ls-files", "data/archive/new.jsonl")


def test_a_folder_under_dvc_stays_there(repository, settings):
    with chdir(prepared(repository, settings)):
        git("rm", "-r", "-q", "--cached", "data/archive")
        with Repo() as repo:
            repo.add("data/archive")
        checkout.commit("under DVC")
        start, before = git("rev-parse", "HEAD"), Path("data/archive.dvc").read_text()
        drop(repository, "new.jsonl", "{}\n")
        assert len(new_data.fetch("archive", DROP, repository, [])) == 1
        assert Path("data/archive.dvc").read_text() != before
        assert git("ls-files", "data/archive") == ""
        new_data.revert("archive", DROP, start)
        assert Path("data/archive.dvc").read_text() == before


def test_a_folder_that_is_not_there_may_come_back(repository, settings):
    shutil.rmtree(repository / DROP.path)
    with (
        chdir(prepared(repository, settings)),
        pytest.raises(OperationalError, match="inbox/archive is not there"),
    ):
        new_data.fetch("archive", DROP, repository, [])


def test_the_hubs_newest_commit_is_pinned(repository, settings, monkeypatch):
    import huggingface_hub

    old, new, source = "a" * 40, "b" * 40, HubRevision(kind="hub")
    text = (repository / "params.yaml").read_text()
    values = yaml.safe_load(text)
    hub = {"id": "o/n", "revision": old}
    values["domains"]["archive"] = {**values["domains"]["archive"], "hub": hub}
    (repository / "params.yaml").write_text("# a comment\n" + yaml.safe_dump(values))
    commit_all(repository)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name: SimpleNamespace(sha=new))
    with chdir(prepared(repository, settings)):
        start = git("rev-parse", "HEAD")
        line = f"domains.archive.hub o/n revision:{new}"
        assert new_data.fetch("archive", source, repository, [line]) == []
        assert new_data.fetch("archive", source, repository, []) == [line]
        assert load_config().domains["archive"].hub.revision == new
        assert Path("params.yaml").read_text().startswith("# a comment\n")
        assert new_data.fetch("archive", source, repository, []) == []
        new_data.revert("archive", source, start)
        assert git("status", "--porcelain") == ""

        def away(self, name):
            raise OSError("no network")

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", away)
        with pytest.raises(OperationalError, match="no network"):
            new_data.fetch("archive", source, repository, [])


def test_domains_that_share_a_commit_are_pinned_one_by_one(repository, settings, monkeypatch):
    import huggingface_hub

    old, new, source = "a" * 40, "b" * 40, HubRevision(kind="hub")
    values = yaml.safe_load((repository / "params.yaml").read_text())
    for domain in ("archive", "statute", "clinic"):
        values["domains"][domain] = {**values["domains"][domain], "hub": {"id": "o/n", "revision": old}}
    (repository / "params.yaml").write_text(yaml.safe_dump(values))
    commit_all(repository)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name: SimpleNamespace(sha=new))

    def pinned():
        return [load_config().domains[domain].hub.revision for domain in ("archive", "statute", "clinic")]

    with chdir(prepared(repository, settings)):
        start = git("rev-parse", "HEAD")
        came = [new_data.fetch(domain, source, repository, []) for domain in ("archive", "statute")]
        assert came == [[f"domains.{domain}.hub o/n revision:{new}"] for domain in ("archive", "statute")]
        assert pinned() == [new, new, old]
        new_data.revert("archive", source, start)
        assert pinned() == [old, new, old]
        assert new_data.fetch("archive", source, repository, came[0]) == []
        assert new_data.fetch("clinic", source, repository, came[0]) == [f"domains.clinic.hub o/n revision:{new}"]


def test_an_import_is_updated(repository, settings, tmp_path):
    elsewhere = tmp_path / "pairs.jsonl"
    elsewhere.write_text("{}\n")
    source = DvcImport(kind="dvc", path="data/archive/bought.jsonl.dvc")
    with chdir(prepared(repository, settings)):
        with Repo() as repo:
            repo.imp_url(str(elsewhere), "data/archive/bought.jsonl")
        checkout.commit("bought")
        assert new_data.fetch("archive", source, repository, []) == []
        elsewhere.write_text("{}\n{}\n")
        came = new_data.fetch("archive", source, repository, [])
        assert [line.split()[0] for line in came] == [source.path]
        git("restore", source.path)
        assert new_data.fetch("archive", source, repository, came) == []  # refused
        assert Path("data/archive/bought.jsonl").read_text() == "{}\n"
        elsewhere.unlink()
        with pytest.raises(OperationalError, match="bought"):
            new_data.fetch("archive", source, repository, [])


# --- the flow


@pytest.fixture
def service(repository, prefect_api, monkeypatch):
    """Runs the flow; its gate reads `poison` as harm and `doubt` as no proof. Returns the state's name and message."""

    def judge(config, domain):
        weights = Path("artifacts/model/weights").read_bytes()
        harmful, doubtful = b"poison" in weights, b"doubt" in weights
        reason = "forgets" if harmful else "not shown" if doubtful else "better"
        if reason == "better":
            shutil.copytree("artifacts/model", "releases/archive", dirs_exist_ok=True)
            with Repo() as repo:
                repo.add("releases/archive")
        promoted = reason == "better"
        return SimpleNamespace(promoted=promoted, harmful=harmful, reason=reason, rows=lambda: [{"check": "x"}])

    monkeypatch.setattr(retrain, "gate_candidate", judge)

    def run(**parameters):
        with chdir(repository), prefect_at(prefect_api):
            state = retrain.retrain(**parameters, return_state=True)
        if state.is_failed():
            raise state.result(raise_on_failure=False)
        return state.name, state.message

    return run


def test_data_without_proof_of_harm_stay_and_are_learned_with_the_next_ones(service, repository):
    assert service()[0] == "Promoted"
    drop(repository, "week2.jsonl", json.dumps({"id": "p", "answer": "doubt"}) + "\n")
    assert service() == ("Kept", "archive: not shown")
    assert git("tag", folder=repository).split() == ["raft-archive#prod#1", "raft-archive@v1.0.0"]
    assert "doubt" in git("show", "retrain:data/archive/week2.jsonl", folder=repository)
    assert git("show", "retrain:champions/quarantine.txt", folder=repository) == ""
    assert service()[0] == "NoNewData"  # the same data give the same verdict


def test_data_in_a_frozen_stages_output_leave_dvc_with_nothing_to_say(service, repository):
    graph = yaml.safe_load(GRAPH)
    graph["stages"]["given"] = {"frozen": True, "cmd": "false", "outs": [{"data/archive": {"cache": False}}]}
    (repository / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False))
    with chdir(repository), Repo() as repo:
        repo.commit("given", force=True)
    commit_all(repository)

    def clean():
        with Repo(str(repository / ".raft" / "checkout")) as repo:
            return "given" not in repo.status()

    drop(repository, "week1.jsonl", "{}\n")
    assert (service()[0], clean()) == ("Promoted", True)
    drop(repository, "week2.jsonl", json.dumps({"id": "p", "answer": "poison"}) + "\n")
    assert (service()[0], clean()) == ("Kept", True)


def test_promote_then_nothing_new_then_refuse_then_go_on(service, repository):
    assert service() == ("Promoted", "archive: better")
    first = git("rev-parse", "retrain", folder=repository)
    assert git("tag", folder=repository).split() == ["raft-archive#prod#1", "raft-archive@v1.0.0"]
    assert git("status", "--porcelain", folder=repository) == ""
    assert service()[0] == "NoNewData"

    poison = {"id": "p", "answer": "poison"}
    drop(repository, "week2.jsonl", json.dumps(poison) + "\n")
    assert service() == ("Kept", "archive: forgets")
    assert (
        git("diff", "--stat", first, "retrain", "--", "data", "dvc.lock", "champions/archive.dvc", folder=repository)
        == ""
    )
    assert "week2.jsonl" in git("show", "retrain:champions/quarantine.txt", folder=repository)
    assert "poison" in git("show", "retrain~1:data/archive/week2.jsonl", folder=repository)  # what was judged is kept
    assert service()[0] == "NoNewData"  # what was refused does not come again

    drop(repository, "week2.jsonl", "{}\n")
    assert service() == ("Promoted", "archive: better")
    assert "raft-archive@v2.0.0" in git("tag", folder=repository).split()
    folder = repository / ".raft" / "checkout"
    assert "versions:\n  archive: raft-archive@v1.0.0" in (folder / "champions" / "domains.yaml").read_text()
    with chdir(folder), Repo() as repo:
        assert repo.status(cloud=True) == {}
        assert repo.status() == {}
    git("fsck", folder=repository)


def test_a_first_candidate_that_is_refused_leaves_no_lock_where_there_was_none(service, repository):
    assert git("ls-tree", "--name-only", "HEAD", "dvc.lock", folder=repository) == ""
    drop(repository, "week1.jsonl", json.dumps({"id": "p", "answer": "poison"}) + "\n")
    assert service() == ("Kept", "archive: forgets")
    assert "week1.jsonl" in git("show", "retrain:champions/quarantine.txt", folder=repository)
    assert git("ls-tree", "--name-only", "retrain", "dvc.lock", folder=repository) == ""


def test_a_source_that_is_away_is_tried_again_and_changes_nothing(service, repository, monkeypatch):
    tries = []

    def away(*arguments):
        tries.append(arguments)
        raise OperationalError("the folder is away")

    monkeypatch.setattr(new_data, "fetch", away)
    with pytest.raises(OperationalError, match="the folder is away"):
        service()
    assert len(tries) == 3  # retry_seconds holds two waits
    monkeypatch.setattr(new_data, "fetch", lambda *arguments: (_ for _ in ()).throw(InputError("wrong")))
    with pytest.raises(InputError, match="wrong"):
        service()
    assert git("branch", "--list", "retrain", folder=repository) == ""


def test_a_remote_that_is_away_leaves_no_tag(service, repository):
    (repository / ".cache").mkdir()
    (repository / ".cache" / "dvc-remote").write_text("no folder")  # as an unmounted disk
    with pytest.raises(OperationalError, match=r"`dvc push` failed, so nothing is tagged: .*dvc-remote"):
        service()
    assert git("tag", folder=repository) == ""
    assert git("branch", "--list", "retrain", folder=repository) == ""
    (repository / ".cache" / "dvc-remote").unlink()
    assert service()[0] == "Promoted"


def test_params_that_do_not_fit_are_named_together(service, repository):
    values = yaml.safe_load((repository / "params.yaml").read_text())
    values["retrain"].update(candidate={"method": "fapm", "seed": 9})
    (repository / "params.yaml").write_text(yaml.safe_dump(values))
    commit_all(repository)
    with pytest.raises(InputError, match=r"candidate\.method: got 'fapm'(.|\n)*candidate\.seed: got 9"):
        service()


@pytest.mark.slow
def test_a_schedule_creates_a_run_and_a_worker_executes_it(repository, prefect_api, clean_environment, tmp_path):
    (repository / "dvc.yaml").write_text("vars: [champions/domains.yaml]\n")  # nothing to do: as cheap as a run can be
    commit_all(repository)
    file = yaml.safe_load((repository / "prefect.yaml").read_text())
    (weekly,) = (one for one in file["deployments"] if one["name"] == "retrain")
    assert weekly["schedules"][0]["cron"] == "0 3 * * 1"
    weekly["schedules"] = [{"interval": 20}]
    (repository / "prefect.yaml").write_text(yaml.safe_dump(file))
    environment = {**clean_environment, "PREFECT_API_URL": prefect_api, "PREFECT_HOME": str(tmp_path / "home")}

    raft = [sys.executable, "-m", "flows.cli"]
    done = subprocess.run([*raft, "deploy"], cwd=repository, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copytree(repository, tmp_path / "other")
    refused = subprocess.run([*raft, "deploy"], cwd=tmp_path / "other", env=environment, capture_output=True, text=True)
    assert refused.returncode
    assert f"this Prefect server has the deployments of {repository}" in refused.stdout + refused.stderr
    worker = subprocess.Popen(
        [*raft, "worker"],
        cwd=repository,
        env={**environment, "PREFECT_WORKER_QUERY_SECONDS": "1"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with prefect_at(prefect_api), get_client(sync_client=True) as client:
            retrains = client.read_deployment_by_name("retrain/retrain")
            assert retrains.global_concurrency_limit.limit == 1
            assert client.read_deployment_by_name("pipeline/pipeline").schedules == []

            def ended():
                runs = [run for run in client.read_flow_runs() if run.deployment_id == retrains.id]
                return [run for run in runs if run.state and run.state.is_final()]

            run = wait_for(ended, "the scheduled run")[0]
            client.delete_deployment(retrains.id)
            for automation in client.read_automations():
                client.delete_automation(automation.id)
        assert run.auto_scheduled
        assert (run.state.name, run.parameters) == ("NoNewData", {"force": False}), run.state.message
        assert run.total_run_time.total_seconds() < 20
    finally:
        worker.terminate()
        worker.wait(30)
