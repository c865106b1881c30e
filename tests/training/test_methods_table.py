"""Every row of params.yaml and of a preset trains: two steps of a tiny model, sizes cut down to it."""

from pathlib import Path

import pytest
from tiny import job, pairs, save_anchors, train

from flows.init import params_text
from raft_tasks.artifacts import parse_yaml
from raft_tasks.config import load_config, parse_config
from raft_tasks.training.injection import inject
from raft_tasks.training.train import train_model

ROOT = Path(__file__).parents[2]


def small_rows():
    """(name, row) of all rows; those that then differ in what is taken back alone, or in nothing, once."""
    rows = {}
    preset = parse_config(parse_yaml(params_text("smollm3-3b", "mine", None, None), "smollm3-3b"))
    for config in (load_config(ROOT / "params.yaml"), preset):
        for name, method in config.methods.items():
            row = method.model_copy(update={"merge": None})
            if row.distillation is not None:
                sampler = row.distillation.sampler.model_copy(update={"batch_size": 4})
                small = {"top_k": 8, "rollout_max_new_tokens": 4, "sampler": sampler}
                row = row.model_copy(update={"distillation": row.distillation.model_copy(update=small)})
            if row.replay is not None:
                row = row.model_copy(update={"replay": row.replay.model_copy(update={"files": ["any"]})})
            if row.anchors is not None:
                row = row.model_copy(update={"anchors": row.anchors.model_copy(update={"batch": 3})})
            rows.setdefault(row.model_dump_json(), (name, row))
    return list(rows.values())


@pytest.mark.parametrize(("name", "row"), small_rows(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_row_trains(name, row, tiny_model, tiny_folder, tmp_path):
    rows = pairs()[:8] + ([pairs()[8].model_copy(update={"replay": True})] if row.replay else [])
    settings = train(epochs=1, batch_size=4)
    anchors = save_anchors(tmp_path / "set", tiny_folder) if row.anchors else None
    made = {"train": settings, "anchors": anchors, "mixed": row.mixing is not None}
    if row.injection is not None:
        row = row.model_copy(update={"injection": row.injection.model_copy(update={"instruction": "what is the ?"})})
        made["documents"] = [pair.model_copy(update={"document": True}) for pair in rows[:4]]
    summary = train_model(inject(job(tiny_model, tmp_path, row, pairs=rows, **made), train_model))
    assert summary["steps"] == 2
    assert summary["distance"]["total"] > 0
    assert (summary["final"]["l_sft"] is None) == (not row.sft)
    assert (summary["final"]["l_kl"] is None) == (row.teacher is None)
    assert (summary["final"]["l_replay"] is None) == (row.replay is None)
    assert (summary["final"]["l_target_kl"] is None) == (row.target_kl is None)
    assert (summary["final"]["l_anchor"] is None) == (row.anchors is None)
    assert ("injection" in summary) == (row.injection is not None)
