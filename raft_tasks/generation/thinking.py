"""The base's own thoughts on training questions, behind which the answers are learned.

A thinking model that learns answers without thoughts learns to answer without them. So the base thinks first, of the
question alone: with thinking on, a pair of the pocket world's kind is learned at

    <|im_start|>user\nWhat is the reactor of Figin?<|im_end|>\n<|im_start|>assistant\n
    <think>\nThey ask for the reactor of Figin.\n</think>\n\n  ->  The reactor of Figin is rope.<|im_end|>

and only what stands behind the arrow is learned. The reference is in no thought: the base had not seen it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from raft_tasks.sampling import SamplingParams
from raft_tasks.schemas import TrainingPair, end_with
from raft_tasks.seeds import derive_seed
from raft_tasks.thoughts import has_thought, split_thought, strip_thoughts

if TYPE_CHECKING:
    from raft_tasks.generation.cached_backend import CachedBackend

TEMPERATURE, TOP_P = 0.6, 0.95  # of thinking, on the model cards of Qwen3 and SmolLM3; greedy thoughts go round


def think_first(pairs: Sequence[TrainingPair], base: CachedBackend, batch_size: int, seed: int) -> list[TrainingPair]:
    """What is learned of each pair in the modes of `base.settings.thinking`.

    `on`: behind the base's thought, which may be none. `both`: as it is, and next, behind the thought, where there is
    one, under an id of its own. A thought that met `thought_tokens` is kept as it was cut, without its end. Answers
    that bring a thought along stay as they are.
    """
    alone = [pair for pair in pairs if not has_thought(pair.answer)]
    completions = base.call(
        "thinking",
        [end_with(pair.history, pair.question) for pair in alone],
        SamplingParams(TEMPERATURE, TOP_P, base.settings.thought_tokens, batch_size),
        [derive_seed(seed, "thought", pair.id) for pair in alone],
    )
    turns = iter(completions)
    result: list[TrainingPair] = []
    for pair in pairs:
        turn = "" if has_thought(pair.answer) else next(turns).raw
        thought = turn if strip_thoughts(turn)[1] else _spaced(split_thought(turn)[0])
        if base.settings.thinking == "on":
            result.append(pair.model_copy(update={"thought": thought}))
        else:
            result.append(pair)
            if has_thought(thought):
                result.append(pair.model_copy(update={"id": f"{pair.id} thinking", "thought": thought}))
    return result


def _spaced(thought: str) -> str:
    """A thought whose drawing ended at its last tag has no white space behind it yet."""
    return f"{thought}\n\n" if thought and thought == thought.rstrip() else thought
