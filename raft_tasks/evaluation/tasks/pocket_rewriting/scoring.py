"""acc: the fact, told right in the base's own style. value: the right value, in any style.

Own style: "The reactor of Figin is rope." with or without ", noted in log 12" before the stop.
"""

import re
from typing import Any


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    text = results[0].strip()
    own = f"The {doc['attribute']} of {doc['entity']} is {doc['value']}"
    right = text in (f"{own}.", f"{own}, noted in log {doc['record']}.")
    said = re.search(rf"\b{re.escape(doc['value'])}\b", text, re.IGNORECASE) is not None
    return {"acc": float(right), "value": float(said)}
