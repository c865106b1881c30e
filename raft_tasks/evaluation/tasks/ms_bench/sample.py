"""200 rows of MS-Bench that everyone draws alike, whatever the order of the file.

A row of iic/ms_bench, the conversation as text (or as a list), and the item that it becomes:

    {"conversations": "[{'from': 'user', 'value': 'What is ...?'}, {'from': 'assistant', 'value': 'It is ...'}]"}
    {"id": "0002c4f1a9d0", "question": "What is ...?", "answer": "It is ...", "source": "0002c4f1a9d0"}
"""

import ast
import hashlib
import heapq
from collections.abc import Iterator
from typing import Any

from datasets import Dataset

from raft_tasks.checks import token_f1
from raft_tasks.errors import InputError

SIZE = 200
MAX_CHARACTERS = 4000  # of a question, so that every model can read it
DIGITS = 12


def sample(rows: Dataset) -> Dataset:
    """The `SIZE` different first turns with the smallest SHA-256, with the answers that follow them.

    Raises:
        InputError: fewer than that can be used.
    """
    items: dict[str, dict[str, Any]] = {}
    for question, answer in _first_turns(rows):
        digest = hashlib.sha256(question.encode()).hexdigest()
        kept = items.setdefault(digest, {"question": question, "answer": answer})
        kept["answer"] = min(kept["answer"], answer)  # of a question that comes twice, whichever comes first
    if len(items) < SIZE:
        raise InputError(
            f"iic/ms_bench: {len(items)} of {len(rows)} rows begin with a user's question of at most {MAX_CHARACTERS} "
            f"characters and its answer, expected {SIZE} or more; is the mirror of benchmark.data the whole data set?"
        )
    chosen = heapq.nsmallest(SIZE, items)
    return Dataset.from_list([{"id": key[:DIGITS], "source": key[:DIGITS], **items[key]} for key in chosen])


def _first_turns(rows: Dataset) -> Iterator[tuple[str, str]]:
    for told in rows["conversations"]:
        turns = ast.literal_eval(told) if isinstance(told, str) else list(told)
        if turns and turns[0]["from"] == "system":
            turns = turns[1:]  # "You are a helpful assistant."
        if [turn["from"] for turn in turns[:2]] != ["user", "assistant"]:
            continue
        question, answer = (turn["value"].strip() for turn in turns[:2])
        if question and answer and len(question) <= MAX_CHARACTERS:
            yield question, answer


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"token_f1": token_f1(results[0], doc["answer"])}
