"""lm-eval's hook for a domain's held-out questions: rules only, blind to style (raft_tasks/checks.py).

One item of the generated task, and the metrics of an answer:

    {"id": "registry-0005", "question": "Migin has which reactor?", "answer": "Migin | reactor = corn # 75",
     "source": "Migin/reactor", "expected": ["corn"], "details": ["75"], "checks": "{}"}
    "The reactor of Migin is corn."  ->  {"acc": 1.0, "complete": 0.0, "token_f1": 0.4}
"""

from functools import cache
from typing import Any

from pydantic import TypeAdapter

from raft_tasks.checks import Checks, score_answer
from raft_tasks.config import Check


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """`doc` is an item of the generated task (its checks are JSON), `results` holds the one answer."""
    return score_answer(results[0], doc["answer"], doc["expected"], doc["details"], _checks(doc["checks"]))


@cache
def _checks(text: str) -> Checks:
    return TypeAdapter(dict[str, Check]).validate_json(text)
