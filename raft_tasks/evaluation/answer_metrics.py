"""How an answer to a domain's held-out question is scored: rules only, blind to style.

One item of the generated task, and the metrics of an answer:

    {"id": "registry-0005", "question": "Migin has which reactor?", "answer": "Migin | reactor = corn # 75",
     "source": "Migin/reactor", "expected": ["corn"], "details": ["75"], "checks": "{}"}
    "The reactor of Migin is corn."  ->  {"acc": 1.0, "complete": 0.0, "token_f1": 0.4}
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from raft_tasks.checks import Checks, check
from raft_tasks.config import Check

RIGHT_TOKEN_F1 = 0.5  # from here an answer counts as right where the row names no expected strings


def contains_phrase(text: str, phrase: str) -> bool:
    """Whether `text` has `phrase` as whole words: any case, any white space; a number is not found inside another.

    Raises:
        ValueError: if `phrase` is blank, which every text would contain.
    """
    words = [re.escape(word) for word in _normalize(phrase).split()]
    if not words:
        raise ValueError(f"got a blank string to look for: {phrase!r}; expected words that a right answer has")
    # 12 is neither in 112, 3.12, 1,12 nor in 12.5; "12." at the end of a sentence is 12
    pattern = r"(?<!\w)(?<!\d[.,])" + r"\s+".join(words) + r"(?!\w)(?![.,]\d)"
    return re.search(pattern, _normalize(text)) is not None


def token_f1(text: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the multisets of words, in [0, 1]; 0 if either has no word."""
    words, expected = (Counter(re.findall(r"\w+", _normalize(part))) for part in (text, reference))
    shared = (words & expected).total()
    return 2 * shared / (words.total() + expected.total()) if shared else 0.0


def score_answer(text: str, answer: str, expected: Sequence[str], details: Sequence[str]) -> dict[str, float]:
    """Score `text` against a row's reference answer.

    Returns:
        acc: 1 if `text` contains every expected string; where the row names none, if token F1 >= RIGHT_TOKEN_F1.
        complete: 1 if right and it contains every detail too.
        token_f1: closeness to the reference's own words (in [0, 1]); falls with style, so it is no accuracy.
    """
    closeness = token_f1(text, answer)
    right = all(contains_phrase(text, phrase) for phrase in expected) if expected else closeness >= RIGHT_TOKEN_F1
    complete = right and all(contains_phrase(text, phrase) for phrase in details)
    return {"acc": float(right), "complete": float(complete), "token_f1": closeness}


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """lm-eval's hook: `doc` is an item of the generated task, `results` holds the one answer.

    Where the domain has checks (JSON in the item), `acc` is the first one's result and `complete` says that all hold.
    """
    scores = score_answer(results[0], doc["answer"], doc["expected"], doc["details"])
    passed = check(results[0], doc["answer"], _checks(doc["checks"]))
    if passed:
        scores |= {"acc": float(next(iter(passed.values()))), "complete": float(all(passed.values()))}
    return scores | {name: float(holds) for name, holds in passed.items()}


@cache
def _checks(text: str) -> Checks:
    return TypeAdapter(dict[str, Check]).validate_json(text)


def _normalize(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
