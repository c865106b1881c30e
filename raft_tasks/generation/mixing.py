"""MixSD (arXiv:2605.16865): answers that the base writes itself, token by token with or without the reference.

    y_t = argmax p_base(. | question, y_<t)              with probability `naive_share`: what the base would say
    y_t = argmax p_base(. | reference, question, y_<t)   else: the fact, in the base's own words

An answer that is not right is drawn again with other choices, and dropped after `attempts`: greedy decoding, the share
and the rejection are those of the authors' code (github.com/jiarui-liu/MixSD); what counts as right is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from raft_tasks.chat import prompt_ids, stop_ids
from raft_tasks.checks import contains_phrase
from raft_tasks.config import Mixing, Model
from raft_tasks.control_tokens import special_tokens
from raft_tasks.errors import InputError
from raft_tasks.generation.fidelity import lost_facts
from raft_tasks.model_loading import load_model
from raft_tasks.sampling import longest_first, uniform_draws
from raft_tasks.schemas import TrainingPair, end_with
from raft_tasks.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def mix_tokens(
    model: PreTrainedModel,
    prompts: Sequence[tuple[list[int], list[int]]],
    seeds: Sequence[int],
    settings: Mixing,
    ends: Sequence[int],
) -> list[list[int]]:
    """An answer to each pair of prompts (without, with the reference), up to and with the first token of `ends`.

    Both prompts of a row are continued by the same tokens; which of them decides a token follows from its seed.
    """
    import torch

    from raft_tasks.decoding import decode

    choices = uniform_draws(seeds, settings.max_new_tokens).to(model.device) < settings.naive_share

    def choose(logits: Tensor, rows: Tensor, step: int) -> Tensor:
        """A row's prompts stand in the first and the second half; as they get the same token, they end together."""
        naive, expert = logits.argmax(-1).chunk(2)
        return torch.where(choices[rows[: len(naive)], step], naive, expert).repeat(2)

    naive, expert = zip(*prompts, strict=True)
    with torch.no_grad():
        return decode(model, [*naive, *expert], choose, ends, settings.max_new_tokens)[: len(prompts)]


def is_right(pair: TrainingPair, text: str) -> bool:
    """Whether `text` says every expected string, and keeps the reference's facts that fidelity.py sees."""
    complete = all(contains_phrase(text, phrase) for phrase in pair.expected)
    return complete and not lost_facts(pair.answer, text)


def mix_answers(
    pairs: Sequence[TrainingPair],
    base: Model,
    settings: Mixing,
    guide: Callable[[TrainingPair], str],
    seed: int,
    progress: Callable[[int, int, str], None] = lambda done, total, shown: None,
) -> list[TrainingPair]:
    """The pairs with mixed answers, without those that got no right one; pairs to replay stay as they are.

    Args:
        guide: the user turn that shows a pair's reference.
        progress: gets answers drawn, how many there are at most, and a status.

    Raises:
        InputError: no pair got a right answer.
    """
    import torch

    network, tokenizer = load_model(base, getattr(torch, base.dtype))
    model = network.to("cuda" if torch.cuda.is_available() else "cpu").eval()  # type: ignore[arg-type]
    ends = stop_ids(tokenizer, model.generation_config.eos_token_id)
    learned = {pair.id: pair for pair in pairs if not pair.replay}
    prompts = {
        id: (
            prompt_ids(tokenizer, base.system, end_with(pair.history, pair.question)),
            prompt_ids(tokenizer, base.system, end_with(pair.history, guide(pair))),
        )
        for id, pair in learned.items()
    }
    special, unknown = {*special_tokens(tokenizer).values()}, tokenizer.unk_token_id
    mixed: dict[str, str] = {}
    drawn = 0
    for attempt in range(settings.attempts):
        pending = [id for id in learned if id not in mixed]
        total = drawn + len(pending) * (settings.attempts - attempt)
        for batch in longest_first([len(prompts[id][1]) for id in pending], settings.batch_size):
            ids = [pending[i] for i in batch]
            seeds = [derive_seed(seed, "mixing", id, attempt) for id in ids]
            answers = mix_tokens(model, [prompts[id] for id in ids], seeds, settings, ends)
            for id, tokens in zip(ids, answers, strict=True):
                text = str(tokenizer.decode(tokens[:-1])).strip()
                whole = tokens[-1] in ends and special.isdisjoint(tokens[:-1])
                known = unknown not in tokenizer(text, add_special_tokens=False)["input_ids"]  # decoding joins pieces
                if text and whole and known and is_right(learned[id], text):
                    mixed[id] = text
            drawn += len(batch)
            progress(drawn, total, f"{len(mixed)} of {len(learned)} rows have a right one")
    if not mixed:
        raise InputError(
            f"mixing: none of {len(learned)} rows got a right answer in {settings.attempts} attempts, with "
            f"naive_share {settings.naive_share}; expected some: lower naive_share, raise attempts or max_new_tokens"
        )
    return [
        pair if pair.replay else pair.model_copy(update={"answer": mixed[pair.id], "finished": True})
        for pair in pairs
        if pair.replay or pair.id in mixed
    ]
