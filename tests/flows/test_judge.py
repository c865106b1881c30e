"""A panel behind an OpenAI-compatible server judges kept answers; other judges ask again, without a model answering."""

import json
import re

import pytest
import yaml
from endpoint_server import answering
from project_copies import copy_project

from raft_tasks.artifacts import read_rows, write_json, write_rows
from raft_tasks.config import Endpoint
from raft_tasks.schemas import ItemResult, Judged, Labelled

ANSWERS = {"base": ["12 euros", "in June"], "sft-0": ["12 euros", "in May"]}
REFERENCES = ["12 euros", "in May"]
FIELDS = Endpoint.model_fields["sampling_fields"].get_default(call_default_factory=True)


asked: list[str] = []


def say(name, prompt):
    """`strict` and `fair` compare with the reference, `kind` approves all, `silent` has nothing to say."""
    asked.append(name)
    reference, candidate = (
        re.search(rf"(?s)<<<{block} (\w+)\n(.*?)\n{block} \1>>>", prompt)[2] for block in ("reference", "candidate")
    )
    right = name == "kind" or reference == candidate
    return "Hm." if name == "silent" else json.dumps({"reason": f"{name} has read it", "right": right})


@pytest.fixture
def server():
    asked.clear()
    with answering(say) as base_url:
        yield base_url


@pytest.fixture
def project(tmp_path, server):
    """Benchmarked answers of two models, and the identities of the judges."""
    folder = copy_project(tmp_path, {"run": {"methods": ["sft"], "seeds": [0], "judged": ["archive"]}})
    config = yaml.safe_load((folder / "params.yaml").read_text())
    endpoint = {"base_url": server, "concurrency": 4, "timeout_s": 10.0, "max_retries": 1}
    for name in ("strict", "fair", "kind", "silent"):
        config["models"][name] = {**endpoint, "model": name}
        identity = {"base_url": server, "model": name, "seeds": True, "options": {}, "sampling_fields": FIELDS}
        write_json(folder / "artifacts" / "models" / f"{name}.json", identity)
    config["judge"] |= {"calibration": "people.jsonl", "max_failed": 0.0}
    (folder / "params.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    for model, answers in ANSWERS.items():
        items = [
            ItemResult(
                task=task, id=str(number), source="s", metrics={"acc": 1.0}, question=f"question {number}?",
                reference=reference, prompt="<user>", answer=answer,
            )
            for task in ("domain", "pocket_recall")
            for number, (answer, reference) in enumerate(zip(answers, REFERENCES, strict=True))
        ]  # fmt: skip
        write_rows(folder / "artifacts" / "archive" / "benchmarks" / model / "items.jsonl", items)
    people = [
        Labelled(question="What does it cost?", reference="12 euros", candidate=said, score=score)
        for said, score in (("12 euros", 10), ("24 euros", 0))
    ]
    write_rows(folder / "data" / "calibration" / "people.jsonl", people)
    return folder


def judge(project, raft, *names, quorum=2):
    config = yaml.safe_load((project / "params.yaml").read_text())
    like = config["judge"]["judges"][0]
    config["judge"] |= {"judges": [{**like, "model": name, "repairs": 0} for name in names], "quorum": quorum}
    (project / "params.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    asked.clear()
    return raft(project, "stage", "judge", "archive")


def test_the_majority_decides_and_what_was_asked_is_not_asked_again(project, raft):
    done = judge(project, raft, "strict", "fair", "kind")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(asked) == 3 * (3 + 2)  # of four answers two are the same text; and the labels
    folder = project / "artifacts" / "archive" / "judged"
    votes = read_rows(folder / "votes.jsonl", Judged)
    assert [(row.model, row.task, row.id, row.right) for row in votes] == [
        ("base", "domain", "0", True), ("base", "domain", "1", False),
        ("sft-0", "domain", "0", True), ("sft-0", "domain", "1", True),
    ]  # fmt: skip
    assert votes[1].votes == {"strict": False, "fair": False, "kind": True}
    assert votes[1].reasons["kind"] == "kind has read it"
    found = json.loads((folder / "summary.json").read_text())
    assert found["scores"]["base"]["domain"] == {"judged": 0.5, "n": 2}
    assert found["scores"]["sft-0"]["domain"] == {"judged": 1.0, "n": 2}
    assert found["agreement"]["domain"]["pairs"][0]["kappa"] == 1.0  # strict and fair
    assert found["calibration"]["strict"]["kappa"] == 1.0
    assert found["calibration"]["kind"]["bias"] == 0.5

    again = judge(project, raft, "strict", "kind", "silent")  # one judge less, one that cannot be used
    assert again.returncode == 0, again.stdout + again.stderr
    assert set(asked) == {"silent"}
    votes = read_rows(folder / "votes.jsonl", Judged)
    assert votes[1].votes == {"strict": False, "kind": True}
    assert votes[1].right is False  # a tie
    assert "Hm." in votes[1].abstained["silent"]


def test_too_few_votes_stop_the_stage(project, raft):
    done = judge(project, raft, "strict", "silent")
    assert done.returncode == 1
    assert "no answer for 1 of 4 rows, more than max_failed" in done.stdout + done.stderr
    assert not (project / "artifacts" / "archive" / "judged" / "votes.jsonl").exists()
