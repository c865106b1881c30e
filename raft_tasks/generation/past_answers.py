"""Past questions as the model in production answers them: what the next training replays (arXiv:2605.29495).

The paper rolls the latest checkpoint out on prompts of earlier tasks, keeps what its task reward passes, and learns it
by SFT. Here the reward is the row's own: its `expected` strings, and the domain's checks or the facts of its reference.
"""

from __future__ import annotations

from collections.abc import Sequence

from raft_tasks.checks import Checks
from raft_tasks.generation.anchor_cleaning import degenerate
from raft_tasks.generation.backend import Backend, Completion
from raft_tasks.generation.fidelity import lost_from
from raft_tasks.sampling import SamplingParams
from raft_tasks.schemas import Example, TrainingPair, end_with


def answer_past(
    rows: Sequence[Example], production: Backend, checks: Checks, max_new_tokens: int, batch_size: int
) -> list[TrainingPair]:
    """The rows' questions with production's own greedy answers; rows that it does not answer right are left out."""
    params = SamplingParams(temperature=0.0, max_tokens=max_new_tokens, batch_size=batch_size)
    answers = production.generate([end_with(row.history, row.question) for row in rows], params, [0] * len(rows))
    return [
        TrainingPair(id=row.id, question=row.question, answer=answer.text.strip(), history=row.history)
        for row, answer in zip(rows, answers, strict=True)
        if is_right(row, answer, checks)
    ]


def is_right(row: Example, answer: Completion, checks: Checks) -> bool:
    """Whether the answer is whole, says the expected strings, and keeps what the reference says."""
    text = answer.text.strip()
    if not answer.finished or not text or degenerate(text):
        return False
    folded = text.casefold()
    return all(part.casefold() in folded for part in row.expected) and not lost_from(row, text, checks)
