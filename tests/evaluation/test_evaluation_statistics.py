from dataclasses import asdict

import numpy as np
import pytest
import scipy.stats

from raft_tasks.evaluation.statistics import Bootstrap, Outcomes, difference, mean, ratio, recovered_fraction, verdict

SETTINGS = Bootstrap(confidence=0.95, samples=4000, seed=0)


def outcomes(values, sources=None, seeds=None):
    values = np.atleast_2d(np.asarray(values, dtype=float))
    sources = tuple(sources or (str(item) for item in range(values.shape[1])))
    return Outcomes(values, seeds or (tuple(range(len(values))) if len(values) > 1 else (None,)), sources)


def coins(generator, seeds, sources, per_source, seed_effect, source_effect, level=0.5):
    """Right or wrong answers [S, C * per_source] with effects of seed and source on the log odds."""
    odds = level + generator.normal(0, seed_effect, (seeds, 1, 1)) + generator.normal(0, source_effect, (1, sources, 1))
    right = generator.random((seeds, sources, per_source)) < 1 / (1 + np.exp(-odds))
    return right.reshape(seeds, -1).astype(float)


def test_one_seed_agrees_with_scipys_bootstrap_and_with_normal_theory():
    values = np.random.default_rng(3).random(400)
    ours = mean([outcomes(values)], SETTINGS)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    error = values.std(ddof=1) / 20
    assert ours.estimate == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.15 * error)
    assert ours.high == pytest.approx(theirs.high, abs=0.15 * error)
    assert ours.high - ours.low == pytest.approx(2 * 1.966 * error, rel=0.02)
    assert (ours.n_items, ours.n_sources, ours.n_seeds, ours.over) == (400, 400, 1, "items")


def test_items_of_one_source_count_once():
    # four copies of each of 100 outcomes carry no more than the 100
    values = (np.arange(100) % 3 == 0).astype(float)
    copies = outcomes(np.repeat(values, 4), sources=[str(item // 4) for item in range(400)])
    single, clustered = mean([outcomes(values)], SETTINGS), mean([copies], SETTINGS)
    assert clustered.high - clustered.low == pytest.approx(single.high - single.low, rel=0.03)
    assert (clustered.n_items, clustered.n_sources) == (400, 100)


def test_sources_of_unequal_size_follow_the_ratio_estimators_error():
    generator = np.random.default_rng(7)
    sizes = generator.integers(1, 9, 150)
    sources = np.repeat(np.arange(150), sizes)
    values = np.clip(generator.normal(0.5, 0.15, 150)[sources] + generator.normal(0, 0.05, len(sources)), 0, 1)
    ours = mean([outcomes(values, sources=[str(source) for source in sources])], SETTINGS)
    residual = np.bincount(sources, values) - values.mean() * sizes
    error = np.sqrt(150 / 149 * (residual**2).sum()) / sizes.sum()
    assert ours.high - ours.low == pytest.approx(2 * 1.976 * error, rel=0.03)


def test_seeds_that_differ_widen_the_interval_by_students_t():
    # all variation is between the seeds: t with 2 degrees of freedom over the three seeds' means
    values = np.repeat([[0.4], [0.5], [0.6]], 50, axis=1)
    ours = mean([outcomes(values)], SETTINGS)
    half = scipy.stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3)
    assert (ours.low + ours.high) / 2 == pytest.approx(0.5, abs=0.03)
    # three seeds make ten multisets: the percentile falls on the outermost, a little beyond t
    assert 2 * half <= ours.high - ours.low <= 2.25 * half
    assert ours.over == "items and seeds"


def test_the_average_of_tasks_weighs_tasks_alike():
    long, short = outcomes(np.zeros(90)), outcomes(np.tile([1.0, 0.0], 5))
    assert mean([long, short], SETTINGS).estimate == pytest.approx(0.25)
    alone = mean([short], SETTINGS)
    together = mean([long, short], SETTINGS)
    # the zeros do not vary: half the short task's width, but with more degrees of freedom
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(0.5 * 1.96 / 2.26, rel=0.05)


@pytest.mark.parametrize(
    ("seeds", "sources", "per_source", "seed_effect", "source_effect"),
    [(1, 60, 2, 0.0, 1.5), (3, 60, 2, 0.0, 1.5), (3, 60, 2, 0.4, 1.5)],
)
def test_intervals_cover_the_truth(seeds, sources, per_source, seed_effect, source_effect):
    generator = np.random.default_rng(11)
    draws = generator.normal(0.5, np.hypot(seed_effect, source_effect), 400_000)
    truth = (1 / (1 + np.exp(-draws))).mean()
    names = [str(item // per_source) for item in range(sources * per_source)]
    covered = 0
    for study in range(300):
        values = coins(generator, seeds, sources, per_source, seed_effect, source_effect)
        found = mean([outcomes(values, names)], Bootstrap(0.95, 400, study))
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / 300 <= 0.985


def test_paired_differences_cover_the_truth_and_seldom_cry_wolf():
    generator = np.random.default_rng(13)
    names = [str(item // 2) for item in range(120)]
    wolf = 0
    for study in range(300):
        # two methods of equal ability under the same sources and seeds, with seed effects of their own
        odds = generator.normal(0.5, 1.5, (1, 60, 1))
        sides = [
            (generator.random((3, 60, 2)) < 1 / (1 + np.exp(-odds - generator.normal(0, 0.2, (3, 1, 1)))))
            .reshape(3, -1)
            .astype(float)
            for _ in range(2)
        ]
        change = difference([outcomes(sides[0], names)], [outcomes(sides[1], names)], Bootstrap(0.95, 400, study))
        wolf += verdict(change) != "no clear difference"
    assert wolf / 300 <= 0.08


def test_pairing_removes_what_both_sides_share():
    generator = np.random.default_rng(17)
    base = coins(generator, 1, 200, 1, 0, 3.0)
    better = np.maximum(base, (generator.random(base.shape) < 0.1).astype(float))
    change = difference([outcomes(better)], [outcomes(base)], SETTINGS)
    unpaired = mean([outcomes(better)], SETTINGS)
    assert change.estimate == pytest.approx(better.mean() - base.mean())
    assert change.high - change.low < (unpaired.high - unpaired.low) / 2
    assert verdict(change) == "higher"
    assert verdict(difference([outcomes(base)], [outcomes(better)], SETTINGS)) == "lower"


def test_identical_sides_show_no_difference():
    values = coins(np.random.default_rng(19), 3, 50, 2, 0.5, 1.0)
    change = difference([outcomes(values)], [outcomes(values)], SETTINGS)
    assert (change.estimate, change.low, change.high) == (0.0, 0.0, 0.0)
    assert verdict(change) == "no clear difference"
    assert ratio([outcomes(values)], [outcomes(values)], SETTINGS).estimate == 1.0


def test_retention_follows_the_delta_method():
    generator = np.random.default_rng(23)
    base = generator.uniform(0.5, 1.0, 300)
    tuned = np.clip(0.8 * base + generator.normal(0, 0.05, 300), 0, 1)
    kept = ratio([outcomes(tuned)], [outcomes(base)], SETTINGS)
    share = tuned.mean() / base.mean()
    error = (tuned - share * base).std(ddof=1) / base.mean() / np.sqrt(300)
    assert kept.estimate == pytest.approx(share)
    assert kept.high - kept.low == pytest.approx(2 * 1.968 * error, rel=0.03)


def test_retention_against_a_base_without_seeds():
    base = outcomes(np.tile([1.0, 1.0, 1.0, 0.0], 50))
    tuned = outcomes(np.stack([np.tile(row, 50) for row in ([1.0, 1, 0, 0], [1.0, 0, 1, 0], [1.0, 1, 1, 0])]))
    kept = ratio([tuned], [base], SETTINGS)
    assert kept.estimate == pytest.approx((0.5 + 0.5 + 0.75) / 3 / 0.75)
    assert kept.n_seeds == 3


def test_no_retention_of_nothing():
    zeros, ones = outcomes(np.zeros(20)), outcomes(np.ones(20))
    assert ratio([ones], [zeros], SETTINGS) is None
    # one right answer in twenty is missing from a third of the resamples
    assert ratio([ones], [outcomes([1.0] + [0.0] * 19)], SETTINGS) is None


def test_all_right_is_bounded_by_the_number_of_sources():
    perfect = mean([outcomes(np.ones((3, 40)), sources=[str(item // 2) for item in range(40)])], SETTINGS)
    exact = scipy.stats.binomtest(20, 20).proportion_ci(method="exact")
    assert (perfect.estimate, perfect.low, perfect.high) == pytest.approx((1.0, exact.low, 1.0))
    nothing = mean([outcomes(np.zeros(20))], SETTINGS)
    assert (nothing.low, nothing.high) == pytest.approx((0.0, 1 - exact.low))


def test_the_smallest_task_bounds_an_average_that_is_all_right():
    few, many = outcomes(np.ones(5)), outcomes(np.ones(1000))
    assert mean([few, many], SETTINGS).low == pytest.approx(0.025 ** (1 / 10))


@pytest.mark.parametrize(("n", "expected"), [(2, "no clear difference"), (5, "no clear difference"), (6, "lower")])
def test_items_that_all_flip_are_bounded_by_their_number(n, expected):
    zeros, ones = outcomes(np.zeros(n)), outcomes(np.ones(n))
    lost, won = difference([zeros], [ones], SETTINGS), difference([ones], [zeros], SETTINGS)
    assert verdict(lost) == expected
    assert (lost.estimate, lost.low, lost.high) == (-1.0, -1.0, pytest.approx(1 - 2 * 0.025 ** (1 / n)))
    assert (won.low, won.high) == (-lost.high, 1.0)
    assert difference([zeros, zeros], [ones, ones], SETTINGS).high == pytest.approx(1 - 2 * 0.025 ** (1 / (2 * n)))
    kept = ratio([zeros], [ones], SETTINGS)
    assert (kept.estimate, kept.low, kept.high) == (0.0, 0.0, pytest.approx(1 - 0.025 ** (1 / n)))


def test_one_item_gives_no_interval_but_its_exact_bound():
    assert mean([outcomes([1.0])], SETTINGS).low == pytest.approx(0.025)
    half = mean([outcomes([0.5])], SETTINGS)
    assert (half.estimate, half.low, half.high) == (0.5, None, None)
    change = difference([outcomes([1.0])], [outcomes([0.0])], SETTINGS)
    assert (change.estimate, change.low) == (1.0, None)
    assert verdict(change) == "no clear difference"


def test_scores_stay_in_their_range():
    nearly = mean([outcomes([0.0] + [1.0] * 30)], SETTINGS)
    assert nearly.high <= 1.0
    assert nearly.low < nearly.estimate
    # two seeds far apart: Student's t with one degree of freedom would go beyond what can be
    apart = outcomes([[1.0, 0.9] * 20, [0.2, 0.4] * 20])
    change = difference([apart], [outcomes(np.zeros((2, 40)))], SETTINGS)
    assert change.low >= -1.0
    assert change.high == 1.0


def test_the_same_seed_gives_the_same_interval():
    task = outcomes(coins(np.random.default_rng(29), 3, 40, 2, 0.3, 1.0))
    assert asdict(mean([task], SETTINGS)) == asdict(mean([task], SETTINGS))
    other = mean([task], Bootstrap(0.95, 4000, 1))
    assert other.estimate == mean([task], SETTINGS).estimate
    assert other.low != mean([task], SETTINGS).low


def test_more_confidence_is_wider():
    task = outcomes(coins(np.random.default_rng(31), 3, 40, 2, 0.3, 1.0))
    wide, narrow = (mean([task], Bootstrap(level, 2000, 0)) for level in (0.99, 0.8))
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    ("mine", "theirs", "message"),
    [
        (outcomes([1, 0, 1]), outcomes([1, 0, 1], sources=["0", "1", "3"]), "same items"),
        (outcomes([[1, 0], [0, 0]], seeds=(0, 1)), outcomes([[1, 0], [0, 0]], seeds=(0, 2)), "seeds"),
    ],
)
def test_sides_that_do_not_pair_are_refused(mine, theirs, message):
    with pytest.raises(ValueError, match=message):
        difference([mine], [theirs], SETTINGS)


def test_different_numbers_of_tasks_are_refused():
    with pytest.raises(ValueError, match="same tasks"):
        difference([outcomes([1, 0])], [], SETTINGS)


@pytest.mark.parametrize("values", [np.zeros((2, 3)), np.zeros((1, 0)), np.array([[0.0, np.nan]])])
def test_outcomes_must_be_whole(values):
    with pytest.raises(ValueError, match="outcomes"):
        Outcomes(values, (None,), tuple("ab"))


def test_recovery_is_the_share_of_sfts_loss_that_is_not_there():
    base = outcomes(np.ones(100))
    sft = outcomes(np.tile([1.0, 0.0], 50))
    half = outcomes(np.tile([1.0, 0.0, 1.0, 1.0], 25))
    found = recovered_fraction([half], [sft], [base], SETTINGS)
    assert found.estimate == pytest.approx(0.5)
    # the lost half's items are mended or not: a binomial share of 50
    assert found.high - found.low == pytest.approx(2 * 2.01 * np.sqrt(0.25 / 50), rel=0.05)
    assert recovered_fraction([sft], [sft], [base], SETTINGS).estimate == 0.0
    assert recovered_fraction([base], [sft], [base], SETTINGS).estimate == 1.0


def test_no_recovery_of_a_loss_that_may_be_none():
    base, sft = outcomes(np.ones(100)), outcomes([0.0] * 2 + [1.0] * 98)
    assert verdict(difference([sft], [base], SETTINGS)) == "no clear difference"
    assert recovered_fraction([base], [sft], [base], SETTINGS) is None
    # nor where fine-tuning gained
    assert recovered_fraction([base], [base], [outcomes(np.zeros(100))], SETTINGS) is None
