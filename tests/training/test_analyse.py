import json
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import TEACHER, save_tiny, tiny_llama

from raft_tasks.analyse import KL_ITEMS, Base, analyse_model, cached_states, sample_evenly
from raft_tasks.config import Model
from raft_tasks.model_loading import load_model
from raft_tasks.schemas import ItemResult
from raft_tasks.training import divergence
from raft_tasks.training.completion_forward import completion_states, output_head

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


@pytest.fixture
def base_of(models, tmp_path):
    """The base with outcomes of its own; its states go into one file."""
    return lambda items, sha256="b": Base(models[1], {"sha256": sha256}, items, tmp_path / "cache" / "d.safetensors")


def test_all_that_is_measured_of_a_model(models, base_of):
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
    found = analyse_model.fn(models[0], items, base_of(base_items), references, TEACHER, 4)
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


def test_the_base_against_itself_is_nowhere_apart(models, base_of):
    base_items = [item("domain", number, f"the motto is rope {number} .") for number in range(4)]
    found = analyse_model.fn(models[1], base_items, base_of(base_items), ["a | b", "c | d"], None, 4)
    assert found["distance"]["total"] == 0
    assert found["kl"] == {"domain": pytest.approx(0, abs=1e-6), "general": None, "tasks": {}}
    assert "template" not in found["leak"]


ITEMS = [
    *[item("domain", number, f"the motto is rope {number} .") for number in range(6)],
    *[item("recall", number, "the colour of arlo is green ." * (number + 1)) for number in range(3)],
]


@pytest.fixture
def read(monkeypatch):
    """How many batches each model has read, by the name of its folder."""
    batches = Counter()

    def count(model, prompts, completions):
        batches[Path(model.config._name_or_path).name] += 1
        return completion_states(model, prompts, completions)

    monkeypatch.setattr(divergence, "completion_states", count)
    return batches


def kl_side_by_side(base, tuned, items, batch_size):
    """KL by task where both models read a batch, one after the other, in one process."""
    (base, tokenizer), (tuned, _) = load_model(base, torch.float32), load_model(tuned, torch.float32)
    rows = [divergence.encode_answer(item.prompt, item.answer, tokenizer) for item in items]
    order = sorted(range(len(rows)), key=lambda row: -sum(map(len, rows[row])))
    by_task = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        prompts, answers = [rows[row].prompt_ids for row in batch], [[*rows[row].completion_ids, 0] for row in batch]
        with torch.no_grad():
            hidden = [completion_states(model.eval(), prompts, answers) for model in (base, tuned)]
            kl = divergence.kl_by_position(hidden[0], output_head(base), hidden[1], output_head(tuned))
        for row, part in zip(batch, kl.split([*map(len, answers)]), strict=True):
            by_task.setdefault(items[row].task, {})[row] = float(part.double().mean())
    return {task: sum(values[row] for row in sorted(values)) / len(values) for task, values in by_task.items()}


def test_the_base_reads_its_answers_once_for_all_models_and_no_digit_changes(models, base_of, read, tmp_path):
    trained, base = models
    another = Model(**{**trained.model_dump(), "path": str(shutil.copytree(trained.path, tmp_path / "another"))})
    results = [
        analyse_model.fn(model, ITEMS, base_of(ITEMS), ["a | b"], None, 4) for model in (trained, another, trained)
    ]
    assert read == {"base": 3, "trained": 6, "another": 3}  # 9 items, 4 a batch
    kl = results[0]["kl"]
    expected = kl_side_by_side(base, trained, ITEMS, 4)
    assert {"domain": kl["domain"], **kl["tasks"]} == pytest.approx(expected, rel=1e-15)
    assert kl["domain"] > 0
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize(
    "change", ["an answer", "the model", "the batch size", "the code", "a cut file", "a foreign file"]
)
def test_what_the_bases_states_depend_on_is_read_again(models, base_of, read, monkeypatch, change):
    def analyse(items=ITEMS, sha256="b", batch_size=4):
        return analyse_model.fn(models[0], items, base_of(items, sha256), ["a | b"], None, batch_size)

    before, file = analyse(), base_of(ITEMS).states
    changes = {"an answer": {"items": [*ITEMS[:-1], item("recall", 2, "blue")]}, "the model": {"sha256": "c"}}
    changes["the batch size"] = {"batch_size": 3}
    if change == "the code":
        monkeypatch.setattr("raft_tasks.analyse.code_digest", lambda module: "another")
    elif change == "a cut file":
        file.write_bytes(file.read_bytes()[:-100])
    elif change == "a foreign file":
        save_file({"0": torch.zeros(3, 3)}, file)
    after = analyse(**changes.get(change, {}))
    assert read["base"] == 6
    if change == "an answer":
        assert after["kl"]["domain"] == pytest.approx(before["kl"]["domain"])  # another padding
        assert after["kl"]["tasks"] != before["kl"]["tasks"]
    elif change != "the batch size":
        assert after == before
    file.unlink()
    assert analyse(**changes.get(change, {})) == after
    assert {path.name for path in file.parent.iterdir()} == {"d.lock", file.name}  # one file a domain


def test_analyses_at_the_same_time_wait_for_the_first(tmp_path):
    computed = []

    def compute():
        computed.append(1)
        yield from (torch.full((2, 3), float(number)) for number in range(4))

    file = tmp_path / "new" / "states.safetensors"
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: [part.tolist() for part in cached_states(file, "key", compute)], range(4)))
    assert computed == [1]
    assert results == [[[[float(number)] * 3] * 2 for number in range(4)]] * 4


def test_who_reads_the_states_keeps_them_while_another_key_replaces_them(tmp_path):
    def states(value):
        return lambda: (torch.full((1, 1), value) for _ in range(2))

    file = tmp_path / "states.safetensors"
    reader = cached_states(file, "a", states(1.0))
    assert next(reader).item() == 1
    assert [part.item() for part in cached_states(file, "b", states(2.0))] == [2, 2]
    assert [part.item() for part in reader] == [1]


def test_items_are_taken_evenly_from_each_task():
    many = [item("a", number, "x") for number in range(2 * KL_ITEMS)] + [item("b", 0, "x")]
    chosen = sample_evenly(many)
    assert [row.id for row in chosen] == [*map(str, range(0, 2 * KL_ITEMS, 2)), "0"]
