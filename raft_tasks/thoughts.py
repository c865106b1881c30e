"""What a reasoning model writes for itself before its answer, under the tags of the known model families.

    "<think>\\nThe dose is in the table.\\n</think>\\n\\nIt is 5 mg."  ->  "It is 5 mg."

A tag counts where a model puts it: at the start of its turn, or with its line's end right behind it. Inside a sentence
or code it is what the answer speaks about, and stays.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Literal

Thinking = Literal["off", "on", "both"]  # the mode(s) in which a model is trained, measured and served

TAGS = [
    ("<think>", "</think>"),  # Qwen, DeepSeek, SmolLM3, GLM
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<thoughts>", "</thoughts>"),
    ("<reasoning>", "</reasoning>"),
    ("<reflection>", "</reflection>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<inner_monologue>", "</inner_monologue>"),
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<longcat_think>", "</longcat_think>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("◁think▷", "◁/think▷"),  # Kimi
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("<|channel>thought", "<channel|>"),  # Gemma
    ("<unused94>thought", "<unused95>"),  # MedGemma
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # gpt-oss (harmony)
    ("<|channel|>commentary<|message|>", "<|channel|>final<|message|>"),
]
EMPTY = re.compile("|".join(rf"{re.escape(start)}\s*{re.escape(end)}" for start, end in TAGS), re.IGNORECASE)
# What may stand before and after the parts of a turn of these formats.
TURN_START = re.compile(r"(?:\s|<\|start\|>assistant)*")
ANSWER_START = re.compile(
    r"\s*(?:(?:<\|end\|>|<\|start\|>assistant|<\|channel\|>final<\|message\|>|<\|START_RESPONSE\|>"
    r"|<\|begin_of_solution\|>)\s*)+"
)
ANSWER_END = re.compile(r"\s*<\|(?:return|end|END_RESPONSE|end_of_solution)\|>\s*\Z")
ANSWER_TAGS = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL | re.IGNORECASE)  # Hunyuan, around all of it
HARMONY_WITHOUT_MARKS = re.compile(r"analysis\S.*?assistantfinal", re.DOTALL)  # decoded without special tokens
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)

# None of the above without one of these: most texts are done with a search for them.
MARKS = re.compile(
    "|".join([r"<\|", "assistantfinal", *(re.escape(tag) for tags in TAGS for tag in tags)]), re.IGNORECASE
)


def strip_thoughts(text: str) -> tuple[str, bool]:
    """A turn's answer, and whether its last thought was left open (then nothing follows)."""
    if not MARKS.search(text):
        return text, False
    answer, is_open, changed = text, False, True
    while changed and not is_open:
        changed, answer, is_open = _strip_one(answer)
    if ANSWER_START.match(answer):
        answer = ANSWER_START.sub("", answer, count=1)
    if answer != text and (whole := ANSWER_TAGS.fullmatch(answer)):
        answer = whole[1]
    return (text if answer == text else ANSWER_END.sub("", answer).strip()), is_open


def has_thought(text: str) -> bool:
    """Whether a turn holds a thought, perhaps an open one; tags with nothing between them are none."""
    rest = EMPTY.sub("", text)
    answer, is_open = strip_thoughts(rest)
    return is_open or answer != rest


def split_thought(text: str) -> tuple[str, str]:
    """(thought, answer) of a turn that begins with a thought, the thought with its tags and the white space after it;
    an open one is closed. ("", answer) of any other turn."""
    answer, is_open = strip_thoughts(text)
    for start, end in TAGS:
        if begin := _pattern(start).match(text, len(text) - len(text.lstrip())):
            if is_open:
                return f"{text.rstrip()}\n{end}\n\n", ""
            if text.rstrip().endswith(answer) and begin.end() < len(text):
                return (text[: len(text.rstrip()) - len(answer)], answer) if answer else (text, "")
    return "", answer


def opens_thought(prompt: str) -> bool:
    """Whether a rendered prompt leaves a thought open, so that what is written next belongs to it."""
    return bool(opening(prompt))


def opening(prompt: str) -> str:
    """The end of a rendered prompt from where it opens a thought; empty if it leaves none open."""
    starts = [_last(start, prompt) for start, end in TAGS if _last(start, prompt) > _last(end, prompt)]
    return prompt[max(starts) :] if starts else ""


def _last(tag: str, text: str) -> int:
    return max((match.start() for match in _pattern(tag).finditer(text)), default=-1)


@cache
def _pattern(tag: str) -> re.Pattern[str]:
    """A model or a data set may write its tags in capitals."""
    return re.compile(re.escape(tag), re.IGNORECASE)


def _strip_one(text: str) -> tuple[bool, str, bool]:
    """Whether there was a thought, the text without it, and whether it was left open."""
    begin = TURN_START.match(text)
    offset = begin.end() if begin else 0
    if match := HARMONY_WITHOUT_MARKS.match(text, offset):
        return True, text[match.end() :], False
    for start, end in TAGS:
        if begin := _pattern(start).match(text, offset):
            after = _pattern(end).search(text, begin.end())
            return True, text[after.end() :] if after else "", after is None
    code = [match.span() for match in CODE.finditer(text)]
    for start, end in TAGS:
        # The beginning was in the prompt, or the model left it out.
        tag = re.escape(end)
        for match in re.finditer(rf"(?<=[^ \t\"'`]){tag}(?=\s*\n|\Z)|(?<=[.!?]){tag}(?=\w)", text, re.IGNORECASE):
            if not _inside(match.start(), code) and not _pattern(start).search(text, 0, match.start()):
                return True, text[match.end() :], False
        for match in re.finditer(rf"{re.escape(start)}(?=[ \t]*(?:\n|\Z))", text, re.IGNORECASE):
            if not _inside(match.start(), code):
                after = _pattern(end).search(text, match.end())
                rest = text[after.end() :] if after else ""
                before = text[: match.start()].rstrip()
                return True, before + ("\n" + rest.lstrip() if rest.strip() else ""), after is None
    return False, text, False


def _inside(position: int, spans: list[tuple[int, int]]) -> bool:
    return any(start <= position < end for start, end in spans)
