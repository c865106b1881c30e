"""`raft doctor`: ten faults planted at once are named at once; a sound project has none."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from itertools import product
from math import prod
from pathlib import Path

import httpx
import pytest
import yaml
from endpoint_server import running
from typer.testing import CliRunner

from flows import doctor
from flows.cli import app
from flows.doctor import check_before_run, check_prefect, find_faults
from flows.init import Source, init
from raft_tasks import doctor as checks
from raft_tasks.config import Lora, Method, load_config
from raft_tasks.doctor import disk_of_run, weight_shapes
from raft_tasks.errors import InputError

Usage = namedtuple("Usage", "total used free")
HEAVY = {"torch", "transformers", "lm_eval", "datasets", "prefect", "dvc"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What `raft init --preset pocket` makes of a small file."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "pairs.csv").write_text("prompt,completion\n" + "".join(f"What is {n}?,{n}.\n" for n in range(30)))
    (folder / "project").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for role, value in product(("AUTHOR", "COMMITTER"), ("NAME", "EMAIL")):
            patch.setenv(f"GIT_{role}_{value}", "new@example.org")
        patch.chdir(folder / "project")
        list(init("pocket", "mine", Source(folder / "pairs.csv", None, None), None))
    return folder / "project"


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    """A copy of it; the working folder. A home and no server, so that the machine's own faults do not count."""
    folder = tmp_path / "mein Ölfeld"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(doctor, "PREFECT_PORT", 9)
    (tmp_path / ".gitconfig").write_text("[user]\nname = new\nemail = new@example.org\n")
    return folder


def change(**sections):
    """Merge values into the sections of params.yaml, one level deep."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    for section, values in sections.items():
        params.setdefault(section, {}).update(values)
    Path("params.yaml").write_text(yaml.safe_dump(params))


def test_a_new_project_has_no_fault(project):
    assert [str(fault) for fault in find_faults()] == []
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0
    check_before_run(load_config())


def test_ten_faults_are_named_at_once(project, monkeypatch):
    Path("data/mine/pairs.csv").write_text("prompt,reply\nWhat is 1?,1.\n")  # 1: a column is missing
    mirror = Path("data/benchmarks/arc/ARC-Easy")
    mirror.mkdir(parents=True)
    (mirror / "train.jsonl").write_text("{}\n")
    change(
        train={"epoch": 3},  # 2: a wrong key
        benchmark={
            "tasks": ["arc_easy", "ifeval"],  # 3, 4: a split that is read is missing, and IFEval's punkt_tab
            "data": {"allenai/ai2_arc": {"revision": None, "mirror": "data/benchmarks/arc"}},
        },
        models={
            "base": {"path": "models/pocket-base", "dtype": "float64", "system": "Be brief."},  # 9: a wrong dtype
            "writer": {"base_url": "http://127.0.0.1:9/v1", "model": "x"},  # 5: an endpoint that is down
            "judge": {"path": "owner/name"},  # 10: an unpinned hub id
        },
    )
    Path("models/pocket-base/chat_template.jinja").write_text(  # 6: no system turn
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 1000))  # 7: the disk is full
    monkeypatch.setattr(checks, "nltk_folders", list)
    (project.parent / ".gitconfig").unlink()  # 8: git knows nobody
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for role, value in product(("AUTHOR", "COMMITTER"), ("NAME", "EMAIL")):
        monkeypatch.delenv(f"GIT_{role}_{value}", raising=False)
    began = time.monotonic()
    faults = [str(fault) for fault in find_faults()]
    assert time.monotonic() - began < 20
    for words in (
        "no column 'completion'",
        "train.epoch: unknown key; did you mean epochs?",
        "'arc_easy' reads the splits ['test']",
        "punkt_tab",
        "models.writer: no answer from http://127.0.0.1:9/v1",
        "no system role",
        "disk: 0.00 GB free",
        "git: no identity",
        "models.base.dtype: Input should be 'float32' or 'bfloat16', got 'float64'",
        "models.judge.revision: None, expected a commit of owner/name, 40 digits",
    ):
        assert len([fault for fault in faults if words in fault]) == 1, (words, faults)
    assert len(faults) == 10
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 1
    assert "10. " in shown.output


def test_no_check_imports_what_takes_seconds(project):
    code = "import sys; from flows.doctor import find_faults; find_faults(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not HEAVY & set(done.stdout.split())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "got no rows"),
        ("prompt,completion\n", "no rows"),
        ("prompt,completion\nWhat?,\n", "no value for ['answer'] in 1 rows"),
    ],
)
def test_files_without_pairs_are_named(project, content, words):
    Path("data/mine/pairs.csv").write_text(content)
    faults = [str(fault) for fault in checks.check_rows(load_config())]
    assert len(faults) == 1
    assert words in faults[0] or "no rows" in faults[0]


def test_a_method_that_injects_needs_documents(project):
    change(run={"methods": ["sft", "raft_injected"]})
    (fault,) = checks.check_documents(load_config())
    assert "methods.raft_injected.injection: documents/mine holds no documents" in str(fault)
    assert "take raft_injected out of run.methods" in str(fault)
    Path("documents/mine").mkdir(parents=True)
    Path("documents/mine/a.md").write_text("text")
    assert not [*checks.check_documents(load_config())]


def test_a_domain_without_files_is_named(project):
    Path("data/mine/pairs.csv").unlink()
    faults = [str(fault) for fault in find_faults()]
    assert len(faults) == 1
    assert "put question-answer pairs into data/mine/" in faults[0]


def test_the_rows_of_a_domain_that_has_documents_too_are_checked(project):
    change(run={"documents": ["mine"]})
    Path("documents/mine").mkdir(parents=True)
    Path("data/mine/questions.jsonl").write_text("")  # of a run whose checkers approved nothing
    assert list(checks.check_rows(load_config())) == []
    Path("data/mine/pairs.csv").write_text("prompt,reply\nWhat is 1?,1.\n")
    assert ["no column 'completion'" in str(fault) for fault in checks.check_rows(load_config())] == [True]
    Path("data/mine/pairs.csv").unlink()
    assert list(checks.check_rows(load_config())) == []


@pytest.mark.parametrize(
    ("domain", "faults"),
    [
        ({"files": ["data/mine/pairs.csv"]}, 1),
        ({"hub": {"id": "owner/name", "revision": "0" * 40}}, 1),
        ({"files": ["data/mine/{pairs.csv,questions.jsonl}"]}, 0),
        ({"files": ["data/mine/**/*.{csv,jsonl}"]}, 0),
    ],
)
def test_pairs_of_documents_that_nothing_would_read_are_a_fault(project, domain, faults):
    Path("documents/mine").mkdir(parents=True)
    columns = load_config().domains["mine"].model_dump()["columns"]
    change(run={"documents": ["mine"]}, domains={"mine": {"columns": columns, **domain}})
    named = [str(fault) for fault in checks.check_rows(load_config())]
    assert ["a pattern of data/mine/questions.jsonl too" in fault for fault in named] == [True] * faults


def cut(file):
    file.write_bytes(file.read_bytes()[:1000])


def edit(folder, name="config.json", **values):
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "without config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights in 'models/pocket-base'"),
        (
            lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
            "is a Git-LFS pointer, expected the file itself\n    -> `git lfs pull`",
        ),
        (lambda folder: cut(folder / "model.safetensors"), "model.safetensors is cut or damaged ("),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer files in"),
        (lambda folder: cut(folder / "tokenizer.json"), "tokenizer.json is no JSON object; was it cut?"),
        (lambda folder: (folder / "tokenizer_config.json").write_text('{"a'), "tokenizer_config.json is no JSON obj"),
        (lambda folder: edit(folder, text_config={"quantization_config": {"quant_method": "fp8"}}), "weights (fp8)"),
        (lambda folder: edit(folder, quantization_config={"quant_method": "gptq"}), "quantised weights (gptq)"),
        (
            lambda folder: edit(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
            "quantised weights (bitsandbytes), expected weights in float32 or bfloat16\n    -> use the model that",
        ),
        (lambda folder: edit(folder, pad_token_id=9999), "pad_token_id 9999 beyond the 1346 tokens"),
        (lambda folder: edit(folder, tie_word_embeddings=False), "no lm_head.weight"),
        (
            lambda folder: edit(
                folder, "tokenizer_config.json", added_tokens_decoder={"9999": {"content": "<|pad2|>"}}
            ),
            "1 tokens beyond the embedding's 1346 rows, such as ['<|pad2|>']",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'
            ),
            "1 shards are not there: ['model-00001-of-00002.safetensors']",
        ),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template"),
        (lambda folder: (folder / "chat_template.jinja").write_text("x"), "does not show the user's turn"),
        (shutil.rmtree, "which does not exist"),
    ],
)
def test_a_model_that_cannot_be_used_is_named(project, spoil, words):
    spoil(Path("models/pocket-base"))
    faults = [str(fault) for fault in find_faults()]
    assert len(faults) == 1, faults
    assert words in faults[0]


def test_what_an_endpoint_refuses_is_named(project):
    with running(faults={"400": 1.0}) as base_url:
        change(models={"writer": {"base_url": base_url, "model": "m", "sampling_fields": ["top_p"]}})
        [fault] = map(str, checks.check_endpoints(load_config()))
    assert "/chat/completions answers 400 X: " in fault
    assert "as told" in fault
    asked = []
    reply = lambda **request: asked.append(request["json"]) or httpx.Response(200)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx, "post", lambda address, **request: reply(**request))
        assert checks.check_endpoints(load_config()) == []
    assert asked[0].keys() == {"model", "messages", "max_tokens", "top_p", "seed"}


def test_gpus_memory_and_names(project, monkeypatch):
    monkeypatch.setattr(doctor, "gpu_bytes", lambda: [10**6])
    change(resources={"gpus": 2}, run={"methods": ["sft", "raft_lora"], "judged": ["theirs"]})
    faults = [str(fault) for fault in find_faults()]
    assert any("resources.gpus: 1 GPUs on this machine, expected 2" in fault for fault in faults)
    assert any("methods.sft: 0.00 GB of memory, expected at least 0.03 GB" in fault for fault in faults)
    assert any("run.judged: got 'theirs'" in fault for fault in faults)  # and the other checks went on


def test_a_run_stops_before_it_starts(project):
    Path("data/mine/pairs.csv").write_text("prompt,reply\nWhat is 1?,1.\n")
    with pytest.raises(InputError, match=r"(?s)1 fault\(s\), nothing was run:\n  1. .*no column 'completion'"):
        check_before_run(load_config())


def test_a_zip_download_and_a_conflict_in_dvc_lock_are_named(project):
    shutil.rmtree(".git")
    Path("dvc.lock").write_text("schema: '2.0'\n<<<<<<< HEAD\nstages: {}\n=======\nstages: {}\n>>>>>>> other\n")
    with pytest.raises(
        InputError, match=r"(?s)no repository .*ZIP.*git init.*dvc.lock:2: .*git checkout --ours dvc.lock"
    ):
        check_before_run(load_config())


@pytest.mark.parametrize(
    "words",
    [["stage", "ingest", "theirs"], ["gate", "theirs"], ["rollback", "theirs"], ["stage", "distill", "mine", "x"]],
)
def test_an_unknown_name_on_the_command_line_is_answered_by_the_known_ones(project, words):
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, InputError)
    kind, name, known = ("method", "x", "'raft'") if words[-1] == "x" else ("domain", "theirs", "['mine']")
    assert f"got the {kind} {name!r}, expected one of params.yaml: " in str(error)
    assert known in str(error)


def test_without_params_the_rest_is_checked(project):
    Path("params.yaml").unlink()
    Path(".dvc/config").write_text("")
    faults = [str(fault) for fault in find_faults()]
    assert len(faults) == 2
    assert "params.yaml is not there" in faults[0]
    assert "default remote None without url" in faults[1]


def test_a_server_that_is_not_prefect_s_is_named(project, monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert "does not answer as Prefect" in str(next(check_prefect()))
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.setattr(doctor, "ask_server", lambda url: "status 404")
    assert "something else than Prefect answers" in str(next(check_prefect()))
    monkeypatch.setattr(doctor, "ask_server", lambda url: "true")
    assert list(check_prefect()) == []


def test_templates_are_rendered_as_transformers_does(project):
    from transformers import AutoTokenizer

    folder = Path("models/pocket-base")
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for add_generation_prompt in (True, False):
        assert checks.TemplateFile(folder).apply_chat_template(
            messages, chat_template=tokenizer.chat_template, tokenize=False, add_generation_prompt=add_generation_prompt
        ) == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)


def test_the_disk_of_a_run_counts_adapters_small():
    """Pocket base in float32, by hand: 4 bytes a weight, twice for DVC's cache; checkpoints have AdamW's moments."""
    root = Path(__file__).parents[2]
    config = load_config(root / "params.yaml")
    shapes = weight_shapes(root / "models/pocket-base")
    parameters = sum(prod(shape) for shape in shapes.values())
    width = {"float32": 4, "bfloat16": 2}[config.base.dtype]

    def disk(*methods):
        run = config.run.model_copy(update={"methods": list(methods), "domains": ["archive"], "seeds": [0, 1]})
        rows = {"sft": Method(), "sft_lora": Method(lora=Lora(rank=16))}
        return disk_of_run(config.model_copy(update={"run": run, "methods": rows}), shapes, lambda *_: True)

    processes = config.resources.processes
    assert disk("sft") == (2, 2 * 2 * width * parameters, processes * 3 * 4 * parameters)
    count, lora, checkpoint = disk("sft_lora")
    saved = sum(a + b for name, (a, b) in ((n, s) for n, s in shapes.items() if len(s) == 2) if "layers" in name)
    assert (count, lora) == (2, 2 * 2 * 4 * 16 * saved)
    assert checkpoint == processes * 3 * 4 * 16 * saved
    assert disk("sft", "sft_lora")[1:] == (disk("sft")[1] + lora, disk("sft")[2])
    assert disk_of_run(config, shapes, lambda *_: False) == (0, 0, 0)


@pytest.mark.parametrize(
    ("says", "expected"),
    [("echo '[N/A]'", "whole"), ("echo 81559", 81559 * 2**20), ("exit 9", None), ("echo No devices were found", None)],
)
def test_the_memory_of_a_gpu(tmp_path, monkeypatch, says, expected):
    """A GPU that shares the machine's memory has no number of its own."""
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{says}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    whole = doctor.psutil.virtual_memory().total
    assert doctor.gpu_bytes() == ([] if expected is None else [whole if expected == "whole" else expected])
