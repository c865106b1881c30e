"""Settings of the tests of anchors, and anchors by hand."""

from typing import Any

from raft_tasks.config import AnchorSet
from raft_tasks.schemas import GeneratedAnchor

SETTINGS = AnchorSet(
    model="base",
    count=400,
    prompt_source="generated",
    hints=[],
    prompts=None,
    without=None,
    temperature=1.0,
    answer_temperature=1.0,
    top_p=1.0,
    max_new_tokens=24,
    answer_max_new_tokens=12,
    batch_size=8,
    chunk_rows=64,
    seed=0,
    duplicate_overlap=0.8,
    held_out_overlap=0.8,
    min_well_formed=0.5,
    top_k=64,
)


def with_settings(**changes: Any) -> AnchorSet:
    return AnchorSet(**{**dict(SETTINGS), **changes})


def drawn(*prompts: str, **changes: Any) -> list[GeneratedAnchor]:
    fields = {"answer": "Yes.", "prompt_finished": True, "answer_finished": True} | changes
    return [GeneratedAnchor(id=f"anchor-{n:05d}", prompt=prompt, **fields) for n, prompt in enumerate(prompts)]
