"""How far a tuned model's next word is from the base's: KL(base || tuned) over the whole vocabulary, at temperature 1.

Measured along what the base itself says: after a prompt, and after each token of the base's own answer to it, both
models give a distribution over the next token, and the base's is the reference. 0 is the base's behaviour, whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from raft_tasks.training.losses import Head, tiles
from raft_tasks.training.scoring import completion_states, output_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Said(NamedTuple):
    """A prompt as the base saw it, chat template applied, and what it answered, as token ids."""

    prompt: list[int]
    answer: list[int]  # may be empty: then just the first token is looked at


def as_said(prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> Said:
    """Text to ids; the chat template has written its special tokens itself."""
    return Said(*(list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (prompt, answer)))


def kl_by_position(base_hidden: Tensor, base_head: Head, hidden: Tensor, head: Head, tile: int | None = None) -> Tensor:
    """KL(base || tuned) [T], in nats, of hidden states [T, H] and output heads. No [T, V] tensor outlives its tile.

    Raises:
        ValueError: the vocabularies differ.
    """
    if len(base_head.weight) != len(head.weight):
        raise ValueError(
            f"the base has a vocabulary of {len(base_head.weight)}, the tuned model one of {len(head.weight)}; "
            "expected equal ones"
        )
    parts = []
    for (_, base_logits), (_, logits) in zip(
        tiles(base_hidden, base_head, tile), tiles(hidden, head, tile), strict=True
    ):
        log_q, log_p = base_logits.log_softmax(-1), logits.log_softmax(-1)
        parts.append((log_q.exp() * (log_q - log_p)).sum(-1))
    return torch.cat(parts)


def kl_of_answers(base: PreTrainedModel, tuned: PreTrainedModel, rows: Sequence[Said], batch_size: int) -> list[float]:
    """KL(base || tuned) of each row, nats a token: the mean over its positions, one more than its answer has tokens.

    Raises:
        ValueError: the vocabularies differ.
    """
    heads = output_head(base), output_head(tuned)
    order = sorted(range(len(rows)), key=lambda row: -(len(rows[row].prompt) + len(rows[row].answer)))
    found: dict[int, float] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        prompts = [rows[row].prompt for row in batch]
        # the state before a token does not see it, so any token may stand behind the answer's last one
        answers = [[*rows[row].answer, 0] for row in batch]
        with torch.no_grad():
            hidden, own = (completion_states(model, prompts, answers) for model in (base, tuned))
            each = kl_by_position(hidden, heads[0], own, heads[1])
        means = [float(part.double().mean()) for part in each.split([*map(len, answers)])]
        found |= dict(zip(batch, means, strict=True))
    return [found[row] for row in range(len(rows))]
