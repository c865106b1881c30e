"""`raft push` against a stand-in hub: what arrives is what was judged; anything else is refused before a request."""

import pytest
from chat_models import save_chat_model
from hub_server import TOKEN, hub_server
from huggingface_hub import constants
from typer.testing import CliRunner

from flows.cli import app
from raft_tasks.config import Model, load_config
from raft_tasks.errors import InputError, OperationalError
from raft_tasks.evaluation.evidence import Evidence, digest_model, write_evidence
from raft_tasks.evaluation.gate import Measured
from raft_tasks.schemas import ItemResult

NAME = "team/raft-law"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<:DeprecationWarning")  # huggingface_hub's own, in uploads


@pytest.fixture
def hub(monkeypatch):
    """Only LFS is stood in for, not Xet."""
    with hub_server() as hub:
        for name, value in {"ENDPOINT": hub.address, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield hub


def measured(name, right):
    items = [
        ItemResult(task="domain", id=str(n), source=str(n), metrics={"acc": float(n < right)}, prompt="?", answer="!")
        for n in range(50)
    ]
    general = [item.model_copy(update={"task": "recall", "metrics": {"acc": 1.0}}) for item in items]
    return Measured(
        name, {"domain": items, "recall": general}, bytes=10, seconds=0.5, leaks=0.0, prompting={"one turn": None}
    )


def judge(folder, right):
    """The gate's evidence on the folder, as a release has it."""
    inputs = {"candidate": digest_model(Model(path=str(folder)))}
    rules, candidate = load_config().gate, measured("raft-0", right)
    evidence = Evidence("law", rules, candidate, measured("base", 20), None, 0.95, inputs)
    write_evidence(folder / "gate.json", evidence, evidence.judge())


@pytest.fixture
def released(tmp_path):
    folder = save_chat_model("llama", tmp_path / "law")
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# A card\n")
    judge(folder, 45)
    return folder


def push(folder, *options):
    return CliRunner().invoke(app, ["push", str(folder), NAME, *options])


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_release_arrives_whole_and_private_and_the_next_one_replaces_it(hub, released):
    done = push(released)
    assert done.exit_code == 0, done.exception
    assert done.output.strip() == f"{hub.address}/{NAME}/commit/{'2' * 40}"
    repository = hub.repositories[NAME]
    assert repository["private"]
    assert repository["files"] == files_of(released)
    (message,) = repository["messages"]
    assert message.startswith("raft-0 passes every rule against the base")
    (released / "generation_config.json").unlink()
    (released / "README.md").write_text("# Another card\n")
    judge(released, 46)
    assert push(released).exit_code == 0
    assert repository["files"] == files_of(released)
    assert len(repository["messages"]) == 2


def test_a_public_repository_is_used_only_where_a_person_says_so(hub, released):
    hub.repositories[NAME] = {"private": False, "files": {}, "messages": []}
    done = push(released)
    assert isinstance(done.exception, OperationalError)
    assert "is public" in str(done.exception)
    assert hub.repositories[NAME]["files"] == {}
    assert push(released, "--public").exit_code == 0
    assert hub.repositories[NAME]["files"] == files_of(released)


def test_what_the_gate_did_not_pass_or_did_not_see_is_not_pushed(hub, released):
    (released / "chat_template.jinja").write_text("{{ messages }}")
    assert "chat_template.jinja differ" in str(push(released).exception)
    judge(released, 5)
    assert "the gate did not pass this model" in str(push(released).exception)
    judge(released, 45)
    (released / "notes.txt").write_text("private")
    assert "notes.txt differ" in str(push(released).exception)
    (released / "gate.json").unlink()
    done = push(released)
    assert isinstance(done.exception, InputError)
    assert "expected evidence" in str(done.exception)
    assert hub.repositories == {}


def test_a_refused_token_says_what_to_do(hub, released, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    done = push(released)
    assert isinstance(done.exception, OperationalError)
    assert "it needs write access" in str(done.exception)
    assert hub.refused
    assert hub.repositories == {}
