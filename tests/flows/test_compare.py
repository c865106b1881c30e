"""Any models side by side: folders, and what revisions and experiments of a repository hold."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from dvc.repo import Repo

from flows import paths
from flows.cli import app
from flows.compare import parse_models
from raft_tasks.artifacts import read_rows, write_json, write_rows
from raft_tasks.compare import locate_model
from raft_tasks.config import Config, Model
from raft_tasks.errors import InputError
from raft_tasks.file_digests import FileDigests
from raft_tasks.generation.structured import Unusable
from raft_tasks.generation.voting import Vote
from raft_tasks.models import identify
from raft_tasks.schemas import Example, ItemResult, Judged

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "models" / "pocket-base"
FOLDERS = ["artifacts/archive/runs/{}/merged/model", "artifacts/archive/runs/{}/model"]
SETTINGS = Model(path="models/base", revision=None, dtype="float32", system=None)


def compare(*arguments):
    app(["compare", *arguments], standalone_mode=False)


def git(folder, *command):
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *command], cwd=folder, check=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository whose commit holds raft-0, a damaged base, under DVC; experiment clear-mole holds the base there."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("repository")
    git(folder, "init", "-q")
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copytree(paths.BENCHMARK_TASKS, folder / "tasks")
    model = folder / "artifacts" / "archive" / "runs" / "raft-0" / "model"
    shutil.copytree(BASE, model)
    network = AutoModelForCausalLM.from_pretrained(BASE)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for weights in network.parameters():
            weights += weights.std() * torch.randn_like(weights)
    network.save_pretrained(model)
    recall = folder / "tasks" / "pocket_recall" / "items.jsonl"
    lines = recall.read_text().splitlines(keepends=True)[:60]
    recall.write_text("".join(lines[20:]))
    items = [json.loads(line) for line in lines[:20]]
    questions = [
        Example(
            id=f"q{number}", domain="archive", question=item["question"], answer=item["answer"], source=item["source"],
            split="test", expected=[item["value"]], details=[],
        )
        for number, item in enumerate(items)
    ]  # fmt: skip
    write_rows(folder / "artifacts" / "archive" / "examples" / "test.jsonl", questions)
    with Repo.init(str(folder)) as repo:
        repo.add(str(model))
        git(folder, "add", "params.yaml", ".dvc", "artifacts/archive/runs/raft-0/model.dvc")
        git(folder, "commit", "-q", "-m", "raft")
        shutil.copy(BASE / "model.safetensors", model)
        repo.add(str(model))
        repo.experiments.save(name="clear-mole")
        git(folder, "checkout", "-q", "--", "artifacts/archive/runs/raft-0/model.dvc")
    shutil.rmtree(model)  # what is not in the workspace comes from the cache
    return folder


@pytest.fixture
def inside(repository, monkeypatch):
    monkeypatch.chdir(repository)
    monkeypatch.setattr(paths, "BENCHMARK_TASKS", repository / "tasks")
    return repository


def test_a_folder_a_commit_and_an_experiment_are_compared(inside, capsys):
    models = [f"base={BASE}", "raft=git:HEAD:raft-0", "same=git:clear-mole:raft-0"]
    compare(*models, "--domain", "archive", "--tasks", "pocket_recall", "--output", "compared")
    metrics = json.loads((inside / "compared" / "metrics.json").read_text())
    methods = metrics["domains"]["archive"]["methods"]
    right = {}
    for name in ("base", "raft", "same"):
        items = read_rows(inside / "compared" / "items" / "archive" / f"{name}.jsonl", ItemResult)
        right[name] = [item.metrics["acc"] for item in items]
    assert right["same"] == right["base"]
    assert sum(right["raft"]) < sum(right["base"]) / 2
    recall = methods["raft"]["against_base"]["pocket_recall"]
    assert recall["verdict"] == "lower"
    change = sum(right["raft"][20:]) - sum(right["base"][20:])  # after the 20 domain questions
    assert recall["estimate"] == pytest.approx(change / len(right["base"][20:]))
    assert methods["raft"]["degradation"]["pocket_recall"]["p_holm"] < 0.001
    assert methods["same"]["against_base"]["domain_acc"]["estimate"] == 0
    assert metrics["models"]["raft"] == ["git:HEAD:raft-0"]
    page = (inside / "compared" / "report.html").read_text()
    assert "Same shows no clear difference from base in the domain" in page
    assert "git:clear-mole:raft-0" in page
    assert "raft compare base=" in page
    assert "| raft |" in capsys.readouterr().out


def test_general_items_are_asked_once_of_a_model_that_is_the_same_in_every_domain(inside, tmp_path, monkeypatch):
    questions = inside / "artifacts" / "{}" / "examples" / "test.jsonl"
    write_rows(Path(str(questions).format("clinic")), read_rows(Path(str(questions).format("archive")), Example))
    asked = []

    def evaluate(model, suite, progress):
        tasks = suite.settings.tasks
        asked.append((suite.domain, list(tasks)))
        names = [("domain", row.id) for row in suite.rows] + [(task, str(n)) for task in tasks for n in range(20)]
        metrics = {"acc": 1.0, "complete": 0.0}
        return {}, [
            ItemResult(task=task, id=name, source=name, metrics=metrics, prompt="", answer="") for task, name in names
        ]

    monkeypatch.setattr("flows.compare.evaluate", evaluate)
    models = [f"base={BASE}", f"sft={BASE}", f"other={BASE}"]
    compare(*models, "--domain", "archive", "--domain", "clinic", "--tasks", "recall", "--output", str(tmp_path))
    assert asked == [("archive", ["recall"]), ("clinic", [])] * 3
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["domains"]["clinic"]["methods"]["other"]["against_reference"]["recall"]["estimate"] == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count("<table>") == page.count("<caption>") == page.count("</table>")
    assert page.count("<h1>") == 1
    assert not re.search(r"(src|href)=.http", page)


def test_where_a_panel_is_named_it_votes_on_the_answers(inside, tmp_path, monkeypatch):
    document = yaml.safe_load((inside / "params.yaml").read_text())
    document["run"]["judged"] = ["archive"]
    document["judge"]["max_failed"] = 0.2
    monkeypatch.setattr("flows.compare.load_config", lambda: Config.model_validate(document))
    asked = []

    def evaluate(model, suite, progress):
        right = len(asked)  # each model knows more
        asked.append(model.path)
        return {}, [
            ItemResult(
                task=task, id=name, source=name, metrics={"acc": 0.0, "complete": 0.0}, prompt="", question="which?",
                reference="rope", answer="rope" if number < right else "silence" if number == 9 else "wood",
            )
            for task, names in (("domain", [row.id for row in suite.rows]), ("recall", [str(n) for n in range(20)]))
            for number, name in enumerate(names)
        ]  # fmt: skip

    def vote(cases, backends, settings):
        said = {"rope": Vote(reason="so it is", right=True), "wood": Vote(reason="it is not", right=False)}
        return [{"base": said.get(candidate, Unusable("no answer", ""))} for _, _, _, candidate in cases]

    monkeypatch.setattr("flows.compare.evaluate", evaluate)
    monkeypatch.setattr("flows.judge.vote", vote)
    command = [f"base={BASE}", f"sft={BASE}", f"other={BASE}", "--domain", "archive", "--tasks", "recall"]
    with pytest.raises(InputError, match=r"artifacts/models/base.json.*`raft resolve`"):
        compare(*command, "--output", str(tmp_path))
    asked.clear()
    (inside / "models").mkdir()
    (inside / "models" / "pocket-base").symlink_to(BASE)
    with FileDigests(tmp_path / "digests.json") as digests:
        identity = identify("base", Config.model_validate(document).base, digests)
    write_json(inside / "artifacts" / "models" / "base.json", identity)
    compare(*command, "--output", str(tmp_path))
    metrics = json.loads((tmp_path / "metrics.json").read_text())["domains"]["archive"]
    assert metrics["methods"]["other"]["scores"]["domain_judged"]["estimate"] == pytest.approx(2 / 19)  # one undecided
    assert metrics["methods"]["other"]["against_reference"]["domain_judged"]["n_items"] == 19
    assert metrics["methods"]["other"]["scores"]["domain_acc"]["estimate"] == 0
    assert metrics["measures"]["recall"] == [["recall", "acc"]]  # not of judge.tasks
    votes = read_rows(tmp_path / "votes" / "archive.jsonl", Judged)
    assert [sum(row.right is True for row in votes if row.model == name) for name in ("base", "sft", "other")] == [
        0,
        1,
        2,
    ]
    assert "domain, judged" in (tmp_path / "report.html").read_text()


def test_a_model_that_cannot_be_loaded_is_said(inside, monkeypatch):
    def evaluate(*_):
        raise OSError("owner/name is not a valid model identifier")

    monkeypatch.setattr("flows.compare.evaluate", evaluate)
    with pytest.raises(InputError, match=r"base=owner/name cannot be loaded: .* network"):
        compare("base=owner/name", f"other={BASE}", "--domain", "archive")


def test_merged_models_come_first(inside):
    merged = inside / "artifacts" / "archive" / "runs" / "raft-0" / "merged" / "model"
    shutil.copytree(BASE, merged)
    (merged / "note.txt").write_text("merged")
    git(inside, "checkout", "-q", "-b", "recovering")
    git(inside, "add", "-f", str(merged))
    git(inside, "commit", "-q", "-m", "merged")
    try:
        with locate_model("git:recovering:raft-0", FOLDERS, SETTINGS) as model:
            assert (Path(model.path) / "note.txt").exists()
        assert not Path(model.path).exists()
        with locate_model("git:recovering~1:raft-0", FOLDERS, SETTINGS) as model:
            assert not (Path(model.path) / "note.txt").exists()
    finally:
        git(inside, "checkout", "-q", "-")


@pytest.mark.parametrize(
    ("what", "path", "revision"), [("owner/name", "owner/name", None), ("owner/name@v1.2", "owner/name", "v1.2")]
)
def test_hub_ids(what, path, revision):
    with locate_model(what, FOLDERS, SETTINGS) as model:
        assert (model.path, model.revision, model.dtype) == (path, revision, "float32")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nowhere", "'nowhere', expected a folder with a model"),
        ("models/nowhere", "expected a folder"),
        ("artifacts", "without a config.json"),
        ("git:HEAD", "expected git:REVISION:METHOD-SEED"),
        ("git:nosuch:raft-0", "check the revision"),
        ("git:HEAD:sft-0", "has none of artifacts/archive/runs/sft-0/merged/model, artifacts/archive/runs/sft-0"),
    ],
)
def test_what_is_no_model_is_said(inside, what, message):
    with pytest.raises(InputError, match=message), locate_model(what, FOLDERS, SETTINGS):
        pass


def test_a_model_that_was_never_pushed_is_said(inside, tmp_path, monkeypatch):
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(inside), str(clone))
    monkeypatch.chdir(clone)
    with pytest.raises(InputError, match="dvc push"), locate_model("git:HEAD:raft-0", FOLDERS, SETTINGS):
        pass


def test_names():
    assert parse_models(["raft=a", "base=b", "raft=c"]) == {"base": ["b"], "raft": ["a", "c"]}
    for arguments, message in (
        (["base=a"], "one more model"),
        (["a=b", "c=d"], "base=WHAT once"),
        (["base=a", "base=b", "c=d"], "base=WHAT once"),
        (["base=a", "b=c", "b=d", "e=f"], "equally often"),
        (["base"], "NAME=WHAT"),
        (["a-b=c", "base=d"], "letters"),
    ):
        with pytest.raises(InputError, match=message):
            parse_models(arguments)


def test_questions_that_are_not_there_are_said(inside):
    with pytest.raises(InputError, match="dvc repro ingest@statute"):
        compare(f"base={BASE}", f"other={BASE}", "--domain", "statute")
