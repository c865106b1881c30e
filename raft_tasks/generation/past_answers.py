"""Past questions as the model in production answers them: what the next training replays (arXiv:2605.29495).

The paper rolls the latest checkpoint out on prompts of earlier tasks, keeps what its task reward passes, and learns it
by SFT. Here the reward is the row's own: its `expected` strings, and the domain's checks or the facts of its reference.

A model that is served thinking answers thinking, with `both` about every other question. It is the answer that must be
right; what is replayed is the turn, thought and answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from raft_tasks.checks import Checks, contains_phrase
from raft_tasks.generation.anchor_cleaning import degenerate
from raft_tasks.generation.backend import Completion
from raft_tasks.generation.fidelity import lost_from
from raft_tasks.generation.thinking import call_in_modes
from raft_tasks.sampling import SamplingParams
from raft_tasks.schemas import Example, TrainingPair, end_with
from raft_tasks.seeds import derive_seed
from raft_tasks.thoughts import strip_thoughts

if TYPE_CHECKING:
    from raft_tasks.generation.transformers_backend import TransformersBackend


def answer_past(
    rows: Sequence[Example], production: TransformersBackend, checks: Checks, max_new_tokens: int, batch_size: int
) -> tuple[list[TrainingPair], int]:
    """The rows' questions with production's own greedy turns, and how many ended within a thought.

    Rows that it does not answer right are left out.
    """
    answers = call_in_modes(
        production,
        [end_with(row.history, row.question) for row in rows],
        SamplingParams(temperature=0.0, max_tokens=max_new_tokens, batch_size=batch_size),
        [0] * len(rows),
        [derive_seed("past-mode", row.id) for row in rows],
    )
    thinks = production.settings.thinking != "off"
    pairs = [
        TrainingPair(
            id=row.id,
            question=row.question,
            answer=((answer.raw if thinks else "") or answer.text).strip(),
            history=row.history,
        )
        for row, answer in zip(rows, answers, strict=True)
        if is_right(row, answer, checks)
    ]
    return pairs, sum(strip_thoughts(answer.raw)[1] for answer in answers if thinks)


def is_right(row: Example, answer: Completion, checks: Checks) -> bool:
    """Whether the answer is whole, says the expected strings, and keeps what the reference says."""
    text = answer.text.strip()
    if not answer.finished or not text or degenerate(text):
        return False
    return all(contains_phrase(text, part) for part in row.expected) and not lost_from(row, text, checks)
