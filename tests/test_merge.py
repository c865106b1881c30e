"""What is merged of a training: the model that is written, the choice of the coefficient, and what is reported."""

import json
from pathlib import Path

import pytest
import torch
from chat_models import save_chat_model
from safetensors.torch import load_file
from task_files import multiple_choice, write_task

from raft_tasks import benchmark
from raft_tasks.config import Benchmark, Interpolate, Model, Prune, Ties
from raft_tasks.errors import InputError
from raft_tasks.evaluation.harness import Suite
from raft_tasks.schemas import Example

BENCHMARK = Benchmark(tasks=["never asked"], few_shot={}, limit={}, data={}, batch_size=4, max_new_tokens=4)
CHOSEN = {"coefficients": [0.25, 0.5], "tasks": ["crest"], "general_loss": 0.02}
ROWS = [
    Example(
        id="a", domain="d", question="What is it?", answer="rope", source="a", split="validation", expected=["rope"]
    )
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = save_chat_model("qwen3", tmp_path_factory.mktemp("merge") / "base")
    return Model(path=str(folder), revision=None, dtype="float32", system=None)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """The base, moved by 0.1 everywhere."""
    from raft_tasks.model_loading import load_model

    folder = tmp_path_factory.mktemp("merge") / "trained"
    network, tokenizer = load_model(base, torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("# trained\n")
    return folder


def run(trained, base, after, output, rows=ROWS, tasks=Path("none"), progress=lambda done, total: None):
    suite = Suite("d", rows, BENCHMARK, tasks)
    return benchmark.merge_model.fn(trained, base, after, suite, output, progress)


def moved(base, output):
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (base.path, output / "model"))
    return {name: value - before[name] for name, value in after.items()}


def test_a_method_that_merges_nothing_is_recorded_and_no_model_is_copied(base, trained, tmp_path):
    assert run(trained, base, None, tmp_path / "out", rows=[]) == {"kind": None}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["merge.json"]


def test_pruning_asks_nothing(base, trained, tmp_path):
    (Path(base.path) / "LICENSE").write_text("Do no harm.")
    result = run(trained, base, Prune(kind="prune", keep=0.1), tmp_path / "out", rows=[])
    assert (result["kind"], result["coefficient"]) == ("prune", 1.0)
    for name, value in moved(base, tmp_path / "out").items():
        assert (value != 0).sum() == max(1, int(0.1 * value.numel())), name
    assert "coefficient 1" in (tmp_path / "out" / "model" / "README.md").read_text()
    assert (tmp_path / "out" / "model" / "LICENSE").read_text() == "Do no harm."


def test_the_coefficient_is_chosen_and_the_whole_change_reported_beside_it(base, trained, tmp_path, monkeypatch):
    asked = []

    def by_distance(model, suite):
        assert suite.settings.tasks == CHOSEN["tasks"]
        weights, before = (
            load_file(Path(folder) / "model.safetensors")["lm_head.weight"] for folder in (model.path, base.path)
        )
        coefficient = round(float((weights - before).mean() / 0.1), 3)
        asked.append(coefficient)
        return {"domain": coefficient, "general": 0.9 - 0.1 * max(0.0, coefficient - 0.4)}

    monkeypatch.setattr(benchmark, "score_candidate", by_distance)
    seen = []
    after = Interpolate(kind="interpolate", **CHOSEN)
    result = run(trained, base, after, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert asked == [0.0, 0.25, 0.5, 1.0]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert result["coefficient"] == 0.5
    assert result["bound_met"]
    assert result["base"] == {"domain": 0.0, "general": 0.9}
    assert result["candidates"][-1]["coefficient"] == 1.0
    assert json.loads((tmp_path / "out" / "merge.json").read_text()) == result
    for value in moved(base, tmp_path / "out").values():
        assert torch.allclose(value, torch.tensor(0.05), atol=1e-6)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"merge.json", "model"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # the candidates are gone


def test_it_really_asks_the_validation_rows_and_the_named_tasks(base, trained, tmp_path):
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    items = [{"question": f"crest {number}?", "right": number % 2} for number in range(4)]
    write_task(tasks, "crest", items, **multiple_choice(["rope", "corn"]))
    after = Ties(kind="ties", keep=0.2, **CHOSEN | {"coefficients": [0.5]})
    result = run(trained, base, after, tmp_path / "out", tasks=tasks)
    assert [one["coefficient"] for one in result["candidates"]] == [0.5, 1.0]
    for one in (result["base"], *result["candidates"]):
        assert one["domain"] in (0.0, 1.0)
        assert one["general"] in (0.0, 0.25, 0.5, 0.75, 1.0)


def test_a_choice_without_validation_rows_is_refused(base, trained, tmp_path):
    with pytest.raises(InputError, match="domain 'd' has no validation rows"):
        run(trained, base, Interpolate(kind="interpolate", **CHOSEN), tmp_path / "out", rows=[])
    assert not (tmp_path / "out").exists()
