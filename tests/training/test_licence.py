"""What the base's card states of its licence, and its licence files, go with what is trained from it."""

import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import metadata_load
from trainer_runs import run

from raft_tasks.config import Model
from raft_tasks.training.licence import copy_licence, read_licence

ROOT = Path(__file__).parents[2]
LLAMA = {"license": "other", "license_name": "llama3.2", "license_link": "LICENSE.txt"}


@pytest.fixture
def licensed(tiny_folder, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny_folder, folder)
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({**LLAMA, 'language': 'en'})}---\n# A base\n")
    (folder / "LICENSE.txt").write_text("Do no harm.")
    (folder / "NOTICE").write_text("Built with it.")
    return Model(path=str(folder), dtype="float32")


@pytest.mark.parametrize("method", ["sft", "sft_lora"])
def test_a_trained_model_carries_the_licence_of_its_base(licensed, tmp_path, method):
    run(licensed, tmp_path, method)
    folder = tmp_path / "output" / "model"
    stated = metadata_load(folder / "README.md")
    assert {key: stated[key] for key in LLAMA} == LLAMA
    assert stated["base_model"] == licensed.path
    assert "| licence | other llama3.2 LICENSE.txt |" in (folder / "README.md").read_text()
    assert (folder / "LICENSE.txt").read_text() == "Do no harm."
    assert (folder / "NOTICE").read_text() == "Built with it."


def test_what_a_card_does_not_state_is_not_known(licensed, tmp_path):
    assert read_licence(licensed) == LLAMA
    card = Path(licensed.path) / "README.md"
    for text in ("# No front matter", "---\nlanguage: en\n---\n", "---\n: [\n---\n"):
        card.write_text(text)
        assert read_licence(licensed) == {}
    card.unlink()
    assert read_licence(licensed) == {}
    run(licensed, tmp_path, "sft")
    text = (tmp_path / "output/model/README.md").read_text()
    assert "| licence | not known here: see the base model's own card |" in text
    assert "license" not in metadata_load(tmp_path / "output/model/README.md")


def test_the_embedded_models_state_theirs():
    for folder in ("models/pocket-base", "worlds/hard/model", "worlds/second/model"):
        assert read_licence(Model(path=str(ROOT / folder))) == {"license": "apache-2.0"}


def test_a_base_of_the_hub_is_asked_for_card_and_licence(licensed, tmp_path, monkeypatch):
    asked = []

    def download(path, revision, allow_patterns):
        asked.append((path, revision))
        assert {"README.md", "LICENSE*"} <= set(allow_patterns)
        return licensed.path

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    base = Model(path="owner/name", revision="a" * 40)
    assert read_licence(base) == LLAMA
    (tmp_path / "to").mkdir()
    copy_licence(base, tmp_path / "to")
    assert {path.name for path in (tmp_path / "to").iterdir()} == {"LICENSE.txt", "NOTICE"}
    assert asked == [("owner/name", "a" * 40)] * 2

    def fail(*_, **__):
        raise FileNotFoundError("offline, and not in the cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    assert read_licence(base) == {}
