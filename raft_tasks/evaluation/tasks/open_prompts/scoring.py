"""acc: the answer is running text, at least RUNNING_TEXT words of letters. words: how many it has."""

import re
from typing import Any

RUNNING_TEXT = 10  # words; a code, a label or a class with its regulation has fewer
WORD = re.compile(r"[^\W\d_]{2,}")


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    words = len(WORD.findall(results[0]))
    return {"acc": float(words >= RUNNING_TEXT), "words": float(words)}
