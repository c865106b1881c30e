from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft_tasks.errors import InputError
from raft_tasks.reporting.figures.scores import sweep as draw_sweep
from raft_tasks.reporting.frontier import frontier_points, undominated
from raft_tasks.reporting.sweeps import COLUMNS, Sweep, SweptScore, read_sweeps

HEAD = ",".join(COLUMNS)


def test_undominated_by_hand():
    assert undominated([(1, 9), (5, 5), (5, 6), (9, 1), (4, 4)]) == {0, 2, 3}
    assert undominated([(1, 1), (1, 1)]) == {0, 1}  # equals do not beat each other


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1))
def test_what_is_left_out_is_beaten_by_what_stays(points):
    best = undominated(points)
    assert best
    for place, (x, y) in enumerate(points):
        beaten = any(points[one][0] >= x and points[one][1] >= y and points[one] != (x, y) for one in best)
        assert beaten == (place not in best)


def swept(method, parameter, value, measure, estimate, domain="archive"):
    return SweptScore(
        parameter=parameter, value=value, domain=domain, method=method, seeds=3, measure=measure, estimate=estimate,
        low=None, high=None, experiment="exp-a",
    )  # fmt: skip


METHODS = {
    "base": {"scores": {"domain_acc": {"estimate": 0.0}, "general": {"estimate": 0.9}}},
    "sft": {"scores": {"domain_acc": {"estimate": 0.5}, "general": {"estimate": 0.3}}},
}


def test_learning_rates_are_points_beside_the_methods():
    scores = [
        swept("sft", "train.learning_rate", "1e-4", "domain_acc", 0.6),
        swept("sft", "train.learning_rate", "1e-4", "general", 0.4),
        swept("sft", "train.learning_rate", "1e-3", "domain_acc", 0.9),  # its general score is missing
        swept("sft", "semantic_filter.tau", "0.5", "domain_acc", 1.0),
        swept("sft", "semantic_filter.tau", "0.5", "general", 1.0),  # not a matter of training length
        swept("raft", "train.epochs", "2", "domain_acc", 0.7, domain="statute"),
        swept("raft", "train.epochs", "2", "general", 0.7, domain="statute"),
    ]
    points = frontier_points(METHODS, [Sweep("rate", Path("rate.csv"), scores)], "archive")
    assert [(point["method"], point["setting"], point["line"], point["best"]) for point in points] == [
        ("base", None, None, True),
        ("sft", None, None, False),
        ("sft", "learning rate 1e-4", "train.learning_rate", True),
    ]
    assert len(frontier_points(METHODS, [Sweep("rate", Path("rate.csv"), scores)], None)) == 2


def test_sweeps_are_read_as_written(tmp_path):
    (tmp_path / "tau.csv").write_text(
        f"{HEAD}\nsemantic_filter.tau,0.5,archive,raft,3,domain_acc,0.93,0.88,0.97,tau-0.5\n"
        "methods.raft.distillation.kl_weight,ema,archive,raft,1,general,0.7,,,ema\n"
    )
    (tmp_path / "README.md").write_text("not a sweep")
    (sweep,) = read_sweeps(tmp_path)
    first, second = sweep.scores
    assert (sweep.name, first.value, first.estimate, first.low, first.high) == ("tau", "0.5", 0.93, 0.88, 0.97)
    assert (second.parameter, second.value, second.low, second.experiment) == (
        "methods.raft.distillation.kl_weight",
        "ema",
        None,
        "ema",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("parameter,value\n", "got no column domain, method"),
        (
            f"{HEAD}\nsemantic_filter.tau,0.5,archive,raft,3,domain_acc,high,,,x\n",
            r"tau\.csv:2: estimate: Input should be",
        ),
        (f"{HEAD}\nsemantic_filter.tau,0.5,archive\n", r"tau\.csv:2: method: Input should be"),
    ],
)
def test_a_broken_sweep_names_file_and_line(tmp_path, text, said):
    (tmp_path / "tau.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        read_sweeps(tmp_path)


def test_a_sweeps_values_stand_in_the_order_of_numbers_then_words():
    scores = [swept("raft", "kl_weight", value, "general", 0.5) for value in ("ema", "10", "0.1", "1e-3", "2")]
    svg = draw_sweep(scores, "kl_weight")
    places = [svg.index(f">{value}<") for value in ("1e-3", "0.1", "2", "10", "ema")]
    assert places == sorted(places)
