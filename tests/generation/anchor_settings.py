"""Settings of the tests of anchors, and anchors by hand."""

from typing import Any

from raft_tasks.config import AnchorSet
from raft_tasks.schemas import GeneratedAnchor

SETTINGS = AnchorSet(count=400, max_new_tokens=24, answer_max_new_tokens=12, batch_size=8, chunk_rows=64)


def with_settings(**changes: Any) -> AnchorSet:
    return AnchorSet(**{**dict(SETTINGS), **changes})


def drawn(*prompts: str, **changes: Any) -> list[GeneratedAnchor]:
    fields = {"answer": "Yes.", "prompt_finished": True, "answer_finished": True} | changes
    return [GeneratedAnchor(id=f"anchor-{n:05d}", prompt=prompt, **fields) for n, prompt in enumerate(prompts)]
