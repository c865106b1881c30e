"""The gate on artifacts like a pipeline's, with a real model: verdict, recovery of a near miss, release."""

import hashlib
import json
import shutil
import subprocess
import threading
import time
from contextvars import copy_context
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from dvc.repo import Repo
from prefect import flow, get_client
from prefect.flow_engine import run_flow
from prefect.flow_runs import resume_flow_run
from prefect.states import Pending
from project_copies import ROOT
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from flows import paths
from flows.cli import app
from flows.gate import gate_candidate, judge_for_ci, request_approval
from flows.server import prefect_at
from raft_tasks.artifacts import write_rows
from raft_tasks.chat import save_tokenizer
from raft_tasks.config import Lora, load_config
from raft_tasks.errors import InputError, OperationalError
from raft_tasks.evaluation.gate import Check, Verdict
from raft_tasks.evaluation.harness import DOMAIN_TASK, SEED
from raft_tasks.model_loading import load_model
from raft_tasks.schemas import Example, Fused, ItemResult, Judged
from raft_tasks.training.adapters import save_adapter, with_adapter

GENERAL = "pocket_rewriting"
DOMAIN = "archive"


def items(domain, general):
    """Outcomes of 120 items each, the first ones right."""
    return [
        ItemResult(
            task=task,
            id=f"{task}-{number}",
            source=f"{task}-{number}",
            metrics={"acc": float(number < right)},
            prompt="?",
            answer="It is rope.",
        )
        for task, right in ((DOMAIN_TASK, domain), (GENERAL, general))
        for number in range(120)
    ]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with what the gate reads: params, test rows, fused rows, a trained model, outcomes."""
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    document["benchmark"]["tasks"] = [GENERAL]
    document["retrain"]["candidate"] = {"method": "raft", "seed": 0}
    recover = {"coefficients": [0.5], "tasks": ["pocket_rewriting_validation"]}
    document["gate"] = {
        "latency_items": 8, "near_miss": 0.3, "max_latency_ratio": 100.0, "recover": recover, "noise": None,
    }  # fmt: skip
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "raft_tasks").symlink_to(ROOT / "raft_tasks")
    monkeypatch.chdir(tmp_path)
    rows = [json.loads(line) for line in (ROOT / "data/archive/pairs.jsonl").read_text().splitlines()]
    examples = [Example(**row, domain=DOMAIN) for row in rows]
    for split in ("test", "validation"):
        write_rows(paths.split(DOMAIN, split, "jsonl"), [row for row in examples if row.split == split][:16])
    made = {"rewritten": "", "similarity": 0.0, "passed": False, "lost": [], "fallback": "empty", "score": None}
    fused = [
        Fused(**dict(row), chosen=row.answer, fused=row.answer, candidates=[], **made)
        for row in examples
        if row.split == "train"
    ]
    write_rows(paths.fused(DOMAIN, "jsonl"), fused)
    shutil.copytree(ROOT / "models/pocket-base", paths.run(DOMAIN, "raft", 0) / "model")
    write_rows(paths.benchmark(DOMAIN, None, None) / "items.jsonl", items(0, 120))
    for command in (["init", "-q"], ["add", "params.yaml"], ["commit", "-q", "-m", "start"]):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *command], check=True)
    Repo.init().close()
    return tmp_path


@pytest.fixture
def judged(project, prefect_api):
    """Judges the candidate with these outcomes, within a flow as retrain does."""

    def run(domain, general):
        write_rows(paths.benchmark(DOMAIN, "raft", 0) / "items.jsonl", items(domain, general))
        with prefect_at(prefect_api):
            return flow(gate_candidate, persist_result=False, validate_parameters=False)(load_config(), DOMAIN)

    return run


@pytest.fixture
def adapter(project):
    """The candidate is an adapter."""
    trained = paths.run(DOMAIN, "raft", 0) / "model"
    shutil.rmtree(trained)
    base = load_config().base
    network, tokenizer = load_model(base, torch.float32)
    student = with_adapter(network, Lora(rank=2, alpha=4, dropout=0.0), None)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    save_adapter(student, base, trained)
    network.generation_config.save_pretrained(trained)
    save_tokenizer(tokenizer, base.system, trained)
    (trained / "README.md").write_text("# A card\n")
    return trained


def weights_of(folder):
    return load_model(load_config().base.model_copy(update={"path": str(folder)}), torch.float32)[0].state_dict()


def test_an_adapter_is_released_merged_and_its_evidence_names_both(judged, project, adapter):
    assert judged(domain=110, general=120).promoted
    whole = project / "releases/archive"
    released = AutoModelForCausalLM.from_pretrained(whole).state_dict()
    assert all(torch.equal(released[name], value) for name, value in weights_of(adapter).items())
    assert not (whole / "adapter_config.json").exists()
    card = (whole / "README.md").read_text()
    assert "The adapter of the training is merged" in card
    assert card.partition("\n## Use\n")[2].strip().startswith("The folder is complete.")
    inputs = json.loads((whole / "gate.json").read_text())["evidence"]["inputs"]
    assert "adapter_model.safetensors" in inputs["adapter"]
    assert "model.safetensors" in inputs["candidate"]
    assert judge_for_ci(None, {"candidate": "releases/archive"}, project, whole / "gate.json") == 0


def test_an_adapter_is_released_as_it_is_where_params_say_so(judged, project, adapter):
    document = yaml.safe_load((project / "params.yaml").read_text())
    document["retrain"]["release"] = "adapter"
    (project / "params.yaml").write_text(yaml.safe_dump(document))
    assert judged(domain=110, general=120).promoted
    released = project / "releases/archive"
    assert {"adapter_model.safetensors", "adapter_config.json", "base.json"} <= {
        path.name for path in released.iterdir()
    }
    assert not list(released.glob("model*.safetensors"))
    measured = weights_of(adapter)
    assert all(torch.equal(value, measured[name]) for name, value in weights_of(released).items())
    card = (released / "README.md").read_text()
    assert card.partition("\n## Use\n")[2].strip().startswith("An adapter: run the commands where its base")
    assert "The adapter of the training is merged" not in card
    assert judge_for_ci(None, {"candidate": "releases/archive"}, project, released / "gate.json") == 0
    (released / "adapter_model.safetensors").write_bytes(b"")
    assert judge_for_ci(None, {"candidate": "releases/archive"}, project, released / "gate.json") == 2


def test_a_candidate_that_passed_is_released_with_its_verdict(judged, project):
    verdict = judged(domain=110, general=120)
    assert verdict.promoted, verdict.reason
    card = (project / "releases/archive/README.md").read_text()
    assert "## Release" in card
    assert verdict.reason in card
    weights = (project / "models/pocket-base/model.safetensors").read_bytes()
    assert (project / "releases/archive/model.safetensors").read_bytes() == weights
    assert (project / "releases/archive.dvc").exists()
    kept = json.loads((project / "releases/archive.json").read_text())
    assert (kept["promoted"], kept["candidate"], kept["champion"]) == (True, "raft-0", None)
    assert [row["result"] for row in kept["checks"]] == ["pass"] * len(verdict.checks)
    again = {"candidate": "releases/archive"}
    assert judge_for_ci(None, again, project, project / "releases/archive/gate.json") == 0
    (project / "releases/archive/chat_template.jinja").write_text("{{ messages }}")
    assert judge_for_ci(None, again, project, project / "releases/archive/gate.json") == 2


def test_a_refused_candidate_leaves_no_release(judged, project):
    verdict = judged(domain=110, general=20)
    assert not verdict.promoted
    assert verdict.coefficient is None  # far beyond a near miss
    assert not (project / "releases/archive").exists()
    assert json.loads((project / "releases/archive.json").read_text())["promoted"] is False


def test_a_near_miss_is_interpolated_benchmarked_and_judged_again(judged, project):
    verdict = judged(domain=110, general=95)
    assert verdict.coefficient in (0.5, 1.0)
    # The second benchmark measures the project's items; the base's outcomes are of invented ones.
    domain = next(check for check in verdict.checks if check.rule == "domain")
    assert (domain.result, domain.candidate) == ("unproven", "unknown")
    assert "different items of domain" in domain.evidence
    assert "interpolated to" in verdict.reason
    assert (paths.near_miss(DOMAIN) / "items.jsonl").exists()


MODELS = {"candidate": "artifacts/archive/runs/raft-0/model", "base": "models/pocket-base"}


@pytest.mark.parametrize(
    ("domain", "general", "fused", "code", "title"),
    [
        (110, 120, True, 0, "passed"),
        (110, 20, True, 1, "refused"),
        (110, 120, False, 2, "could not judge"),
        (0, 120, False, 1, "refused"),
    ],
)
def test_exit_code_comment_and_evidence_outside_the_service(project, monkeypatch, domain, general, fused, code, title):
    outcomes = {MODELS["base"]: items(0, 120), MODELS["candidate"]: items(domain, general)}
    monkeypatch.setattr("flows.gate.evaluate", lambda model, suite, progress: ({}, outcomes[model.path]))
    if not fused:
        paths.fused(DOMAIN, "jsonl").unlink()
    options = [part for role, folder in MODELS.items() for part in (f"--{role}", folder)]
    assert CliRunner().invoke(app, ["gate", DOMAIN, *options, "--output", "out"]).exit_code == code
    comment = Path("out/comment.md").read_text()
    assert comment.startswith(f"### Gate of `archive`: {title}\n")
    weights = hashlib.sha256(Path("models/pocket-base/model.safetensors").read_bytes()).hexdigest()
    assert f"- candidate, `model.safetensors`: `{weights[:16]}`" in comment
    shutil.rmtree(MODELS["candidate"])
    assert CliRunner().invoke(app, ["gate", "--replay", "out/gate.json"]).exit_code == code


def set_noise(project, **keys):
    document = yaml.safe_load((project / "params.yaml").read_text())
    document["gate"]["noise"] = keys
    (project / "params.yaml").write_text(yaml.safe_dump(document))


@pytest.mark.parametrize(("again", "code"), [(120, 0), (100, 2)])
def test_the_candidate_is_measured_twice_and_noise_above_a_margin_is_not_judged(project, monkeypatch, again, code):
    set_noise(project, dtype="bfloat16", seed=3)
    asked = []

    def evaluate(model, suite, progress):
        asked.append((model.path, model.dtype, suite.settings.batch_size, suite.seed))
        candidate = model.path == MODELS["candidate"]
        return {}, items(110 if candidate else 0, again if model.dtype == "bfloat16" else 120)

    monkeypatch.setattr("flows.gate.evaluate", evaluate)
    assert judge_for_ci(DOMAIN, MODELS, Path("out"), None) == code
    once = [(path, "float32", 128, SEED) for path in MODELS.values()]
    assert asked == [*once, (MODELS["candidate"], "bfloat16", 64, 3)]
    assert ("below the evaluator's noise" in Path("out/comment.md").read_text()) == (code == 2)
    assert judge_for_ci(None, {}, Path("out"), Path("out/gate.json")) == code  # from the file alone


def test_the_service_measures_its_candidate_twice_too(judged, project, monkeypatch):
    set_noise(project, batch_size=16)
    sizes = []

    def evaluate(model, suite, progress):
        sizes.append(suite.settings.batch_size)
        return {}, items(110, 90)

    monkeypatch.setattr("flows.gate.evaluate", evaluate)
    verdict = judged(domain=110, general=120)
    assert sizes == [16]
    assert [check.rule for check in verdict.checks if check.result != "pass"] == [f"general: {GENERAL}"]
    assert (verdict.undecidable, verdict.harmful, verdict.near_miss) == (True, False, False)
    assert not (project / "releases/archive").exists()


def test_what_goes_wrong_is_not_a_refusal(project, monkeypatch, capsys):
    assert judge_for_ci(DOMAIN, {"candidate": "nowhere", "base": MODELS["base"]}, Path("out"), None) == 2
    assert "got 'nowhere', expected a folder with a model" in capsys.readouterr().err
    assert judge_for_ci("law", MODELS, Path("out"), None) == 2
    assert judge_for_ci(DOMAIN, {"candidate": MODELS["candidate"]}, Path("out"), None) == 2
    assert "a domain with --candidate and --base" in capsys.readouterr().err

    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("flows.gate.evaluate", fail)
    assert judge_for_ci(DOMAIN, MODELS, Path("out"), None) == 2
    assert "RuntimeError: a bug" in capsys.readouterr().err
    assert not Path("out").exists()


def vote(model, item, right):
    return Judged(model=model, task=item.task, id=item.id, votes={"a": right}, reasons={}, abstained={}, right=right)


def test_a_panel_decides_over_the_domain_where_params_say_so(judged, project, monkeypatch):
    document = yaml.safe_load((project / "params.yaml").read_text())
    document["run"]["domains"] = document["run"]["judged"] = [DOMAIN]
    document.setdefault("gate", {})["domain_metric"] = "judged"
    (project / "params.yaml").write_text(yaml.safe_dump(document))
    answers = [item for item in items(0, 0) if item.task == DOMAIN_TASK]
    told = {"base": False, "raft-0": True}  # by the rule's metric the candidate knows nothing
    rows = [vote(model, item, right) for model, right in told.items() for item in answers]
    write_rows(paths.judged(DOMAIN) / "votes.jsonl", rows)
    verdict = judged(domain=0, general=120)
    assert verdict.promoted, verdict.reason
    assert verdict.checks[0].evidence == "0 of 120 items lost, 120 won"

    asked = []

    def again(rows, *arguments):
        asked.extend(rows)
        return [vote(model, item, False) for model, item in rows]

    monkeypatch.setattr("flows.judge.judge_chunk", again)
    monkeypatch.setattr("flows.judge._panel", lambda label, config: SimpleNamespace(pool=None))
    items_of = iter([[*items(0, 120)]])
    monkeypatch.setattr("flows.gate.benchmark_model", lambda *arguments: ({}, next(items_of)))
    verdict = judged(domain=0, general=95)
    assert {(model, item.task) for model, item in asked} == {("candidate", DOMAIN_TASK)}  # the interpolated model's
    assert verdict.coefficient is not None
    assert (verdict.checks[0].result, verdict.checks[0].evidence) == ("unproven", "0 of 120 items lost, 0 won")


@pytest.fixture
def waiting(monkeypatch, prefect_api):
    """A flow that asks whether a candidate may be promoted, and its run."""
    monkeypatch.setattr("flows.gate.POLL_SECONDS", 1)
    verdict = Verdict("law", "raft-0", None, (Check("domain", "+1", "0", "", "pass"),))

    @flow(persist_result=False)
    def wait(seconds):
        return request_approval(verdict, hours=seconds / 3600)

    with prefect_at(prefect_api), get_client(sync_client=True) as client:
        yield wait, client


@pytest.mark.parametrize(("approve", "reason"), [(True, "passes every rule against"), (False, "is refused by Ada")])
def test_a_person_decides_where_params_ask_for_one(waiting, approve, reason):
    wait, client = waiting
    run = client.create_flow_run(wait, parameters={"seconds": 60}, state=Pending())

    def say():
        with get_client(sync_client=True) as own:
            while not own.read_flow_run(run.id).state.is_paused():
                time.sleep(0.2)
        resume_flow_run(run.id, run_input={"approve": approve, "name": "Ada"})

    person = threading.Thread(target=copy_context().run, args=(say,))
    person.start()
    found = run_flow(wait, flow_run=run, parameters={"seconds": 60})
    person.join()
    assert (found.promoted, reason in found.reason) == (approve, True)


def test_without_an_answer_nothing_is_promoted(waiting):
    with pytest.raises(OperationalError, match="nobody approved raft-0 for law within"):
        waiting[0](2)


def test_a_champion_that_is_not_the_one_in_production_is_no_measure(judged, project, monkeypatch):
    monkeypatch.setattr("flows.gate.champion", lambda folder, domain: f"raft-{domain}@v2.0.0")
    Path("champions").mkdir()
    Path("champions/domains.yaml").write_text(f"champions: [{DOMAIN}]\nversions: {{{DOMAIN}: raft-{DOMAIN}@v1.0.0}}\n")
    with pytest.raises(InputError, match=f"v2.0.0 is in production, and champions/{DOMAIN} holds raft-{DOMAIN}@v1.0.0"):
        judged(9, 120)


def test_without_a_pipeline_there_is_nothing_to_judge(project, prefect_api):
    with prefect_at(prefect_api), pytest.raises(InputError, match="run the pipeline first"):
        flow(gate_candidate, validate_parameters=False)(load_config(), DOMAIN)
