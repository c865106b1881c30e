"""Anchors: general user turns that the base generates after its chat template's user mark, with its own answers.

An instruction model that reads the template up to where a user's words begin goes on with words that a user might
write (Magpie, arXiv:2406.08464; against forgetting, arXiv:2506.09428). Answered by itself, they show what it can do
without any of the data it learned from.

One anchor of the pocket world:

    {"id": "anchor-00007", "prompt": "Tell me the charm of Sodin. Say it twice.",
     "answer": "The charm of Sodin is linen. The charm of Sodin is linen."}

Two other sources: `dialogue`, where the base goes on talking with itself (arXiv:2602.20162) and its second answer is
the anchor, and `beginning`, texts without any prompt (context-free: arXiv:2505.13811, 2605.26097).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from random import Random
from typing import TYPE_CHECKING

from raft_tasks.chat import ChatError, render, text_beginning
from raft_tasks.config import AnchorSet
from raft_tasks.control_tokens import special_tokens
from raft_tasks.errors import InputError
from raft_tasks.generation.backend import Completion
from raft_tasks.generation.thinking import call_in_modes
from raft_tasks.sampling import SamplingParams
from raft_tasks.schemas import GeneratedAnchor, Turn, UserTurn, end_with
from raft_tasks.seeds import derive_seed
from raft_tasks.thoughts import strip_thoughts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raft_tasks.generation.thinking import Base

MARKER = "Marker7"  # no white space at its ends: some templates strip the content


def user_prefix(
    tokenizer: PreTrainedTokenizerBase, system: str | None, hint: str | None = None, history: Sequence[Turn] = ()
) -> list[int]:
    """Token ids of the chat template up to where a user's words begin, the system prompt included.

    Args:
        hint: what the system prompt says beside `system`, if anything.
        history: the turns before.

    Raises:
        ChatError: the template drops or refuses a system prompt.
        InputError: if the tokenizer has no chat template, or one that shows a user's words changed or not just once,
            or begins with them.
    """
    before, _ = _split_at_user_words(tokenizer, system, hint, history)
    # Where the last token before the words would merge with them ("[INST] " + "What"), it is left to the model.
    both = zip(_tokens(tokenizer, before), _tokens(tokenizer, before + MARKER), strict=False)
    prefix = [token for token, _ in takewhile(lambda tokens: tokens[0] == tokens[1], both)]
    if not prefix:
        raise InputError(
            f"the chat template of {tokenizer.name_or_path!r} begins with the user's words; expected a mark before "
            "them, after which the model can generate a user's turn"
        )
    return prefix


def user_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a user's turn: the first special token after the words.

    The generation prompt counts as after, since some templates (DeepSeek, Mistral) have no other end of a user's turn.

    Raises:
        InputError: as `user_prefix`; or if no special token follows.
    """
    _, after = _split_at_user_words(tokenizer, None, None)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for token in _tokens(tokenizer, after):
        if token in special and str(tokenizer.decode([token])).strip():  # some add runs of white space as tokens
            return token
    raise InputError(
        f"the chat template of {tokenizer.name_or_path!r} goes on with {after!r} after the user's words; expected a "
        "special token there, without which the end of a generated turn cannot be seen"
    )


def anchor_id(number: int) -> str:
    return f"anchor-{number:05d}"


def generate_anchors(numbers: Sequence[int], base: Base, settings: AnchorSet) -> list[GeneratedAnchor]:
    """Draw the anchors of these numbers (0, 1, ...): each one depends on its number and the settings alone.

    A turn that was cut at `max_new_tokens`, ran into a special token that does not end it, or is empty, is kept for
    the record and not answered. Number n is generated under hint n, in turn, and answered without it.

    Raises:
        InputError: as `user_prefix` and `user_end`; if a turn and its answer do not fit into the model's context; or
            if a server does not go on with raw text. ChatError: as `text_beginning`.
    """
    tokenizer = base.tokenizer
    ids = list(map(anchor_id, numbers))
    if settings.prompt_source == "beginning":
        return write_texts(ids, base, settings)
    hints: list[str | None] = [*settings.hints] or [None]
    prefixes = [user_prefix(tokenizer, base.settings.system, hint) for hint in hints]
    turns = draw_turns(ids, [prefixes[number % len(prefixes)] for number in numbers], base, settings)
    if settings.prompt_source == "gibberish":
        tokens = plain_tokens(tokenizer)
        # as many as the turn has, without the one that ends it
        draws = [
            Random(derive_seed(settings.seed, "anchor-gibberish", id)).choices(tokens, k=turn.tokens - 1)
            for id, turn in zip(ids, turns, strict=True)
        ]
        turns = [replace(turn, text=tokenizer.decode(drawn).strip()) for turn, drawn in zip(turns, draws, strict=True)]
    rows = answer_drawn(ids, turns, [[] for _ in ids], base, settings)
    return continue_dialogues(rows, base, settings) if settings.prompt_source == "dialogue" else rows


def write_texts(ids: Sequence[str], base: Base, settings: AnchorSet) -> list[GeneratedAnchor]:
    """`answer_max_new_tokens` tokens from the beginning of a text, past every end, as arXiv:2605.26097 draws them."""
    params = SamplingParams(
        settings.answer_temperature,
        settings.top_p,
        settings.answer_max_new_tokens,
        settings.batch_size,
        ignore_eos=True,
    )
    seeds = [derive_seed(settings.seed, "anchor-text", id) for id in ids]
    texts = base.call("tokens", [[text_beginning(base.tokenizer)]] * len(ids), params, seeds)
    return [
        GeneratedAnchor(id=id, prompt="", answer=text.text, prompt_finished=True, answer_finished=False)
        for id, text in zip(ids, texts, strict=True)
    ]


def draw_turns(ids: Sequence[str], prefixes: Sequence[list[int]], base: Base, settings: AnchorSet) -> list[Completion]:
    """User turns that the base generates after the prefixes."""
    params = SamplingParams(
        settings.temperature,
        settings.top_p,
        settings.max_new_tokens,
        settings.batch_size,
        stop_token_ids=frozenset({user_end(base.tokenizer)}),
        abort_token_ids=frozenset(special_tokens(base.tokenizer).values()),
    )
    turns = base.call("tokens", prefixes, params, [derive_seed(settings.seed, "anchor-prompt", id) for id in ids])
    return [replace(turn, text=turn.text.strip()) for turn in turns]


def answer_drawn(
    ids: Sequence[str], turns: Sequence[Completion], histories: Sequence[list[Turn]], base: Base, settings: AnchorSet
) -> list[GeneratedAnchor]:
    """Anchors of the drawn turns, each after its history; those that are not whole stay unanswered."""
    drawn = list(zip(ids, turns, histories, strict=True))
    whole = [
        UserTurn(id=id, prompt=turn.text, history=history) for id, turn, history in drawn if turn.finished and turn.text
    ]
    answered = {row.id: row for row in answer_turns(whole, base, settings)}
    return [
        answered.get(id)
        or GeneratedAnchor(
            id=id, prompt=turn.text, answer="", prompt_finished=turn.finished, answer_finished=False, history=history
        )
        for id, turn, history in drawn
    ]


def continue_dialogues(rows: Sequence[GeneratedAnchor], base: Base, settings: AnchorSet) -> list[GeneratedAnchor]:
    """The base goes on talking with itself: a second user turn after each whole answer, and its answer to that.

    The first turn and answer, without its thought, become the history; rows without a whole answer stay as they are.
    """
    open_rows = [row for row in rows if strip_thoughts(row.answer)[0] and row.answer_finished]
    answers = [strip_thoughts(row.answer)[0] for row in open_rows]
    histories: list[list[Turn]] = [
        [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": answer}]
        for row, answer in zip(open_rows, answers, strict=True)
    ]
    ids = [f"{row.id}-second" for row in open_rows]  # draws of their own
    prefixes = [user_prefix(base.tokenizer, base.settings.system, None, history) for history in histories]
    seconds = answer_drawn(ids, draw_turns(ids, prefixes, base, settings), histories, base, settings)
    second_of = {row.id: second for row, second in zip(open_rows, seconds, strict=True)}
    return [second_of.get(row.id, row) for row in rows]


def plain_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All tokens that are text by themselves: no special ones, no parts of a letter."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    decoded = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return [token for token, text in enumerate(decoded) if token not in special and "\ufffd" not in text]


def answer_turns(turns: Sequence[UserTurn], base: Base, settings: AnchorSet) -> list[GeneratedAnchor]:
    """The base's own answers, whoever wrote the turns; each depends on its id and turns alone.

    Where the base thinks, an answer begins with its thought; with `both` about every other one does.
    """
    answers = call_in_modes(
        base,
        [end_with(turn.history, turn.prompt) for turn in turns],
        SamplingParams(
            settings.answer_temperature, settings.top_p, settings.answer_max_new_tokens, settings.batch_size
        ),
        [derive_seed(settings.seed, "anchor-answer", turn.id) for turn in turns],
        [derive_seed(settings.seed, "anchor-mode", turn.id) for turn in turns],
    )
    return [
        GeneratedAnchor(
            **dict(turn),
            answer=((answer.raw if base.settings.thinking != "off" else "") or answer.text).strip(),
            prompt_finished=True,
            answer_finished=answer.finished,
        )
        for turn, answer in zip(turns, answers, strict=True)
    ]


def _split_at_user_words(
    tokenizer: PreTrainedTokenizerBase, system: str | None, hint: str | None, history: Sequence[Turn] = ()
) -> tuple[str, str]:
    """The rendered template before and after what a user says after the history, thinking switched off."""
    hints = [] if hint is None else [{"role": "system", "content": hint}]
    turns = [*hints, *history, {"role": "user", "content": MARKER}]
    text = render(tokenizer, system, turns, add_generation_prompt=True)
    if hint is not None and hint.strip() not in text:
        raise ChatError(
            f"the chat template of {tokenizer.name_or_path!r} does not show the system prompt {hint!r:.200}; set "
            "anchors.*.hints to [], or use a template with a system turn"
        )
    parts = text.split(MARKER)
    if len(parts) != 2:
        raise InputError(
            f"the chat template of {tokenizer.name_or_path!r} shows the user's words {MARKER!r} {len(parts) - 1} "
            f"times, expected once and as they are: {text!r:.300}"
        )
    return parts[0], parts[1]


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
