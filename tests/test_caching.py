import csv as another_module
import json as one_module
from types import SimpleNamespace

from raft_tasks.caching import ContentPolicy, cached_task
from raft_tasks.schemas import TrainingPair


def key(policy, name="chunk", **inputs):
    return policy.compute_key(SimpleNamespace(task=SimpleNamespace(name=name)), inputs, {})


def test_the_key_is_content():
    policy = ContentPolicy((one_module,), ignore=("backend",))
    row = TrainingPair(id="a", question="q", answer="b")
    same = key(policy, rows=[row], settings={"seed": 0}, backend=object())
    assert same == key(policy, rows=[row.model_copy()], settings={"seed": 0}, backend=object())
    others = {
        key(policy, rows=[row.model_copy(update={"answer": "c"})], settings={"seed": 0}),
        key(policy, rows=[row], settings={"seed": 1}),
        key(policy, name="other", rows=[row], settings={"seed": 0}),
        key(ContentPolicy((another_module,), ignore=("backend",)), rows=[row], settings={"seed": 0}),
    }
    assert len(others | {same}) == 5


def test_a_cached_task_keeps_its_policy_and_stores_values():
    chunk = cached_task(one_module, ignore=("backend",))(lambda rows, backend: rows)
    assert isinstance(chunk.cache_policy, ContentPolicy)
    assert chunk.persist_result
