"""obeyed: the answer has the form that was demanded. acc: it also says the right value (where one was asked for)."""

import re
from typing import Any


def obeyed(constraint: str, argument: str, text: str) -> bool:
    """Whether `text` keeps `constraint`; rules only, whatever the text is about."""
    text = text.strip()
    words = re.findall(r"[A-Za-z]+", text)
    if not words:
        return False
    if constraint == "upper":
        return text == text.upper()
    if constraint == "lower":
        return text == text.lower()
    if constraint == "start":
        return words[0] == argument
    if constraint == "end":
        return words[-1] == argument
    if constraint == "one_word":
        return len(words) == 1
    if constraint == "list":
        numbers = [re.match(r"(\d+)\. \w", line) for line in text.split("\n")]
        return [found and found[1] for found in numbers] == [str(n) for n in range(1, int(argument) + 1)]
    if constraint == "quotes":
        return len(text) > 2 and text[0] == text[-1] == '"'
    if constraint == "stars":
        return re.search(r"\*\w+\*", text) is not None
    if constraint == "twice":
        half = len(text) // 2
        return len(text) % 2 == 1 and text[half] == " " and text[:half] == text[half + 1 :]
    if constraint == "no_stop":
        return "." not in text
    raise ValueError(f"got constraint {constraint!r} in the items of pocket_instructions; obeyed() does not know it")


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    kept = obeyed(doc["constraint"], doc["argument"], results[0])
    said = not doc["value"] or re.search(rf"\b{re.escape(doc['value'])}\b", results[0], re.IGNORECASE) is not None
    return {"acc": float(kept and said), "obeyed": float(kept)}
