"""The sentence encoder phi of the semantic filter: texts to unit vectors."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raft_tasks.artifacts import digest_path
from raft_tasks.control_tokens import defuse
from raft_tasks.errors import InputError
from raft_tasks.model_files import is_pointer, read_header

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
        for path in filter(Path.is_file, sorted(folder.rglob("*")) if folder else []):
            if is_pointer(path):
                raise InputError(f"encoder {self.name!r}: {path} is a Git LFS pointer; run `git lfs pull` there")
        try:
            if folder is not None:
                model = SentenceTransformer(str(folder), device=device, local_files_only=True)
            else:
                model = SentenceTransformer(self.name, revision=self.revision, device=device)
        except Exception as error:  # of a file that was cut, tokenizers and safetensors raise errors of their own
            raise InputError(
                f"encoder {self.name!r} (revision {self.revision}) cannot be loaded: expected a folder, an installed "
                f"package that ships <package>/model, or a hub id: {error}"
            ) from error
        self._check_whole(model, folder)
        return model

    def _check_whole(self, model: Any, folder: Path | None) -> None:
        """Raises InputError where weights of the transformer are not in its file: they would be drawn at random."""
        files = sorted(folder.rglob("model*.safetensors")) if folder else []
        network = getattr(model[0], "auto_model", None)
        if not files or network is None:
            return
        stored = {name for file in files for name in read_header(file)}
        stored |= {name.removeprefix(f"{network.base_model_prefix}.") for name in stored}
        missing = sorted(
            name for name, _ in network.named_parameters() if name not in stored and not name.startswith("pooler.")
        )  # a pooler is not used, and often not stored
        if missing:
            raise InputError(
                f"encoder {self.name!r}: {len(missing)} of its weights are not in {files[0]} "
                f"({', '.join(missing[:3])}, ...); copy or download it again"
            )

    def encode(self, texts: list[str], batch_size: int) -> numpy.ndarray:
        """Unit vectors, float32 [N, D]. A text beyond the encoder's length limit is judged by its beginning."""
        with self._lock:
            tokenizer = self.model.tokenizer
            if hasattr(tokenizer, "added_tokens_decoder"):  # as transformers makes them
                texts = [defuse(tokenizer, text) for text in texts]
            return self.model.encode(
                texts,
                batch_size=batch_size,
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
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
