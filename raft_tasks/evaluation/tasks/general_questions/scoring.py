"""acc: the answer has one of the accepted words, in any style or case."""

from typing import Any

from raft_tasks.checks import contains_phrase


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"acc": float(any(contains_phrase(results[0], words) for words in doc["accepted"]))}
