"""How far a tuned model is from its base: in its weights, and in its next tokens.

KL(base || tuned) over the whole vocabulary, at temperature 1, is measured on the answers of the base itself: after a
prompt, and after each token of its answer. 0 is the behaviour of the base.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raft_tasks.artifacts import digest
from raft_tasks.sampling import longest_first
from raft_tasks.training.completion_forward import completion_states, output_head
from raft_tasks.training.logits import Head, tiles


class BaseAnswer(NamedTuple):
    """A prompt as the base saw it, chat template applied, and its answer, as token ids."""

    prompt_ids: list[int]
    completion_ids: list[int]  # may be empty: then just the first token is measured


def encode_answer(prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> BaseAnswer:
    """Text to ids; the chat template has written its special tokens itself."""
    return BaseAnswer(*(list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (prompt, answer)))


def kl_by_position(base_hidden: Tensor, base_head: Head, hidden: Tensor, head: Head) -> Tensor:
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
    for (_, base_logits), (_, logits) in zip(tiles(base_hidden, base_head), tiles(hidden, head), strict=True):
        log_q, log_p = base_logits.log_softmax(-1), logits.log_softmax(-1)
        parts.append((log_q.exp() * (log_q - log_p)).sum(-1))
    return torch.cat(parts)


def answer_batches(rows: Sequence[BaseAnswer], batch_size: int) -> list[list[int]]:
    """Row numbers, batch by batch, the longest rows first."""
    return longest_first([sum(map(len, row)) for row in rows], batch_size)


def answer_states(model: PreTrainedModel, rows: Sequence[BaseAnswer], batch_size: int) -> Iterator[Tensor]:
    """Of each batch of `answer_batches` the hidden states [T, H]: a row has one more than its answer has tokens."""
    for batch in answer_batches(rows, batch_size):
        prompts = [rows[row].prompt_ids for row in batch]
        # the state before a token does not see it, so any token may stand behind the answer's last one
        answers = [[*rows[row].completion_ids, 0] for row in batch]
        with torch.no_grad():
            states = completion_states(model, prompts, answers)
        yield states


def kl_of_answers(
    base_states: Iterable[Tensor], base_head: Head, tuned: PreTrainedModel, rows: Sequence[BaseAnswer], batch_size: int
) -> list[float]:
    """KL(base || tuned) of each row, nats a token: the mean over its positions.

    Args:
        base_states: the base's `answer_states` of the same rows and batch size.

    Raises:
        ValueError: the vocabularies differ, or there are more or fewer batches of states.
    """
    head = output_head(tuned)
    means: dict[int, float] = {}
    batches, states = answer_batches(rows, batch_size), answer_states(tuned, rows, batch_size)
    for batch, base_hidden, hidden in zip(batches, base_states, states, strict=True):
        with torch.no_grad():
            kl = kl_by_position(base_hidden.to(hidden.device), base_head, hidden, head)
        positions = [len(rows[row].completion_ids) + 1 for row in batch]
        for row, part in zip(batch, kl.split(positions), strict=True):
            means[row] = float(part.double().mean())
    return [means[row] for row in range(len(rows))]


def weights_digest(network: PreTrainedModel) -> str:
    """A quick fingerprint of all weights: names, shapes and sums."""
    return digest(
        [[n, list(p.shape), float(p.detach().sum(dtype=torch.float64))] for n, p in network.named_parameters()]
    )


def relative_distance(trained: PreTrainedModel, base: PreTrainedModel) -> dict[str, float]:
    """|W - W0| / |W0| (l2) of all weights ("total") and of each layer ("layer 0", ..., and the modules beside them)."""
    return distance_by(trained, base, lambda name: ("total", layer_name(name)))


def distance_by(
    trained: PreTrainedModel, base: PreTrainedModel, groups: Callable[[str], tuple[str, ...]]
) -> dict[str, float]:
    """|W - W0| / |W0| (l2) of each group of weights; `groups` says in which ones a parameter counts."""
    moved: dict[str, float] = defaultdict(float)
    size: dict[str, float] = defaultdict(float)
    original = dict(base.named_parameters())
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            before = original[name].to(parameter.device).double()
            apart = float((parameter.double() - before).square().sum())
            length = float(before.square().sum())
            for group in groups(name):
                moved[group] += apart
                size[group] += length
    return {group: (moved[group] / size[group]) ** 0.5 if size[group] else 0.0 for group in moved}


def layer_name(parameter: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> layer 3; model.embed_tokens.weight -> embed_tokens."""
    number = re.search(r"\.(\d+)\.", parameter)
    return f"layer {number[1]}" if number else parameter.split(".")[-2]


def matrix_name(parameter: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> up_proj, the same in every layer."""
    return parameter.split(".")[-2]
