"""Documents become questions become examples, with models behind an OpenAI-compatible server."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from endpoint_server import answering
from project_copies import copy_project

from raft_tasks.config import load_config
from raft_tasks.errors import InputError
from raft_tasks.question import read_chunks

DOCUMENTS = {  # in words that the pocket base's tokenizer knows: ingest rejects answers with others
    "permits.md": "# Permits\n\n## Fees\n\nThe amber permit is 12 stars.\n\n## Names\n\nThe registrar has the vault.\n",
    "bridges.txt": "The Figin lantern is noted in 1931.\n",
    "broken.pdf": "this is no PDF",
}
PAIRS = {
    "12 stars": [
        ("What is the amber permit?", "The amber permit is 12 stars."),
        ("According to the text, what is the fee?", "12 stars."),
        ("What is the oak permit?", "The oak permit is 24 stars."),
    ],
    "vault": [("What has the permit registrar?", "The permit registrar has the vault.")],
    "1931": [("When was the Figin lantern noted?", "The Figin lantern is noted in 1931.")],
}


asked: list[tuple[str, str]] = []


def say(model, prompt):
    """Proposes what PAIRS says, fenced and with a preamble; approves an answer whose numbers and last word it reads."""
    asked.append((model, prompt))
    passage, answer = (read_block(prompt, name) for name in ("passage", "answer"))
    if answer:
        good = all(word in passage for word in re.findall(r"\d+|\w+(?=\.$)", answer))
        return json.dumps({"reason": "read", "answerable": True, "grounded": good, "self_contained": True})
    pairs = next((pairs for word, pairs in PAIRS.items() if word in passage), [])
    listed = json.dumps({"pairs": [{"question": q, "answer": a} for q, a in pairs]})
    return f"Here they are:\n```json\n{listed}\n```"


def read_block(prompt, name):
    match = re.search(rf"(?s)<<<{name} (\w+)\n(.*?)\n{name} \1>>>", prompt)
    return match[2] if match else ""


@pytest.fixture
def server():
    asked.clear()
    with answering(say) as base_url:
        yield base_url


@pytest.fixture
def project(tmp_path, server):
    folder = copy_project(tmp_path, {"run": {"documents": ["permits"]}})
    for name, text in DOCUMENTS.items():
        (folder / "documents" / "permits").mkdir(parents=True, exist_ok=True)
        (folder / "documents" / "permits" / name).write_text(text)
    config = yaml.safe_load((folder / "params.yaml").read_text())
    endpoint = {"base_url": server, "concurrency": 4, "timeout_s": 10.0, "max_retries": 1}
    config["models"] |= {name: {**endpoint, "model": name} for name in ("maker", "reader", "lawyer")}
    checkers = [{"model": name} for name in ("reader", "lawyer")]
    config["question"] |= {"model": "maker", "min_characters": 10, "checkers": checkers}
    config["domains"]["permits"] = {
        **config["domains"]["archive"],
        "files": ["data/permits/questions.jsonl"],
        "columns": {
            "id": "id", "question": "question", "answer": "answer", "source": "source", "split": None,
            "expected": None, "details": None,
        },
        "split": {"by": "source", "validation": 0.0, "test": 0.5, "seed": 0},
    }  # fmt: skip
    config["run"]["domains"] = ["permits"]
    (folder / "params.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


@pytest.fixture
def environment(prefect_api, clean_environment):
    path = f"{Path(sys.executable).parent}{os.pathsep}{clean_environment['PATH']}"  # whose python dvc runs
    return {**clean_environment, "PREFECT_API_URL": prefect_api, "PATH": path}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_documents_become_examples_and_rejects(project, environment):
    command = [sys.executable, "-m", "dvc", "repro", "ingest@permits"]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

    pairs = rows(project / "data" / "permits" / "questions.jsonl")
    assert [pair["question"] for pair in pairs] == [
        "When was the Figin lantern noted?", "What is the amber permit?", "What has the permit registrar?",
    ]  # fmt: skip
    fee = pairs[1]
    assert fee["source"] == "documents/permits/permits.md"
    assert fee["agreement"] == 1
    assert fee["id"].startswith(fee["chunk"])
    assert "12 stars" in DOCUMENTS["permits.md"][fee["start"] : fee["end"]]

    folder = project / "artifacts" / "permits" / "questions"
    assert {(out["reason"], out["question"]) for out in rows(folder / "rejects.jsonl")} == {
        ("refers to the text", "According to the text, what is the fee?"),
        ("not grounded", "What is the oak permit?"),
        ("unreadable document", ""),
    }
    counts = json.loads((folder / "summary.json").read_text())
    assert (counts["documents"], counts["chunks"], counts["proposed"], counts["kept"]) == (3, 3, 5, 3)
    assert counts["wrong_passage"] == {name: {"votes": 3, "approved": 0} for name in ("reader", "lawyer")}
    assert counts["rejected"] == {"not grounded": 1, "refers to the text": 1, "unreadable document": 1}
    assert {model for model, _ in asked} == {"maker", "reader", "lawyer"}

    examples = project / "artifacts" / "permits" / "examples"
    split = {name: rows(examples / f"{name}.jsonl") for name in ("train", "test")}
    assert {row["id"] for own in split.values() for row in own} == {pair["id"] for pair in pairs}
    assert not {row["source"] for row in split["train"]} & {row["source"] for row in split["test"]}

    before = len(asked)
    again = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(asked) == before


def test_no_documents_is_a_clear_error(tmp_path):
    (tmp_path / ".gitignore").write_text("")
    with pytest.raises(InputError, match="holds no documents"):
        read_chunks(tmp_path, load_config().question)


def test_a_document_that_leads_elsewhere_is_not_read(tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "documents" / "link.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(InputError, match="outside of"):
        read_chunks(tmp_path / "documents", load_config().question)
