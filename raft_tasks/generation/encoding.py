"""The sentence encoder phi of the semantic filter: texts to unit vectors."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft_tasks.artifacts import digest_path
from raft_tasks.errors import InputError

if TYPE_CHECKING:
    import numpy

CACHE_VERSION = 1  # of how texts are encoded and compared: raise it where the same pair gets another similarity


def encoder_folder(name: str) -> Path | None:
    """The folder that `name` stands for: itself, or the `model` folder that the Python package `name` ships.

    None if it is neither, and so can only be a hub id.
    """
    if Path(name).is_dir():
        return Path(name)
    package = importlib.util.find_spec(name) if name.isidentifier() else None
    for folder in (package and package.submodule_search_locations) or []:
        if (Path(folder) / "model" / "modules.json").is_file():
            return Path(folder) / "model"
    return None


class SentenceEncoder:
    """A sentence-transformers model; it is loaded at the first use, onto the GPU where there is one.

    Threads may share one: it encodes for one of them at a time.
    """

    def __init__(self, name: str, revision: str | None) -> None:
        self.name, self.revision = name, revision
        self._lock = threading.Lock()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that determines the vectors of a text, as a JSON-like value: of a folder its bytes."""
        content = {"sha256": digest_path(Path(self.name))} if Path(self.name).is_dir() else {}
        return {"encoder": self.name, "revision": self.revision, "version": CACHE_VERSION, **content}

    @cached_property
    def model(self) -> Any:
        """
        Raises:
            InputError: `name` is no folder, no package with a model folder, and not to be had from the hub.
        """
        import torch
        from sentence_transformers import SentenceTransformer

        device = "cuda" if torch.cuda.is_available() else "cpu"
        folder = encoder_folder(self.name)
        try:
            if folder is not None:
                return SentenceTransformer(str(folder), device=device, local_files_only=True)
            return SentenceTransformer(self.name, revision=self.revision, device=device)
        except (OSError, ValueError) as error:
            raise InputError(
                f"encoder {self.name!r} (revision {self.revision}) cannot be loaded: expected a folder, an installed "
                f"package that ships <package>/model, or a hub id: {error}"
            ) from error

    def encode(self, texts: list[str], batch_size: int) -> numpy.ndarray:
        """Unit vectors, float32 [N, D]. A text beyond the encoder's length limit is judged by its beginning."""
        with self._lock:
            return self.model.encode(
                texts, batch_size=batch_size, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
            ).astype("float32")

    def similarities(self, pairs: Sequence[tuple[str, str]], batch_size: int) -> list[float]:
        """cos(phi(a), phi(b)) in [-1, 1] of each pair, to four decimals: what is decided is what the files show."""
        unique = list(dict.fromkeys(text for pair in pairs for text in pair))
        if not unique:
            return []
        vectors = dict(zip(unique, self.encode(unique, batch_size), strict=True))
        return [round(min(1.0, max(-1.0, float(vectors[a] @ vectors[b]))), 4) for a, b in pairs]


@cache
def shared_encoder(name: str, revision: str | None) -> SentenceEncoder:
    """One per process."""
    return SentenceEncoder(name, revision)
