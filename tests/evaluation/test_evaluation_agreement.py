import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from raft_tasks.evaluation.agreement import cohen_kappa, compare_with_people, fleiss_kappa, panel_agreement, panel_mean

# Fleiss 1971 by way of the textbooks: 14 raters, 10 items, 5 classes, kappa .210
FLEISS = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


def test_cohens_kappa_of_the_textbooks_fifty_proposals():
    a = [1] * 25 + [0] * 25
    b = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15  # observed .7, by chance .5
    assert cohen_kappa(a, b, 2, "none") == pytest.approx(0.4)


@pytest.mark.parametrize("weights", ["none", "quadratic"])
def test_cohens_kappa_is_the_definition(weights):
    generator = np.random.default_rng(0)
    a = generator.integers(0, 11, 60)
    b = np.clip(a + generator.integers(-3, 4, 60), 0, 10)
    observed = np.zeros((11, 11))
    np.add.at(observed, (a, b), 1.0)
    expected = np.outer(observed.sum(axis=1), observed.sum(axis=0)) / len(a)
    distance = np.subtract.outer(np.arange(11), np.arange(11))
    weight = distance**2 if weights == "quadratic" else distance != 0
    by_definition = 1 - (weight * observed).sum() / (weight * expected).sum()
    assert cohen_kappa(a, b, 11, weights) == pytest.approx(by_definition, rel=1e-12)


def test_kappas_limits():
    assert cohen_kappa([0, 3, 5], [0, 3, 5], 11, "quadratic") == 1
    assert cohen_kappa([0, 1, 0, 1], [0, 0, 1, 1], 2, "none") == pytest.approx(0)
    assert cohen_kappa([1, 1], [1, 1], 2, "none") is None
    assert cohen_kappa([], [], 2, "none") is None
    with pytest.raises(ValueError, match="per item"):
        cohen_kappa([0, 1], [0], 2, "none")


def test_fleiss_kappa_of_the_published_table():
    assert fleiss_kappa(FLEISS) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa([[3, 0], [0, 3]]) == 1
    assert fleiss_kappa([[3, 0], [3, 0]]) is None
    assert fleiss_kappa([]) is None
    with pytest.raises(ValueError, match="raters per item"):
        fleiss_kappa([[3, 0], [1, 1]])


def test_a_panel_on_texts_that_not_all_scored():
    scores = {"a": [1.0, 0.9, 0.2, 0.0, None], "b": [0.9, 0.7, 0.3, 0.1, 0.5], "c": [1.0, 0.9, 0.2, None, 0.4]}
    found = panel_agreement(scores, accept_at=0.8)
    assert found["texts"] == 5
    assert found["judges"]["a"] == {"scored": 4, "abstained": 1, "mean": pytest.approx(0.525), "accepted": 0.5}
    ab, ac, bc = found["pairs"]
    assert (ab["judges"], ab["texts"], ab["kappa"]) == (["a", "b"], 4, pytest.approx(0.5))
    assert ab["weighted_kappa"] == pytest.approx(
        cohen_kappa_score([10, 9, 2, 0], [9, 7, 3, 1], labels=range(11), weights="quadratic")
    )
    assert (ac["texts"], ac["weighted_kappa"], bc["texts"]) == (3, 1, 4)
    # the first three texts: 3, 2 and 0 of 3 accept
    assert found["fleiss_kappa"] == pytest.approx(fleiss_kappa([[3, 0], [2, 1], [0, 3]]))
    assert panel_agreement({"a": [1.0]}, 0.8)["fleiss_kappa"] is None


def test_judges_beside_people():
    people = [1.0, 0.8, 0.4, 0.0]
    scores = {"kind": [1.0, 1.0, 0.6, 0.2], "flat": [0.5, 0.5, None, 0.5]}
    found = compare_with_people({**scores, "mean": panel_mean(scores)}, people, accept_at=0.8)
    kind, flat, mean = found.values()
    assert (kind["n"], kind["bias"], kind["mean_error"]) == (4, pytest.approx(0.15), pytest.approx(0.15))
    assert kind["correlation"] == pytest.approx(np.corrcoef([1, 1, 0.6, 0.2], people)[0, 1])
    assert kind["kappa"] == 1
    assert (flat["n"], flat["abstained"], flat["correlation"]) == (3, 1, None)
    assert mean["n"] == 4
    assert mean["bias"] == pytest.approx(np.mean([0.75, 0.75, 0.6, 0.35]) - 0.55)
    assert panel_mean({"mute": [None], "kind": [None]}) == [None]
    assert compare_with_people({"mute": [None]}, [0.5], 0.8)["mute"]["bias"] is None
