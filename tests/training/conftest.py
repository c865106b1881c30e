from __future__ import annotations

from pathlib import Path

import pytest
from tiny import save_tiny

from raft_tasks.config import Model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def tiny_model(tiny_folder: Path) -> Model:
    return Model(path=str(tiny_folder), revision=None, dtype="float32", system=None)
