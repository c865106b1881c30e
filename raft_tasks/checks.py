"""What an answer says of a domain's facts, by rules that are data and score terse references and sentences alike.

A domain's checks (`domains.NAME.checks`) extract values from a text; an answer passes a check if it gives exactly the
value that the reference gives. Of the reference "5402.31", with the checks `chapter` and `heading` of hs_codes:

    "5402.31"                                  -> {"chapter": True, "heading": True}
    "These goods belong to chapter 54."        -> {"chapter": True, "heading": False}
    "Chapter 54 or chapter 55."                -> {"chapter": False, "heading": False}
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

from raft_tasks.config.data import Check
from raft_tasks.ngrams import MARKS, UNSPACED

Checks = Mapping[str, Check]
NO_CHECKS: Checks = {}
LETTER = rf"[^\W{UNSPACED}]"  # of a script with spaces between words; or a digit
WORD = re.compile(rf"[{UNSPACED}]|{LETTER}+(?:[{MARKS}]+{LETTER}*)*")
RIGHT_TOKEN_F1 = 0.5  # from here an answer counts as right where the row names no expected strings


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
        named = {words: value for value, wordings in _wordings(rule.choices).items() for words in wordings}
        value_of = {_plain(words): value for words, value in named.items()}
        return {value_of[_plain(match[0])] for match in _finder(tuple(named)).finditer(text)}
    for pattern in rule.patterns:
        matches = re.finditer(pattern, text, re.IGNORECASE)
        values = {_plain(" ".join(filter(None, match.groups()))) for match in matches}
        if values:
            return values
    return set()


def contains_phrase(text: str, phrase: str) -> bool:
    """Whether `text` has `phrase` as whole words: any case, any white space; a number is not found inside another.

    In scripts without spaces (Chinese, Japanese, Thai) a word may stand anywhere.

    Raises:
        ValueError: if `phrase` is blank, which every text would contain.
    """
    words = [re.escape(word) for word in _normalize(phrase).split()]
    if not words:
        raise ValueError(f"got a blank string to look for: {phrase!r}; expected words that a right answer has")
    # 12 is neither in 112, 3.12, 1,12 nor in 12.5; "12." at the end of a sentence is 12
    pattern = _bounded(r"\s+".join(words), _normalize(phrase).strip(), r"(?<!\d[.,])", r"(?![.,]\d)")
    return re.search(pattern, _normalize(text)) is not None


def token_f1(text: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the multisets of words, in [0, 1]; 0 if either has no word.

    In scripts without spaces a character is a word.
    """
    words, expected = (Counter(WORD.findall(_normalize(part))) for part in (text, reference))
    shared = (words & expected).total()
    return 2 * shared / (words.total() + expected.total()) if shared else 0.0


def score_answer(
    text: str, answer: str, expected: Sequence[str], details: Sequence[str], checks: Checks = NO_CHECKS
) -> dict[str, float]:
    """Score `text` against a row's reference answer.

    Returns:
        acc: 1 if `text` contains every expected string; where the row names none, if token F1 >= RIGHT_TOKEN_F1. With
            checks: the first one's result.
        complete: 1 if right and it contains every detail too. With checks: 1 if all hold.
        token_f1: closeness to the reference's own words (in [0, 1]); falls with style, so it is no accuracy.
        and each check's result by its name.
    """
    closeness = token_f1(text, answer)
    right = all(contains_phrase(text, phrase) for phrase in expected) if expected else closeness >= RIGHT_TOKEN_F1
    complete = right and all(contains_phrase(text, phrase) for phrase in details)
    scores = {"acc": float(right), "complete": float(complete), "token_f1": closeness}
    passed = {name: float(holds) for name, holds in check(text, answer, checks).items()}
    if passed:
        scores |= {"acc": next(iter(passed.values())), "complete": float(all(passed.values()))}
    return scores | passed


def _wordings(choices: list[str] | dict[str, list[str]]) -> dict[str, list[str]]:
    """{value: what names it}."""
    return choices if isinstance(choices, dict) else {value: [value.rstrip("?!.")] for value in choices}


def _normalize(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


@cache
def _finder(wordings: tuple[str, ...]) -> re.Pattern[str]:
    """Finds wordings as whole words, the longest first. One of capitals alone (OR, HE) must be written so."""
    options = []
    for words in sorted(wordings, key=len, reverse=True):
        option = r"[\s_]+".join(re.escape(word) for word in re.split(r"[\s_]+", words))
        options.append(_bounded(option if words.isupper() else f"(?i:{option})", words))
    return re.compile("|".join(options))


def _bounded(pattern: str, words: str, before: str = "", after: str = "") -> str:
    """`pattern`, which finds `words`, where no letter goes on at either end; `before` and `after` hold there too."""
    first, last = (re.match(rf"(?!\d)[{UNSPACED}]", end) is not None for end in (words[:1], words[-1:]))
    left, right = rf"(?<!{LETTER})(?<![\d{MARKS}]){before}", rf"(?!{LETTER})(?![\d{MARKS}]){after}"
    return ("" if first else left) + pattern + ("" if last else right)


def _plain(text: str) -> str:
    """One form of what compares equal without case: Turkish i with and without its dot is i, as in `re`."""
    folded = " ".join(re.split(r"[\s_]+", text.strip("_ \n\t"))).casefold()
    return folded.replace("i\u0307", "i").replace("\u0131", "i")
