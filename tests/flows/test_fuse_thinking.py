"""The stage `fuse` where the base thinks: every method's training rows stand behind the base's own thoughts."""

import pytest
import yaml
from project_copies import copy_project
from saying import thinking_model

from raft_tasks.artifacts import read_rows, write_json, write_rows
from raft_tasks.schemas import Filtered, TrainingPair

ROWS = [
    Filtered(
        id=str(number), domain="archive", question="what", answer="rope", source=str(number), split="train",
        rewritten="", finished=False, failure=None, similarity=0.0, lost=[], passed=False,
        chosen="rope", fallback="unfinished",
    )
    for number in range(3)
]  # fmt: skip
THOUGHT = "<think>hm</think>\n\n"


@pytest.mark.parametrize(
    ("thinking", "expected"),
    [("on", [("0", THOUGHT), ("1", THOUGHT), ("2", THOUGHT)]), ("both", [("0", ""), ("0 thinking", THOUGHT)])],
)
def test_training_rows_come_with_the_bases_thoughts(tmp_path, raft, thinking, expected):
    project = copy_project(tmp_path, {"run": {"methods": ["sft"], "seeds": [0]}})
    base = thinking_model(tmp_path / "base", ["<think>", "hm", "</think>"], thinking)
    config = yaml.safe_load((project / "params.yaml").read_text())
    config["models"]["base"] = {"path": "base", "dtype": "float32", "thinking": thinking, "thought_tokens": 8}
    (project / "params.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    write_json(project / "artifacts" / "models" / "base.json", {"path": base.path})
    write_rows(project / "artifacts" / "archive" / "filtered.jsonl", ROWS)
    done = raft(project, "stage", "fuse", "archive")
    assert done.returncode == 0, done.stdout + done.stderr
    pairs = read_rows(project / "artifacts" / "archive" / "training" / "sft.jsonl", TrainingPair)
    assert [(pair.id, pair.thought) for pair in pairs][: len(expected)] == expected
    assert {pair.answer for pair in pairs} == {"rope"}
    assert f"fuse@archive, sft: 3 of {len(pairs)} answers are learned behind a thought of the base; 0" in done.stdout
