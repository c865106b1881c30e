import pytest

from raft_tasks.evaluation.verdicts import add_verdicts, drop_undecided, majority, summary
from raft_tasks.schemas import ItemResult, Judged, Labelled


def judged(model, name, votes, right, task="domain"):
    return Judged(model=model, task=task, id=name, votes=votes, reasons={}, abstained={}, right=right)


def item(name, task="domain"):
    return ItemResult(task=task, id=name, source=name, metrics={"acc": 1.0}, prompt="q", answer="a")


@pytest.mark.parametrize(
    ("votes", "quorum", "right"),
    [
        ({"a": True, "b": True, "c": False}, 2, True),
        ({"a": True, "b": False, "c": False}, 2, False),
        ({"a": True, "b": False}, 2, False),  # a tie is no majority
        ({"a": True}, 2, None),
        ({"a": True}, 1, True),
        ({}, 1, None),
    ],
)
def test_the_majority_of_the_votes_that_are_there(votes, quorum, right):
    assert majority(votes, quorum) is right


def test_an_item_undecided_for_one_model_counts_for_none():
    rows = [
        judged("base", "1", {"a": True, "b": True}, True),
        judged("base", "2", {"a": True, "b": True}, True),
        judged("raft-0", "1", {"a": True}, None),
        judged("raft-0", "2", {"a": False, "b": False}, False),
    ]
    found = drop_undecided(rows)
    assert [row.right for row in found] == [None, True, None, False]
    assert [row.votes for row in found] == [row.votes for row in rows]
    counted = summary(found, ["a", "b"], 2, [], [])
    assert counted["scores"] == {
        "base": {"domain": {"judged": 1.0, "n": 1}},
        "raft-0": {"domain": {"judged": 0.0, "n": 1}},
    }
    assert counted["undecided"] == {"domain": 1}
    assert counted["agreement"]["domain"]["judges"]["b"] == {
        "scored": 3, "abstained": 1, "mean": pytest.approx(2 / 3), "accepted": pytest.approx(2 / 3),
    }  # fmt: skip
    assert counted["calibration"] is None


def test_votes_beside_people():
    labels = [
        Labelled(question="q", reference="r", candidate=c, score=s) for c, s in zip("abcd", (9, 8, 2, 1), strict=True)
    ]
    beside = [{"a": True, "b": True}, {"a": True, "b": False}, {"a": False, "b": True}, {"a": False}]
    found = summary([], ["a", "b"], 2, labels, beside)["calibration"]
    assert found["a"]["kappa"] == 1.0
    assert found["b"] | {"n": 3, "abstained": 1} == found["b"]
    assert found["b"]["kappa"] == pytest.approx(-0.5)  # agrees on 1 of 3; by chance 5/9
    panel = found["verdict of the panel"]
    assert (panel["n"], panel["abstained"]) == (3, 1)  # one vote is less than the quorum
    assert panel["kappa"] == pytest.approx(0.4)  # ties are noes: agrees on 2 of 3; by chance 4/9
    assert list(found) == ["a", "b", "verdict of the panel"]


def test_verdicts_stand_first_among_an_items_metrics():
    rows = [judged("base", "1", {"a": True}, True), judged("base", "2", {}, None), judged("raft-0", "1", {}, False)]
    items = add_verdicts([item("1"), item("2"), item("3", "pocket_recall")], "base", rows)
    assert [list(row.metrics.items()) for row in items] == [
        [("judged", 1.0), ("acc", 1.0)],
        [("acc", 1.0)],
        [("acc", 1.0)],
    ]


def test_votes_on_other_answers_are_refused():
    with pytest.raises(ValueError, match="not among its items"):
        add_verdicts([item("1")], "base", [judged("base", "9", {"a": True}, True)])
