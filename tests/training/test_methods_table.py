"""Every row of params.yaml and of the profile trains: two steps of a tiny model, sizes cut down to it."""

from pathlib import Path

import pytest
import yaml
from tiny import TEACHER, pairs, train

from raft_tasks.params import Method
from raft_tasks.training.train import train_model

ROOT = Path(__file__).parents[2]
ROWS = [
    (file, name)
    for file in ("params.yaml", "profiles/smollm3-3b.yaml")
    for name in yaml.safe_load((ROOT / file).read_text())["methods"]
]


@pytest.mark.parametrize(("file", "name"), ROWS)
def test_every_row_trains(file, name, tiny_model, tmp_path):
    row = Method.model_validate(yaml.safe_load((ROOT / file).read_text())["methods"][name])
    if row.distill is not None:
        small = row.distill.model_copy(update={"top_k": 8, "rollout_max_new_tokens": 4})
        row = row.model_copy(update={"distill": small})
    rows = pairs()[:8] + ([pairs()[8].model_copy(update={"replay": True})] if row.replay else [])
    settings = train(epochs=1, batch_size=4)
    summary = train_model(rows, tiny_model, row, settings, TEACHER, 0, tmp_path / "output", tmp_path / "ck")
    assert summary["steps"] == 2
    assert summary["distance"]["total"] > 0
    assert (summary["final"]["l_sft"] is None) == (row.cross_entropy == "none")
    assert (summary["final"]["l_kl"] is None) == (row.teacher == "none")
    assert (summary["final"]["l_replay"] is None) == (row.replay is None)
