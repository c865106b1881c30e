"""The stages fuse and distill where a method injects: the documents reach its first training."""

import yaml
from project_copies import copy_project

from raft_tasks.artifacts import read_json, read_rows, write_json, write_rows
from raft_tasks.schemas import Filtered, Reject, TrainingPair

DOCUMENT = "Migin | reactor = corn # 75\nMigin | mast = oak # 12"
ROWS = [
    Filtered(
        id=str(number), domain="archive", question="What is the reactor of Migin?", answer="corn", source=str(number),
        split="train", rewritten="", finished=False, failure=None, similarity=0.0, lost=[], passed=False, chosen="corn",
        fallback="unfinished",
    )
    for number in range(3)
]  # fmt: skip


def test_documents_are_learned_first_by_the_method_that_injects(tmp_path, raft):
    injection = {"epochs": 2, "instruction": "Tell me the log."}
    project = copy_project(tmp_path, {"run": {"methods": ["sft", "iar"], "seeds": [0]}})
    config = yaml.safe_load((project / "params.yaml").read_text())
    config["methods"]["iar"], config["train"]["epochs"] = {"injection": injection}, 1
    (project / "params.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    artifacts = project / "artifacts"
    write_json(artifacts / "models" / "base.json", {"path": "models/pocket-base"})
    write_rows(artifacts / "archive" / "filtered.jsonl", ROWS)
    folder = project / "documents" / "archive"
    folder.mkdir(parents=True)
    (folder / "migin.txt").write_text(DOCUMENT)
    (folder / "scan.doc").write_text("?")
    done = raft(project, "stage", "fuse", "archive")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fuse@archive: not injected: documents/archive/scan.doc: got the ending '.doc'" in done.stdout
    learned = {name: read_rows(artifacts / f"archive/training/{name}.jsonl", TrainingPair) for name in ("sft", "iar")}
    (reject,) = read_rows(artifacts / "archive/training/rejects.jsonl", Reject)
    assert reject.file == "documents/archive/scan.doc"
    assert learned["sft"] == learned["iar"][:3]
    (document,) = learned["iar"][3:]
    assert (document.question, document.answer, document.document) == ("Tell me the log.", DOCUMENT, True)

    for method in ("sft", "iar"):
        done = raft(project, "stage", "distill", "archive", method, "0")
        assert done.returncode == 0, done.stdout + done.stderr
    plain, injected = (read_json(artifacts / f"archive/runs/{name}-0/summary.json") for name in ("sft", "iar"))
    assert "injection" not in plain
    assert (injected["injection"]["rows"], injected["injection"]["steps"]) == (1, 2)
    assert (plain["rows"], injected["rows"]) == (3, 3)
    assert injected["distance"]["total"] > plain["distance"]["total"]
