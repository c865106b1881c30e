"""Leaks: does a model mention a reference that its user has never seen?

A teacher that sees the reference answer may teach its student to talk about it ("as the reference says, ..."): the
known failure of answer-conditioned distillation. A question alone gives no reference, so any mention of one is a leak.
"""

import re
from collections.abc import Sequence

from raft_tasks.ngrams import word_ngrams, words

# What a mention looks like; data, so that it can be read and extended. Matched without regard to case.
THING = r"(?:reference|background|provided|given|supplied|above)"
TEXT = r"(?:reference|knowledge|information|answer|text|context|passage|material|document|source)s?"
MENTIONS = (
    rf"\b{THING}(?: {THING})* {TEXT}\b",  # the reference answer, background reference knowledge, the given context
    rf"\b(?:according to|based on|as (?:stated|said|mentioned|noted|given|described) in|per) the {TEXT}\b",
    rf"\bthe {TEXT} (?:says|states|mentions|notes|tells|indicates|provides)\b",
)
LEAK = re.compile("|".join(MENTIONS), re.IGNORECASE)
FIELD = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)  # what Jinja fills in or leaves out


def find_leaks(answer: str) -> list[str]:
    """The words of `answer` that mention a reference."""
    return [match.group(0) for match in LEAK.finditer(answer)]


def leak_rate(answers: Sequence[str]) -> float:
    """Share of the answers, in [0, 1], that mention a reference; compare it with the base's on the same questions.

    Raises:
        ValueError: without answers.
    """
    if not answers:
        raise ValueError("got no answers, expected those of a benchmark run")
    return sum(bool(find_leaks(answer)) for answer in answers) / len(answers)


def repeats_template(answer: str, template: str) -> bool:
    """Whether `answer` has three words in a row that the teacher's prompt template has: its words, not its fields.

    A subtler leak than a mention: the frame of the prompt in which the teacher saw the reference.
    """
    of_template = {gram for text in FIELD.split(template) for gram in word_ngrams(words(text))}
    return not of_template.isdisjoint(word_ngrams(words(answer)))
