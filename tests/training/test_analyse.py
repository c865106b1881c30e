import json
import shutil

import pytest
import torch
from tiny import TEACHER, save_tiny, tiny_llama

from raft_tasks.analyse import KL_ITEMS, analyse_model, sample_evenly
from raft_tasks.config import Model
from raft_tasks.schemas import ItemResult

PROMPT = "<user> what is the motto of {} ? <end> <assistant> "


def item(task, number, answer, place="figin"):
    return ItemResult(
        task=task, id=str(number), source="s", metrics={"acc": 1.0}, prompt=PROMPT.format(place), answer=answer
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny base, and the same with one matrix 1.5 times as long."""
    base = save_tiny(tmp_path_factory.mktemp("analyse") / "base")
    trained = base.parent / "trained"
    shutil.copytree(base, trained)
    network = tiny_llama(json.loads((base / "config.json").read_text())["vocab_size"])
    with torch.no_grad():
        network.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    network.save_pretrained(trained)
    return [Model(path=str(path), revision=None, dtype="float32", system=None) for path in (trained, base)]


def test_all_that_is_measured_of_a_model(models):
    base_items = [
        *[item("domain", number, f"the motto is rope {number} .") for number in range(4)],
        *[item("recall", number, "the colour of arlo is green .") for number in range(4)],
        item("choices", 0, "choice 1"),
    ]
    items = [
        item("domain", 0, "as the reference says it is rope ."),
        item("domain", 1, "answer the question : rope"),
        *[item("domain", number, f"the motto is rope {number} .") for number in (2, 3)],
        *base_items[4:],
    ]
    references = [f"motto | figin = rope # {number}" for number in range(4)]
    found = analyse_model.fn(models[0], models[1], items, base_items, references, TEACHER, 4)
    assert found["distance"]["parameters"]["model.layers.1.mlp.up_proj.weight"] == pytest.approx(0.5, rel=1e-4)
    assert found["distance"]["layers"]["0"] == 0 < found["distance"]["layers"]["1"]
    assert set(found["distance"]["layers"]) == {"embed_tokens", "0", "1", "norm"}
    assert found["distance"]["matrices"]["q_proj"] == 0 < found["distance"]["matrices"]["up_proj"]
    assert set(found["kl"]["tasks"]) == {"recall", "choices"}
    assert found["kl"]["general"] == pytest.approx(sum(found["kl"]["tasks"].values()) / 2)
    assert found["kl"]["domain"] > 0
    leak = found["leak"]
    assert (leak["share"], leak["share_base"], leak["items"]) == (0.25, 0.0, 4)
    assert leak["examples"] == ["as the reference says it is rope ."]
    assert (leak["template"], leak["template_base"]) == (0.25, 0.0)
    assert found["style"]["general_style_distance"] == found["style"]["general_length_distance"] == 0
    assert found["style"]["general_foreign"] == 0
    assert found["style"]["general_words_base"] == 6  # a choice is not an answer in words
    json.dumps(found, allow_nan=False)


def test_the_base_against_itself_is_nowhere_apart(models):
    base_items = [item("domain", number, f"the motto is rope {number} .") for number in range(4)]
    found = analyse_model.fn(models[1], models[1], base_items, base_items, ["a | b", "c | d"], None, 4)
    assert found["distance"]["total"] == 0
    assert found["kl"] == {"domain": pytest.approx(0, abs=1e-6), "general": None, "tasks": {}}
    assert "template" not in found["leak"]


def test_items_are_taken_evenly_from_each_task():
    many = [item("a", number, "x") for number in range(2 * KL_ITEMS)] + [item("b", 0, "x")]
    chosen = sample_evenly(many)
    assert [row.id for row in chosen] == [*map(str, range(0, 2 * KL_ITEMS, 2)), "0"]
