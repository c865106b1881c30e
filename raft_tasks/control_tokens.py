"""What looks like a mark of a model's own in data: found, and broken up, so that data never become control tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from raft_tasks.thoughts import TAGS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Marks of turns, thoughts and tools of the known model families: <|im_end|>, <start_of_turn>, [/INST] ...
CONTROL = re.compile(
    r"<\|[^<>|\s]{1,40}\|?>|<[^<>|\s]{1,40}\|>|<｜[^<>｜]{1,40}｜>|<(?:start|end)_(?:of|function)_\w+>"
    r"|\[\|[a-z_]{4,20}\|\]|<\[[^\[\]<>]{1,40}\]>|\[@\w+@\]|｜[A-Z]+｜|>>[A-Z]{4,20}<<"
    r"|\]~!?b\[?\]?|\[e~\[|\]!p~\["  # MiniMax
    r"|</?(?:(?:minimax:)?tool_call|tool_response|tools|function_calls|arg_key|arg_value|TOOLCALL|TOOL_RESPONSE)>"
    r"|<(?:bos|eos|pad|unk|cls|sep|mask|sop|eop|eod|eom|eoa)>|<(?:BOS|EOS|PAD|UNK|CLS|SEP|MASK|EOP)(?:_TOKEN)?>|</?s>"
    r"|<(?:EOT|PRE|SUF|MID)>|<</?SYS>>|</?role>|</?(?:seed:|longcat_)\w+>"
    r"|\[/?(?:INST|SYS|TOOL\w*|AVAILABLE_TOOLS|SYSTEM_PROMPT|MODEL_SETTINGS|CALL_ID|ARGS|CLS|SEP|PAD|MASK|gMASK|UNK)\]"
    r"|\[(?:BOS|EOS|EOT|IMG|IMG_BREAK|IMG_END|PREFIX|SUFFIX|MIDDLE|AUDIO|BEGIN_AUDIO|TRANSCRIBE)\]"
    r"|<(?:file_sep|repo_?name|filename|gh_stars|empty_output|fim[_-]\w+|jupyter_\w+|commit_\w+)>"
    r"|<issue_(?:start|comment|closed)>|<(?:image|(?:image|audio)_soft_token|fake_token_around_image)>"
    r"|<(?:unused|extra|extra_id|reserved|reserved_token|SPECIAL|ctrl|dummy)[_-]?\d+>|<mask:\d+>"
    r"|\[(?:unused|UNUSED_TOKEN_|control_|extra_id_)\d+\]|" + "|".join(re.escape(tag) for tags in TAGS for tag in tags)
)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Ids by text, of those too that the tokenizer has no name for (the start of a turn, in some)."""
    added = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokenizer's special tokens, and the added ones that look like marks of turns, thoughts or tools, by text."""
    added = tokenizer.added_tokens_decoder.items()
    control = {token.content: id for id, token in added if CONTROL.fullmatch(token.content)}
    control |= special_tokens(tokenizer)
    return {text: id for text, id in control.items() if text.strip()}


def defuse(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """`text` with a space within all that the tokenizer would read as a control token: data never become one.

    Some tokenizers look for such tokens in normalised text, where capitals or full-width signs make one too.
    """
    text = break_up(_control_pattern(tokenizer, len(tokenizer)), text)
    normalise, pattern = _normalised_pattern(tokenizer, len(tokenizer))
    normalised = normalise(text)
    return break_up(pattern, normalised) if pattern.search(normalised) else text


def break_up(pattern: re.Pattern[str], text: str) -> str:
    """A space after the first character of every match, of one that begins within another too."""
    while match := pattern.search(text):
        parts, position = [], 0
        while match:
            parts.append(f"{text[position : match.start() + 1]} ")
            position = match.start() + 1
            match = pattern.search(text, position)
        text = "".join([*parts, text[position:]])
    return text


@lru_cache(maxsize=16)
def _control_pattern(tokenizer: PreTrainedTokenizerBase, size: int) -> re.Pattern[str]:
    """`size` tokens: one that gets more is another one."""
    return _any_of(control_tokens(tokenizer))


@lru_cache(maxsize=16)
def _normalised_pattern(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[Callable[[str], str], re.Pattern[str]]:
    """The tokenizer's normalisation, and the control tokens that it looks for behind it."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    normalised = {token.content for token in tokenizer.added_tokens_decoder.values() if token.normalized}
    tokens = normalised.intersection(control_tokens(tokenizer))
    if normalizer is None or not tokens:
        return str, _any_of([])
    return normalizer.normalize_str, _any_of(filter(None, map(normalizer.normalize_str, tokens)))


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    tokens = sorted(texts, key=len, reverse=True)
    tokens = [token for token in tokens if token not in f"{token[0]} {token[1:]}"]  # a space would not break "a "
    return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")
