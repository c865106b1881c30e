"""Log-likelihoods of a question's choices: what they follow is read once, where lm-eval reads it for every choice."""

from collections.abc import Callable, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from raft_tasks.artifacts import batched
from raft_tasks.decoding import new_cache
from raft_tasks.sampling import left_pad

# (text of context and continuation, tokens of the context, tokens of the continuation), as lm-eval makes it
Request = tuple[tuple[str, str], list[int], list[int]]
Score = tuple[float, bool]  # log-probability in nats; whether greedy decoding gives these tokens
SAVED_TOKENS = 8  # that sharing must save at least: a pass of its own costs something too


def by_context(requests: Sequence[Request]) -> tuple[list[list[int]], list[int]]:
    """Numbers of the requests that share a context, longest contexts first, and those of all others.

    lm-eval itself reads a context once for choices of one token.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, (_, context, _) in enumerate(requests):
        groups.setdefault(tuple(context), []).append(number)
    shared = [
        numbers
        for context, numbers in groups.items()
        if len(context) * (len(numbers) - 1) >= SAVED_TOKENS and any(len(requests[n][2]) > 1 for n in numbers)
    ]
    taken = {number for numbers in shared for number in numbers}
    shared.sort(key=lambda numbers: -len(requests[numbers[0]][1]))
    return shared, [number for number in range(len(requests)) if number not in taken]


def score_shared(
    model: PreTrainedModel,
    requests: Sequence[Request],
    groups: Sequence[Sequence[int]],
    batch_size: int,
    scored: Callable[[int, Score], None],
) -> None:
    """Call `scored` with the number and the score of each request of the groups.

    A batch has at most `batch_size` requests; a group stays together where it fits in one.
    """
    batch: list[Sequence[int]] = []
    parts: list[Sequence[int] | None] = [part for group in groups for part in batched(group, batch_size)]
    for group in [*parts, None]:
        if batch and (group is None or sum(map(len, batch)) + len(group) > batch_size):
            contexts = [requests[numbers[0]][1] for numbers in batch]
            choices = [[requests[number][2] for number in numbers] for numbers in batch]
            numbers = [number for numbers in batch for number in numbers]
            for number, score in zip(numbers, score_choices(model, contexts, choices), strict=True):
                scored(number, score)
            batch = []
        if group is not None:
            batch.append(group)


@torch.no_grad()
def score_choices(
    model: PreTrainedModel, contexts: Sequence[list[int]], choices: Sequence[Sequence[list[int]]]
) -> list[Score]:
    """The score of each context's choices, in order; all are token ids, and none is empty."""
    cache = new_cache(model)
    ids, mask = left_pad(contexts, 0, model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    read = {"past_key_values": cache, "use_cache": True}
    first = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, **read).logits
    owners = torch.tensor([number for number, group in enumerate(choices) for _ in group], device=model.device)
    texts = [torch.tensor(choice, device=model.device) for group in choices for choice in group]
    tokens = pad_sequence(texts, batch_first=True)  # [rows, T]
    valid = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    logits = first[owners]  # [rows, 1, V]
    if tokens.shape[1] > 1:
        cache.batch_select_indices(owners)
        seen = torch.cat([mask[owners], valid[:, :-1]], dim=1)
        positions = seen.cumsum(-1)[:, mask.shape[1] :] - 1
        rest = model(input_ids=tokens[:, :-1], attention_mask=seen, position_ids=positions, **read).logits
        logits = torch.cat([logits, rest], dim=1)  # [rows, T, V]
    of_tokens = logits.log_softmax(-1, dtype=torch.float32).gather(-1, tokens[..., None])[..., 0]
    greedy = (logits.argmax(-1) == tokens) | (valid == 0)
    return list(zip((of_tokens * valid).sum(-1).tolist(), greedy.all(-1).tolist(), strict=True))
