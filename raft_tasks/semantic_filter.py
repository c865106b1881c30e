"""Task of the stage `semantic_filter`: similarities of a chunk of rows. The rule itself costs nothing."""

from __future__ import annotations

from raft_tasks.caching import cached_task
from raft_tasks.generation import encoding
from raft_tasks.generation.encoding import SentenceEncoder


@cached_task(encoding, ignore=("encoder", "batch_size"))
def similarity_chunk(
    pairs: list[tuple[str, str]], name: str, revision: str | None, encoder: SentenceEncoder, batch_size: int
) -> list[float]:
    """s_i = cos(phi(y_i), phi(y~_i)) of each pair (Eq. 2), in [-1, 1]; `name` and `revision` identify the encoder."""
    return encoder.similarities(pairs, batch_size)
