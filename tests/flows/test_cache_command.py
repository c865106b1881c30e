import re

import pytest

from flows import paths
from flows.cli import app
from raft_tasks.errors import InputError
from raft_tasks.generation.response_cache import CachedCall, ResponseCache, Tally


def cache(*arguments):
    app(["cache", *arguments], standalone_mode=False)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = ResponseCache(paths.RESPONSES)
    store.begin("a run", "fuse")
    for n in range(6):
        role = "fuse" if n < 4 else "judge"
        call = CachedCall(str(n), role, f"model of {role}", n == 5, 100, 20, 0.25, "x" * 300_000)
        store.put([call], "a run", Tally(calls=1, prompt_tokens=100, tokens=20, cost=0.25))
    yield store
    store.close()


def test_the_store_is_shown_by_role_model_day_and_run(store, capsys):
    cache()
    rows = [re.findall(r"[\w.,:/-]+(?: [\w.,:/-]+)*", line) for line in capsys.readouterr().out.splitlines()]
    assert ["fuse", "4", "0", "400", "80", "1.0000", "1,200,000"] in rows
    assert ["model of judge", "2", "1", "200", "40", "0.5000", "600,000"] in rows
    assert [row for row in rows if row and re.fullmatch(r"\d{4}-\d\d-\d\d", row[0]) and row[1:3] == ["6", "1"]]
    assert [row for row in rows if row[:1] == ["fuse"] and row[2:] == ["6", "0", "0", "0", "600", "120", "1.5000"]]


@pytest.mark.parametrize(
    ("arguments", "gone"),
    [(["--role", "judge"], 2), (["--failed"], 1), (["--to-megabytes", "1"], 3), (["--older-than", "1"], 0)],
)
def test_pruning_says_what_is_gone_and_gives_the_room_back(store, capsys, arguments, gone):
    before = store.size()
    cache("prune", *arguments)
    assert capsys.readouterr().out.startswith(f"{gone} calls forgotten; .cache/responses.sqlite: ")
    assert sum(row[1] for row in store.summary("role")) == 6 - gone
    assert store.size() <= before - 300_000 * gone


def test_nothing_is_forgotten_unless_said_and_a_missing_store_is_told(store, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no condition given"):
        cache("prune")
    monkeypatch.chdir(tmp_path / ".cache")
    with pytest.raises(InputError, match="no stage has made a call yet"):
        cache()
