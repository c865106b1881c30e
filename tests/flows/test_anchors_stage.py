"""The stage `anchors` as the graph runs it: a set for the methods that name one, and which set holds which method."""

import json

import pytest
import yaml
from project_copies import copy_project

from flows.anchors import read_turns
from raft_tasks.artifacts import read_rows
from raft_tasks.config import AnchorSet
from raft_tasks.errors import InputError
from raft_tasks.schemas import Anchor, HeldOut, RejectedAnchor


def test_a_set_is_made_for_the_methods_that_name_it(tmp_path, raft, monkeypatch):
    project = copy_project(tmp_path, {"run": {"methods": ["sft", "fused_sft_anchored"]}})
    config = yaml.safe_load((project / "params.yaml").read_text())
    (project / "data/anchors/own.jsonl").write_text('{"id": "mine", "prompt": "What is the craft of Bodal?"}\n')
    config["anchors"]["generated"] |= {
        "count": 24,
        "chunk_rows": 8,
        "prompts": "own.jsonl",
        "without": {"tasks": ["pocket_recall"], "overlap": 0.3},
    }
    (project / "params.yaml").write_text(yaml.safe_dump(config))
    for command in (["resolve"], ["stage", "ingest", "archive"], ["stage", "anchors"]):
        done = raft(project, *command)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "24/24 generated turns of generated" in done.stdout
    folder = project / "artifacts" / "anchors"
    kept = read_rows(folder / "sets" / "generated" / "anchors.jsonl", Anchor)
    rejected = read_rows(folder / "sets" / "generated" / "rejects.jsonl", RejectedAnchor)
    statistics = json.loads((folder / "sets" / "generated" / "statistics.json").read_text())
    assert len(kept) + len(rejected) == statistics["generated"] == 25  # the turn of one's own among them
    assert sum(statistics["rejected"].values()) == len(rejected)
    assert statistics["kept"] == len(kept) > 4
    assert statistics["rejected"]["tells what is measured"] > 4  # facts of the general world
    held_out = {row.question for row in read_rows(project / "artifacts/held_out/archive.jsonl", HeldOut)}
    assert held_out
    assert not held_out & {row.prompt for row in kept}
    assert (folder / "sets" / "generated" / "base.safetensors").exists()
    assert json.loads((folder / "methods" / "sft.json").read_text()) is None
    held = json.loads((folder / "methods" / "fused_sft_anchored.json").read_text())
    assert held["set"] == "generated"
    assert len(held["sha256"]) == 64
    # a method more: DVC runs the stage again, and the sets stay
    monkeypatch.setenv("DVC_STAGE", "anchors")
    for more, shown in (("raft", "24/24 generated turns"), ("on_policy", "the sets stay")):
        config["run"]["methods"].append(more)
        (project / "params.yaml").write_text(yaml.safe_dump(config))
        for command in (["resolve"], ["stage", "anchors"]):
            done = raft(project, *command)
            assert done.returncode == 0, done.stdout + done.stderr
        assert shown in done.stdout
        assert json.loads((folder / "methods" / f"{more}.json").read_text()) is None
        assert json.loads((folder / "methods" / "fused_sft_anchored.json").read_text()) == held


@pytest.mark.parametrize("id", ["mine", "anchor-00002"])
def test_an_id_that_two_anchors_would_have_is_refused(tmp_path, monkeypatch, id):
    (tmp_path / "data/anchors").mkdir(parents=True)
    rows = [{"id": "mine", "prompt": "Why?"}, {"id": id, "prompt": "What is the craft of Bodal?"}]
    (tmp_path / "data/anchors/own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"own.jsonl:2: id '{id}' belongs"):
        read_turns(AnchorSet(count=3, prompts="own.jsonl"))
