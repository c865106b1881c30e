"""`raft init`: what it writes, what it refuses, and that the graph is the repository's own."""

import gzip
import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from project_copies import ROOT

from flows.init import Source, graph_text, init, params_text, presets
from flows.pocket import copy_pocket_model
from raft_tasks.artifacts import read_yaml
from raft_tasks.config import Ingest, load_config
from raft_tasks.errors import InputError
from raft_tasks.schemas import Reject
from raft_tasks.sources.conversations import UnusableError
from raft_tasks.sources.examples import examples_of
from raft_tasks.sources.files import find_files, read_file
from raft_tasks.sources.roles import roles_of

ROWS = [{"prompt": f"What is {number}?", "completion": f"It is {number}."} for number in range(20)]


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty working folder, its name as unusual as a user's, beside a file of pairs."""
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "new")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "new@example.org")
    folder = tmp_path / "mein Ölfeld"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def git(*arguments):
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def test_a_project_is_made_and_committed(empty):
    lines = list(init("pocket", "mine", Source(Path("../pairs.jsonl"), None, None), None))
    assert any("took `prompt` as the question, `completion` as the answer" in line for line in lines)
    config = read_yaml(Path("params.yaml"))
    assert config["domains"] == {"mine": {"columns": {"question": "prompt", "answer": "completion"}}}
    assert config["run"]["domains"] == ["mine"]
    assert Path("data/mine/pairs.jsonl").read_text() == Path("../pairs.jsonl").read_text()
    assert sorted(os.listdir("models/pocket-base")) == sorted(os.listdir(ROOT / "models/pocket-base"))
    assert Path("champions/quarantine.txt").read_text() == ""  # `raft retrain` reads it
    assert config["retrain"] == {"fetch": {"mine": {"path": "inbox/mine"}}}
    assert git("ls-files", "inbox") == "inbox/mine/.gitignore\n"
    assert len(Path("README.md").read_text().splitlines()) <= 10
    assert git("status", "--porcelain") == ""
    assert (Path(".dvc/config").read_text()) == (ROOT / ".dvc/config").read_text()


def test_the_graph_is_the_repository_s_without_its_released_models():
    ours = read_yaml(ROOT / "dvc.yaml")
    del ours["artifacts"]
    assert yaml.safe_load(graph_text((ROOT / "dvc.yaml").read_text())) == ours
    assert (ROOT / "flows/project/graph.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()


@pytest.mark.parametrize("preset", presets())
def test_presets_are_short_and_have_an_anchored_row(preset):
    text = params_text(preset, "mine", None, None)
    assert len(text.splitlines()) <= 30
    assert any("anchored" in name for name in yaml.safe_load(text)["run"]["methods"])


def test_all_presets_are_there():
    assert presets() == ["llama-3.2-3b", "phi-4-mini", "pocket", "qwen3", "smollm2-135m", "smollm3-3b"]


def test_nothing_is_overwritten(empty):
    Path("params.yaml").write_text("mine\n")
    Path("dvc.yaml").write_text("mine\n")
    with pytest.raises(InputError, match=r"has dvc.yaml, params.yaml already"):
        list(init("pocket", "mine", None, None))
    assert sorted(os.listdir()) == ["dvc.yaml", "params.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("huge", "mine", None, None), "--preset: got 'huge', expected one of llama"),
        (("pocket", "My Domain", None, None), "--domain: got 'My Domain'"),
        (("pocket", "mine", Source(Path("none.csv"), None, None), None), "--data: got 'none.csv'"),
        (("pocket", "mine", Source(Path("../pairs.jsonl"), "ask", None), None), "but not 'ask'"),
    ],
)
def test_wrong_arguments_write_nothing(empty, arguments, message):
    with pytest.raises(InputError, match=message):
        list(init(*arguments))
    assert os.listdir() == []


def test_a_settings_file_with_faults_writes_nothing(empty):
    settings = Path("../own.yaml")
    text = params_text("pocket", "mine", None, None)
    settings.write_text(text.replace("rows: jsonl", "row: jsonl"))
    with pytest.raises(InputError, match=r"--preset \.\./own\.yaml has 2 problem\(s\)(?s:.*)run\.rows: Field required"):
        list(init(str(settings), "mine", None, None))
    settings.write_text(yaml.safe_dump(yaml.safe_load(text)))
    with pytest.raises(InputError, match=r"--model: \.\./own\.yaml has no line `  base: \{path"):
        list(init(str(settings), "mine", None, "owner/name"))
    assert os.listdir() == []


def test_without_identity_the_project_is_made_and_the_commit_explained(empty, monkeypatch):
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.delenv(f"GIT_{name}_NAME")
        monkeypatch.delenv(f"GIT_{name}_EMAIL")
    monkeypatch.setenv("HOME", str(empty))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("EMAIL", "")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.useConfigOnly")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "true")
    lines = list(init("pocket", "mine", None, None))
    assert any(line.startswith("NOT committed: ") and "git config --global user.name" in line for line in lines)
    assert Path("params.yaml").exists()


def test_a_folder_within_another_repository_is_refused(empty):
    git("init", "--quiet")
    inner = empty / "inner"
    inner.mkdir()
    os.chdir(inner)
    with pytest.raises(InputError, match="lies within the git repository"):
        list(init("pocket", "mine", None, None))
    assert os.listdir() == []


def test_a_model_of_one_s_own_takes_the_preset_s_place(empty):
    folder = empty.parent / "model"
    folder.mkdir()
    base = yaml.safe_load(params_text("pocket", "mine", None, str(folder)))["models"]["base"]
    assert base == {"path": str(folder), "dtype": "float32"}
    base = yaml.safe_load(params_text("smollm3-3b", "mine", None, "owner/name@" + "0" * 40))["models"]["base"]
    assert base == {"path": "owner/name", "revision": "0" * 40}
    list(init("pocket", "mine", None, str(folder)))
    assert not Path("models").exists()


def test_a_json_list_becomes_json_lines(empty):
    Path("../rows.json").write_text(json.dumps(ROWS))
    list(init("pocket", "mine", Source(Path("../rows.json"), None, None), None))
    assert [json.loads(line) for line in Path("data/mine/rows.jsonl").read_text().splitlines()] == ROWS


def test_what_is_no_row_in_a_json_list_is_rejected_with_its_line(empty):
    entries = [
        '{"prompt": "?",\n "completion": "!"}', '["?", "!"]', '"?"', '{"prompt": "?", "completion": "!", "prompt": ""}',
        '{"prompt": "\\ud800", "completion": "!"}', '{"prompt": "ü?", "completion": "10 \\u20ac"}',
    ]  # fmt: skip
    Path("../rows.JSON.gz").write_bytes(gzip.compress(f"[{' , '.join(entries)}\n]".encode()))
    list(init("pocket", "mine", Source(Path("../rows.JSON.gz"), None, None), None))
    domain = load_config(Path("params.yaml")).domains["mine"]
    [path] = find_files(domain.files, Path())
    assert path == Path("data/mine/rows.jsonl")
    rows = list(read_file(path, roles_of(domain)))
    assert [row.reason if isinstance(row, Reject) else row.values["answer"] for row in rows] == [
        "!", "got a JSON list, expected an object", "got a JSON str, expected an object",
        "broken JSON: the key 'prompt' stands twice", "!", "10 €",
    ]  # fmt: skip
    with pytest.raises(UnusableError, match="question is not valid Unicode"):
        list(examples_of(rows[4], "mine", domain, Ingest()))


@pytest.mark.parametrize("name", ["UP.CSV", "rows.JSONL", "rows.JSON", "rows.json", ".rows.Csv", "a.b.jsonl"])
def test_ingest_reads_the_copy_whatever_the_case_of_its_ending(empty, name):
    ending = Path(name).suffix.lower()
    content = {".csv": "prompt,completion\n?,!\n", ".json": json.dumps(ROWS)}.get(ending, json.dumps(ROWS[0]))
    (empty.parent / name).write_text(content)
    list(init("pocket", "mine", Source(empty.parent / name, None, None), None))
    domain = load_config(Path("params.yaml")).domains["mine"]
    [path] = find_files(domain.files, Path())
    assert all(set(row.values) == {"question", "answer"} for row in read_file(path, roles_of(domain)))


def test_a_fault_far_down_in_the_file_writes_nothing(empty):
    lines = ["prompt,completion", *["?,!"] * 3000, '"?,!', ""]
    Path("../pairs.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"pairs\.csv:3002: broken CSV"):
        list(init("pocket", "mine", Source(Path("../pairs.csv"), None, None), None))
    settings = Path("../own.yaml")
    own = "mine: {files: [data/mine/a.csv], columns: {question: prompt, answer: completion}}"
    settings.write_text(params_text("pocket", "mine", None, None).replace("mine: {}", own))
    with pytest.raises(InputError, match=r"data/mine/pairs\.jsonl is read by none of domains\.mine\.files: .*a\.csv"):
        list(init(str(settings), "mine", Source(Path("../pairs.jsonl"), None, None), None))
    assert os.listdir() == []


@pytest.mark.parametrize("preset", presets())
def test_presets_are_valid_configurations(preset, tmp_path):
    (tmp_path / "params.yaml").write_text(params_text(preset, "mine", None, None))
    config = load_config(tmp_path / "params.yaml")
    assert config.retrain.candidate.method in config.run.methods
    assert not {*config.benchmark.tasks} & {*config.benchmark.validation_tasks}


def test_the_embedded_model_knows_the_words_of_the_rows_and_is_otherwise_the_same(empty):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [{"prompt": "Wie heißt box 7?", "completion": "größer (7)"}]
    words = copy_pocket_model(Path("model"), rows)
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in ("model", ROOT / "models/pocket-base"))
    assert len(ours) == len(theirs) + words
    for text in rows[0].values():
        assert ours.unk_token_id not in ours(text)["input_ids"]
        assert ours.decode(ours(text)["input_ids"]) == text
    model, base = (AutoModelForCausalLM.from_pretrained(folder) for folder in ("model", ROOT / "models/pocket-base"))
    inputs = theirs("What is the reactor of Figin?", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits[..., : len(theirs)], base(**inputs).logits)
    assert copy_pocket_model(Path("again"), []) == 0


def test_the_columns_of_a_known_domain_are_told(empty):
    row = {"id": "1", "question": "?", "answer": "1234.56", "explanation": "!", "split": "train"}
    Path("../codes.jsonl").write_text(json.dumps(row) + "\n")
    lines = list(init("pocket", "hs_codes", Source(Path("../codes.jsonl"), None, None), None))
    told = next(line for line in lines if line.startswith("data/hs_codes/codes.jsonl: "))
    assert "`explanation` as explanation" in told
    assert "`split` as split" in told
    assert "not used" not in told


@pytest.mark.parametrize(
    ("settings", "names", "message"),
    [
        ("{}", (None, None), r"took `prompt` as the question, .*; but the domain of --preset .* takes `question` as"),
        ("{columns: {question: prompt, answer: completion}}", ("completion", "prompt"), "takes `prompt` as question"),
        ("{columns: {question: '{{ prompt }}{{ id }}', answer: completion}}", (None, None), "`id` as question"),
        ("{chat: {}}", (None, None), "takes `messages` as chat"),
        ("{columns: {question: prompt, answer: completion, source: prompt}}", (None, None), None),
    ],
)
def test_a_preset_s_own_domain_has_the_columns_of_the_file(empty, settings, names, message):
    preset = Path("../own.yaml")
    preset.write_text(params_text("pocket", "mine", None, None).replace("mine: {}", f"mine: {settings}"))
    source = Source(Path("../pairs.jsonl"), *names)
    if message is None:
        list(init(str(preset), "mine", source, None))
        return
    with pytest.raises(InputError, match=message):
        list(init(str(preset), "mine", source, None))
    assert os.listdir() == []
