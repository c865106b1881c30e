"""acc: the answer says the value that the passage gives. complete: it says the record too, where the passage does."""

import re
from typing import Any


def says(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    right = says(results[0], doc["value"])
    complete = right and (not doc["record"] or says(results[0], doc["record"]))
    return {"acc": float(right), "complete": float(complete)}
