"""The base's own thoughts on training questions, behind which the answers are learned.

A thinking model that learns answers without thoughts learns to answer without them. So the base thinks first, of the
question alone: with thinking on, a pair of the pocket world's kind is learned at

    <|im_start|>user\nWhat is the reactor of Figin?<|im_end|>\n<|im_start|>assistant\n
    <think>\nThey ask for the reactor of Figin.\n</think>\n\n  ->  The reactor of Figin is rope.<|im_end|>

and only what stands behind the arrow is learned. The reference is in no thought: the base had not seen it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from raft_tasks.generation.backend import Completion, Kind
from raft_tasks.sampling import SamplingParams
from raft_tasks.schemas import Prompt, TrainingPair, end_with
from raft_tasks.seeds import derive_seed
from raft_tasks.thoughts import has_thought, split_thought, strip_thoughts

if TYPE_CHECKING:
    from raft_tasks.generation.cached_backend import CachedBackend
    from raft_tasks.generation.served_base import ServedBase
    from raft_tasks.generation.transformers_backend import TransformersBackend

    Base = TransformersBackend | CachedBackend | ServedBase

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


def call_in_modes(
    model: Base, prompts: Sequence[Prompt], params: SamplingParams, seeds: Sequence[int], coins: Sequence[int]
) -> list[Completion]:
    """Completions in the mode(s) in which the model is served: with `both` those of odd coins are thought about.

    A thought has `thought_tokens` beside those of `params`.
    """
    mode = model.settings.thinking
    thinks = [mode == "on" or (mode == "both" and coin % 2 == 1) for coin in coins]
    beside: dict[Kind, int] = {"chat": 0, "thinking": model.settings.thought_tokens}
    completions: dict[int, Completion] = {}
    for kind, more in beside.items():
        chosen = [place for place, thinking in enumerate(thinks) if thinking == (kind == "thinking")]
        if chosen:
            drawn = model.call(
                kind,
                [prompts[place] for place in chosen],
                replace(params, max_tokens=params.max_tokens + more),
                [seeds[place] for place in chosen],
            )
            completions |= dict(zip(chosen, drawn, strict=True))
    return [completions[place] for place in range(len(prompts))]


def _spaced(thought: str) -> str:
    """A thought whose drawing ended at its last tag has no white space behind it yet."""
    return f"{thought}\n\n" if thought and thought == thought.rstrip() else thought
