from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from raft_tasks.artifacts import write_shard
from raft_tasks.config import Harvest, Hub
from raft_tasks.errors import InputError
from raft_tasks.harvest import harvest_documents
from raft_tasks.schemas import Chunk, Harvested
from raft_tasks.sources import hub
from raft_tasks.sources.documents import chunks

ROWS = [
    {"text": f"Document {n}. " * (1 if n == 3 else 40), "open_type": "Open Science" if n % 2 else "Open Web", "n": n}
    for n in range(20)
]


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus").mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "corpus" / "train.parquet")
    monkeypatch.chdir(tmp_path)


def source(limit: int, where: dict[str, list[str]], **changes: Any) -> Harvest:
    values = {"id": "corpus", "config": None, "data_files": None, "split": "train", "revision": None, "streaming": True}
    return Harvest(hub=Hub(**values | {"where": where, "limit": limit} | changes), text="text", max_characters=300)


def test_documents_are_chosen_by_metadata_bounded_and_lean_one_by_one(tmp_path: Path) -> None:
    found = harvest_documents.fn("science", [source(4, {"open_type": ["Open Science"]}), source(1, {})])
    origins = ["corpus/train#2", "corpus/train#6", "corpus/train#8", "corpus/train#10", "corpus/train#1"]
    assert [document.origin for document in found] == origins  # the fourth is too short
    assert {len(document.text) for document in found} == {300}
    path = tmp_path / "harvested.parquet"
    write_shard(path, [document.model_dump_json() for document in found], Harvested)
    cut = list(chunks([path], min_characters=100, max_characters=200))
    assert all(isinstance(chunk, Chunk) for chunk in cut)
    assert {chunk.file for chunk in cut} == {f"{path}#{number}" for number in range(1, 6)}


def test_metadata_that_no_document_has_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"harvest\.law: corpus/train has no text of 200 characters or more where"):
        harvest_documents.fn("law", [source(4, {"open_type": ["Open Government"]})])
    monkeypatch.setattr(hub, "SCANNED", 10)
    with pytest.raises(InputError, match=r"none of the first 10 rows has \{'open_type': \['Open Government'\]\}"):
        harvest_documents.fn("law", [source(4, {"open_type": ["Open Government"]})])
