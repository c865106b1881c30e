"""What an answer says of a domain's facts, by rules that are data and score terse references and sentences alike.

A domain's checks (`domains.NAME.checks`) extract values from a text; an answer passes a check if it gives exactly the
value that the reference gives. Of the reference "5402.31", with the checks `chapter` and `heading` of hs_codes:

    "5402.31"                                  -> {"chapter": True, "heading": True}
    "These goods belong to chapter 54."        -> {"chapter": True, "heading": False}
    "Chapter 54 or chapter 55."                -> {"chapter": False, "heading": False}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from raft_tasks.config.data import Check

Checks = Mapping[str, Check]
NO_CHECKS: Checks = {}


def check(answer: str, reference: str, checks: Checks) -> dict[str, bool]:
    """By check, whether `answer` gives the value that `reference` gives, and no other one."""
    results = {}
    for name, rule in checks.items():
        right = extract_values(reference, rule)
        results[name] = len(right) == 1 and extract_values(answer, rule) == right
    return results


def lost_checks(text: str, statement: str, reference: str, checks: Checks) -> list[str]:
    """The checks that `statement`, which a rewrite starts from, passes and `text` does not."""
    stated, kept = check(statement, reference, checks), check(text, reference, checks)
    return [name for name in checks if stated[name] and not kept[name]]


def extract_values(text: str, rule: Check) -> set[str]:
    """The values that `text` names by the first pattern that finds any, or by the choices' wordings.

    A match's value is the text of its groups, joined by blanks; case, white space and _ make no difference.
    """
    if rule.choices:
        named = {words: value for value, wordings in rule.wordings().items() for words in wordings}
        value_of = {_plain(words): value for words, value in named.items()}
        return {value_of[_plain(match[0])] for match in _finder(tuple(named)).finditer(text)}
    for pattern in rule.patterns:
        matches = re.finditer(pattern, text, re.IGNORECASE)
        values = {_plain(" ".join(filter(None, match.groups()))) for match in matches}
        if values:
            return values
    return set()


@cache
def _finder(wordings: tuple[str, ...]) -> re.Pattern[str]:
    """Finds wordings as whole words, the longest first. One of capitals alone (OR, HE) must be written so."""
    options = []
    for words in sorted(wordings, key=len, reverse=True):
        option = r"[\s_]+".join(re.escape(word) for word in re.split(r"[\s_]+", words))
        options.append(option if words.isupper() else f"(?i:{option})")
    return re.compile(rf"(?<!\w)(?:{'|'.join(options)})(?!\w)")


def _plain(text: str) -> str:
    return " ".join(re.split(r"[\s_]+", text.strip("_ \n\t"))).casefold()
