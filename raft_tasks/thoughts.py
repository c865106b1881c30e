"""What a reasoning model writes for itself before its answer, under the tags of the known model families.

    "<think>\\nThe dose is in the table.\\n</think>\\n\\nIt is 5 mg."  ->  "It is 5 mg."

A tag counts where a model puts it: at the start of its turn, or with its line's end right behind it. Inside a sentence
or code it is what the answer speaks about, and stays.
"""

import re
from collections.abc import Iterable
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
# Spellings of models and exports that no family above has, at the start of a turn and closed: <thinking effort="low">,
# [reasoning], <|think|>, &lt;think&gt;, <|begin_of_thinking|>, Open WebUI's <details type="reasoning">.
_NAME = (
    "think|thinking|thoughts?|(?:thought|thinking|reasoning)_process|reasoning|reflection|scratchpad|chain_of_thought"
    "|(?:inner|internal)_(?:thoughts?|monologue)|cot"
)
OTHER_TAGS = [
    (re.compile(pattern, re.IGNORECASE), end)
    for pattern, end in [
        (rf"<({_NAME})(?:\s[^<>]*)?>", r"</{}\s*>"),
        (rf"\[({_NAME})\]", r"\[/{}\]"),
        (rf"<\|({_NAME})\|>", r"<\|/{}\|>"),
        (rf"<\|(?:begin|start)_of_({_NAME})\|>", r"<\|end_of_{}\|>"),
        (rf"&lt;({_NAME})&gt;", "&lt;/{}&gt;"),
        (r"""<(details) [^<>]*type=["']reasoning["'][^<>]*>""", "</{}>"),
        (r"Here(?:'s| is) my (thought) process:", r"Here(?:'s| is) my response:"),  # Granite
        (r"Here are my (reasoning) steps:", r"\[BEGIN FINAL RESPONSE\]"),  # Apriel
        (
            r"<\|channel\|>\s*(analysis|commentary)\b",
            r"<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>",
        ),
    ]
]
EMPTY = re.compile("|".join(rf"{re.escape(start)}\s*{re.escape(end)}" for start, end in TAGS), re.IGNORECASE)
# What may stand before and after the parts of a turn of these formats.
TURN_START = re.compile(r"(?:[\s\ufeff]|<\|start\|>assistant[^<]*|(?:<\|im_start\|>)?assistant\n|<\|assistant\|>)*")
ANSWER_START = re.compile(
    r"\s*(?:(?:<\|end\|>|<\|start\|>assistant|<\|channel\|>final<\|message\|>|<\|START_(?:RESPONSE|TEXT)\|>"
    r"|<\|begin_of_solution\|>)\s*)+"
)
ANSWER_END = re.compile(
    r"\s*(?:<\|(?:return|end|END_RESPONSE|END_TEXT|end_of_solution)\|>|\[END FINAL RESPONSE\])\s*\Z"
)
ANSWER_TAGS = re.compile(  # around all of it: Hunyuan, ERNIE, Reflection
    r"\s*<(answer|response|output|final_answer)>(.*)</\1>\s*", re.DOTALL | re.IGNORECASE
)
HARMONY_WITHOUT_MARKS = re.compile(r"analysis\S.*?assistantfinal", re.DOTALL)  # decoded without special tokens
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)

# None of the above without one of these: most texts are done with a search for them.
MARKS = re.compile(
    "|".join(
        [
            r"<\|",
            "assistantfinal",
            rf"[<\[;](?:{_NAME})\b",
            "<details ",
            "Here(?:'s| is| are) my ",
            *(re.escape(tag) for tags in TAGS for tag in tags),
        ]
    ),
    re.IGNORECASE,
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
        answer = whole[2]
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


def count_thoughts(texts: Iterable[str]) -> tuple[int, int]:
    """How many texts hold a thought, and how many of them end within it."""
    thoughtful = [text for text in texts if has_thought(text)]
    return len(thoughtful), sum(strip_thoughts(text)[1] for text in thoughtful)


def opening(prompt: str) -> str:
    """The end of a rendered prompt from where it opens a thought, to which what is written next belongs."""
    ends = (
        re.search(rf"(?i:{re.escape(start)})\s*\Z", prompt) for start, _ in TAGS
    )  # before it a text may mention one
    return next((prompt[match.start() :] for match in ends if match), "")


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
    for begin_pattern, end in OTHER_TAGS:
        if begin := begin_pattern.match(text, offset):
            after = re.compile(end.format(begin[1]), re.IGNORECASE).search(text, begin.end())
            if after is not None:
                return True, text[after.end() :], False
    code = [match.span() for match in CODE.finditer(text)]
    for start, end in TAGS:
        # The beginning was in the prompt, or the model left it out.
        tag = f"(?i:{re.escape(end)})"
        closing = rf"(?<=[^ \t\"'`]){tag}(?=\s*\n|\Z)|(?<=[.!?]){tag}(?=\w)|(?<=[.!?]\n){tag}[ \t]+(?=[A-Z\d])"
        for match in re.finditer(closing, text):
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
