"""The sample of MS-Bench, through lm-eval, from a mirror in the data set's form."""

import hashlib
import json
import random

import pytest

from flows import paths
from raft_tasks.config import BenchmarkData
from raft_tasks.errors import InputError
from raft_tasks.evaluation.harness import load_items


def conversation(question, answer, system=False):
    turns = [{"from": "user", "value": question}, {"from": "assistant", "value": answer}]
    return [{"from": "system", "value": "You are a helpful assistant."}, *turns] if system else turns


def mirrored(folder, rows):
    folder.mkdir()
    (folder / "data.jsonl").write_text("".join(json.dumps({"conversations": str(row)}) + "\n" for row in rows))
    return {"iic/ms_bench": BenchmarkData(revision=None, mirror=str(folder))}


def drawn(data):
    return [(question, answer) for _, question, answer in load_items(["ms_bench"], paths.BENCHMARK_TASKS, data)]


def test_the_same_200_rows_whatever_their_order(tmp_path):
    questions = [f"What is 你好 number {n}?" for n in range(300)]
    rows = [conversation(text, f"It is {text}", system=n % 2) for n, text in enumerate(questions)]
    rows += [
        conversation("x" * 4001, "too long"),
        conversation(" ", "empty"),
        [{"from": "assistant", "value": "alone"}],
    ]
    first = drawn(mirrored(tmp_path / "a", rows))
    expected = sorted(questions, key=lambda text: hashlib.sha256(text.encode()).hexdigest())[:200]
    assert first == [(text, f"It is {text}") for text in expected]
    random.Random(0).shuffle(rows)
    data = mirrored(tmp_path / "b", rows + rows[:50])
    assert drawn(data) == first


def test_a_part_of_the_data_set_is_refused(tmp_path):
    data = mirrored(tmp_path / "a", [conversation(f"What is {n}?", "It.") for n in range(150)])
    with pytest.raises(InputError, match="150 of 150 rows"):
        drawn(data)
