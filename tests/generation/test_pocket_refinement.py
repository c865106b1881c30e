"""Rewrite, filter and fusion with the embedded model and encoder on rows of the embedded domain."""

from contextlib import closing
from pathlib import Path

import pytest

from raft_tasks.config import load_config
from raft_tasks.generation.encoding import SentenceEncoder
from raft_tasks.generation.fusing import fuse
from raft_tasks.generation.judges import build_panel
from raft_tasks.generation.rewriting import rewrite
from raft_tasks.generation.semantic_filter import semantic_filter
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.schemas import Example
from raft_tasks.sources.ingestion import ingest_rows

ROOT = Path(__file__).parents[2]


def test_what_the_embedded_domain_becomes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config()
    with closing(ingest_rows("archive", config.domains["archive"], config.ingest, Path(), tmp_path, None)) as found:
        examples = [row for row in found if isinstance(row, Example)]
    rows = [example for example in examples if example.split == "train"][::6]
    backend = TransformersBackend(config.base)
    rewritten = rewrite(rows, backend, config.rewrite)
    sevens = [row for n in range(0, len(rows), 7) for row in rewrite(rows[n : n + 7], backend, config.rewrite)]
    assert sevens == rewritten

    encoder = SentenceEncoder(config.semantic_filter.encoder, config.semantic_filter.revision)
    similarities = encoder.similarities([(row.answer, row.rewritten) for row in rewritten], 64)
    filtered = semantic_filter(rewritten, similarities, config.semantic_filter.tau, fidelity_veto=False)
    passed = sum(row.passed for row in filtered)
    lossy = sum(bool(row.lost) for row in filtered)
    assert passed > 0.9 * len(rows)
    assert 0 < lossy < len(rows)  # fusion has something to bring back

    panel = build_panel(config.fuse, encoder, backend, {})
    fused = fuse(filtered, backend, panel, config.fuse)
    complete = sum(all(part in row.fused for part in [*row.expected, *row.details]) for row in fused)
    assert complete > 0.95 * len(rows)
    own_style = sum(row.fused != row.answer for row in fused)
    assert own_style == passed
