"""Task of the stage `semantic_filter`: similarities of a chunk of rows; the rule itself costs nothing and is not cached."""

from __future__ import annotations

from raft_tasks.caching import cached_task
from raft_tasks.generation import encoding
from raft_tasks.generation.encoding import SentenceEncoder


@cached_task(encoding, ignore=("encoder", "batch_size"))
def similarity_chunk(
    pairs: list[tuple[str, str]], name: str, revision: str | None, encoder: SentenceEncoder, batch_size: int
) -> list[float]:
    """cos(phi(a), phi(b)) of each pair of texts (Eq. 2), in [-1, 1]; `name` and `revision` identify the encoder."""
    return encoder.similarities(pairs, batch_size)
