"""acc: the answer says the fact's value as a word, in any style or case."""

import re
from typing import Any


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    said = re.search(rf"\b{re.escape(doc['value'])}\b", results[0], re.IGNORECASE) is not None
    return {"acc": float(said)}
