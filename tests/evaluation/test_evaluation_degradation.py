import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from raft_tasks.evaluation.degradation import degradation, detectable_drop, holm, power, sign_flip_p, smallest_drop
from raft_tasks.evaluation.statistics import Bootstrap, Outcomes, difference, verdict


def outcomes(values, sources=None):
    values = np.atleast_2d(np.asarray(values, dtype=float))
    names = tuple(sources or map(str, range(values.shape[1])))
    return Outcomes(values, tuple(range(len(values))) if len(values) > 1 else (None,), names)


def pair(lost, won, kept=20):
    """(after, before) with so many items lost, won and right in both."""
    before = [1] * lost + [0] * won + [1] * kept
    return outcomes([0] * lost + [1] * won + [1] * kept), outcomes(before)


@pytest.mark.parametrize(("lost", "won"), [(12, 3), (3, 12), (5, 5), (1, 0), (40, 20), (6, 0)])
def test_one_item_a_source_is_mcnemars_exact_test(lost, won):
    found = degradation(*pair(lost, won))
    theirs = mcnemar([[20, lost], [won, 0]], exact=True).pvalue
    assert found.p == pytest.approx(theirs, rel=1e-12)
    assert found.p_per_seed == (found.p,)
    assert (found.lost, found.won) == (lost, won)


def test_no_change_is_no_evidence():
    assert degradation(*pair(0, 0)).p == 1.0
    assert sign_flip_p([]) == 1.0


def test_signs_of_sizes_are_scipys_exact_permutation_test():
    changes = np.array([-3, -2, -2, 1, -4, 2, 0, -1, -1])
    theirs = scipy.stats.permutation_test(
        (changes,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert sign_flip_p(changes) == pytest.approx(theirs.pvalue, rel=1e-12)


def test_items_of_one_source_are_one_toss():
    # 12 lost items of 3 sources: as much evidence as 3 losses
    after, before = outcomes([0] * 12 + [1] * 8, [str(item // 4) for item in range(20)]), outcomes([1] * 20)
    before = Outcomes(before.values, before.seeds, after.sources)
    assert degradation(after, before).p == pytest.approx(2 * 0.5**3)


def test_seeds_are_taken_together_and_one_by_one():
    before = outcomes([1] * 30)
    after = outcomes([[0] * 8 + [1] * 22, [1] * 2 + [0] * 8 + [1] * 20, [1] * 30])
    found = degradation(after, before)
    assert found.p_per_seed == pytest.approx((2 * 0.5**8, 2 * 0.5**8, 1.0))
    assert found.p == pytest.approx(2 * 0.5**10)  # ten items were lost under some seed, none won
    assert (found.lost, found.won) == (pytest.approx(16 / 3), 0)


def test_scores_between_right_and_wrong_have_no_exact_test():
    assert degradation(outcomes([0.5, 1.0]), outcomes([1.0, 1.0])) is None


def test_equal_models_are_seldom_called_degraded():
    generator = np.random.default_rng(5)
    sources = [str(item // 3) for item in range(120)]
    wolf = 0
    for _ in range(1000):
        chance = np.repeat(generator.beta(1, 1, 40), 3)
        # what a source's items do together: all of them swap between the two models, or none
        flip = np.repeat(generator.random(40) < 0.5, 3)
        one, other = (generator.random((2, 120)) < np.stack([chance, np.where(chance > 0.7, 1, chance)])).astype(float)
        after, before = np.where(flip, one, other), np.where(flip, other, one)
        wolf += degradation(outcomes(after, sources), outcomes(before, sources)).p < 0.05
    assert 0.02 <= wolf / 1000 <= 0.06


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03, 0.005], [0.5, 0.9], [0.02], [0.01, 0.01, 0.01]])
def test_holm_is_statsmodels(p):
    assert holm(p) == pytest.approx(list(multipletests(p, method="holm")[1]))


def test_holm_of_none():
    assert holm([]) == []


@pytest.mark.parametrize(
    ("n", "discordance", "drop"), [(200, 0.1, 0.06), (50, 0.3, 0.2), (541, 0.2, 0.05), (7, 0.9, 0.9)]
)
def test_power_is_the_share_of_simulated_studies_that_find_the_drop(n, discordance, drop):
    generator = np.random.default_rng(n)
    lost, won = (discordance + drop) / 2, (discordance - drop) / 2
    drawn = generator.multinomial(n, [lost, won, 1 - lost - won], 4000)
    p = np.minimum(1, 2 * scipy.stats.binom.cdf(drawn[:, 1], drawn[:, 0] + drawn[:, 1], 0.5))
    found = (drawn[:, 1] < drawn[:, 0]) & (p <= 0.05)
    assert power(n, discordance, drop, 0.95) == pytest.approx(np.mean(found), abs=0.025)


def test_five_items_can_show_nothing_and_more_show_more():
    # five losses of five: p = 2 / 32
    assert smallest_drop(5, 0.1, 0.95) is None
    drops = [smallest_drop(n, 0.1, 0.95) for n in (20, 50, 200, 1000, 14_000)]
    assert drops == sorted(drops, reverse=True)
    assert power(200, 0.1, drops[2], 0.95) == pytest.approx(0.8, abs=1e-4)
    # Connor's approximation (1987), from the normal distribution
    z, drop = scipy.stats.norm.ppf([0.975, 0.8]), drops[4]
    assert (z[0] * 0.1**0.5 + z[1] * (0.1 - drop**2) ** 0.5) ** 2 / drop**2 == pytest.approx(14_000, rel=0.05)


def test_the_detectable_drop_of_a_comparison_is_found_four_times_in_five():
    generator = np.random.default_rng(8)
    sources = [str(item // 2) for item in range(300)]

    def study(drop):
        before = np.repeat(generator.random(150) < 0.8, 2).astype(float)
        lost, won = generator.random((2, 300))
        after = np.where(before == 1, lost > 0.05 + drop / 0.8, won < 0.2).astype(float)
        return outcomes(after, sources), outcomes(before, sources)

    drop = np.median([detectable_drop([after], [before], 0.95) for after, before in (study(0.06) for _ in range(20))])
    found = 0
    for number in range(300):
        after, before = study(drop)
        found += verdict(difference([after], [before], Bootstrap(0.95, 200, number))) == "lower"
    assert 0.72 <= found / 300 <= 0.88


def test_models_that_agree_are_no_proof_of_perfect_sight():
    same = outcomes(np.ones(100))
    floor = detectable_drop([same], [same], 0.95)
    assert floor == smallest_drop(100, 0.0, 0.95)
    assert 0.06 < floor < 0.1  # six losses of 100 are the fewest that count; 80 % of the time there are so many
    assert detectable_drop([outcomes([1])], [outcomes([1])], 0.95) is None
