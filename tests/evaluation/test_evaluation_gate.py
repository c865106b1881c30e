"""The gate's rules, each on outcomes that decide it."""

from dataclasses import replace

import pytest

from raft_tasks.config import load_config
from raft_tasks.evaluation.gate import Measured, check_candidate
from raft_tasks.schemas import ItemResult

RULES = load_config().gate
TASKS = ("domain", "recall", "instructions")


def outcomes(task, right, count=200):
    """The first `right` of `count` items are answered right; two items a source."""
    return [
        ItemResult(
            task=task,
            id=str(number),
            source=f"fact-{number // 2}",
            metrics={"other": 0.5, "acc": float(number < right)},
            prompt="?",
            answer="It is rope.",
        )
        for number in range(count)
    ]


def model(name, domain=190, recall=190, instructions=190, **facts):
    items = {"domain": domain, "recall": recall, "instructions": instructions}
    facts = {"bytes": 1000, "seconds": 0.1, "leaks": 0.0, "prompting": {"one turn": None}, **facts}
    return Measured(name, {task: outcomes(task, right) for task, right in items.items()}, **facts)


BASE = model("base", domain=4)
CHAMPION = model("raft-archive@v3", domain=180)


def check(verdict, rule):
    return next(one for one in verdict.checks if one.rule == rule)


def test_a_good_candidate_passes_every_rule():
    verdict = check_candidate(RULES, "archive", model("raft-0"), BASE, CHAMPION, fidelity=0.99)
    assert verdict.promoted
    assert [one.rule for one in verdict.checks] == [
        "domain",
        "general: recall",
        "general: instructions",
        "general average",
        "fidelity",
        "leaks",
        "prompting",
        "size",
        "latency",
    ]
    assert check(verdict, "domain").candidate.startswith("+5.0 points (")
    assert verdict.reason == "raft-0 passes every rule against raft-archive@v3"


def test_a_candidate_that_knows_less_than_the_champion_is_refused_and_the_lost_facts_are_named():
    verdict = check_candidate(RULES, "archive", model("raft-0", domain=140), BASE, CHAMPION, fidelity=0.99)
    found = check(verdict, "domain")
    assert (found.result, verdict.promoted, verdict.near_miss, verdict.harmful) == ("fail", False, False, True)
    assert found.evidence.startswith("40 of 200 items lost, 0 won; lost most: fact-70 (2)")
    assert verdict.reason.startswith("raft-0 is refused: domain: -20.0 points (")


def test_a_little_less_than_the_champion_is_within_the_margin_but_too_few_items_do_not_show_it():
    slightly = check_candidate(RULES, "archive", model("raft-0", domain=178), BASE, CHAMPION, fidelity=0.99)
    assert check(slightly, "domain").result == "pass"
    few = replace(CHAMPION, items={**CHAMPION.items, "domain": outcomes("domain", 18, 20)})
    candidate = replace(model("raft-0"), items={**CHAMPION.items, "domain": outcomes("domain", 17, 20)})
    base = replace(BASE, items={**BASE.items, "domain": outcomes("domain", 0, 20)})
    verdict = check_candidate(RULES, "archive", candidate, base, few, fidelity=0.99)
    assert check(verdict, "domain").result == "unproven"
    assert (verdict.promoted, verdict.near_miss, verdict.harmful) == (False, False, False)
    assert verdict.reason.startswith("raft-0 is not shown to be good enough: domain: -5.0 points")


def test_the_first_candidate_must_be_better_than_the_base():
    assert check_candidate(RULES, "archive", model("raft-0", domain=50), BASE, None, fidelity=0.99).promoted
    same = check_candidate(RULES, "archive", model("raft-0", domain=4), BASE, None, fidelity=0.99)
    assert check(same, "domain").result == "unproven"
    assert check(same, "domain").limit == "more than 0 points against base, with 95% confidence"


def test_a_margin_of_nothing_is_shown_as_0_points():
    rules = RULES.model_copy(update={"domain_margin": 0.0, "general_margin": 0.0, "max_leaks": 0.0})
    limits = [one.limit for one in check_candidate(rules, "archive", model("raft-0"), BASE, CHAMPION, 0.99).checks]
    assert limits[0] == "at least +0 points against raft-archive@v3, with 95% confidence"
    assert limits[1].startswith("not significantly below +0 points against base")
    assert "at most +0 points above base" in limits


@pytest.mark.parametrize(
    ("right", "result"),
    [(190, "pass"), (182, "pass"), (158, "near miss"), (100, "fail")],  # of 200; the base has 190
)
def test_forgetting_beyond_the_margin_is_refused_a_little_of_it_is_a_near_miss(right, result):
    rules = RULES.model_copy(update={"near_miss": 0.12})
    verdict = check_candidate(rules, "archive", model("raft-0", instructions=right), BASE, CHAMPION, fidelity=0.99)
    assert check(verdict, "general: instructions").result == result
    assert check(verdict, "general: recall").result == "pass"
    assert verdict.near_miss == (result == "near miss")


@pytest.mark.parametrize(
    ("facts", "fidelity", "rule"),
    [
        ({"leaks": 0.05}, 0.99, "leaks"),
        ({"bytes": 1100}, 0.99, "size"),
        ({"seconds": 0.3}, 0.99, "latency"),
        ({}, 0.5, "fidelity"),
        ({"prompting": {"one turn": None, "system turn": "token 3 is 'a', in training 'b'"}}, 0.99, "prompting"),
        ({"leaks": None}, 0.99, "leaks"),
        ({"prompting": None}, 0.99, "prompting"),
        ({"bytes": None}, 0.99, "size"),
        ({"seconds": None}, 0.99, "latency"),
        ({}, None, "fidelity"),
    ],
)
def test_every_limit_is_kept_and_missing_evidence_is_no_evidence(facts, fidelity, rule):
    verdict = check_candidate(RULES, "archive", model("raft-0", **facts), BASE, CHAMPION, fidelity)
    assert [one.rule for one in verdict.checks if one.result != "pass"] == [rule]
    missing = fidelity is None or None in facts.values()
    assert (check(verdict, rule).candidate == "unknown") == verdict.undecidable == missing
    assert verdict.harmful != missing


@pytest.mark.parametrize("count", range(99))
def test_leaks_at_exactly_the_limit_are_within_it(count):
    rules = RULES.model_copy(update={"max_leaks": 0.01, "bootstrap_samples": 10})
    base = replace(BASE, leaks=count / 100)
    leaks = [
        check(check_candidate(rules, "archive", model("raft-0", leaks=share), base, CHAMPION, 0.99, repeat), "leaks")
        for share, repeat in (
            ((count + 1) / 100, None),
            (count / 100, replace(REPEAT, leaks=(count + 1) / 100)),
            ((count + 1) / 100 + 1e-6, None),
        )
    ]
    assert [one.result for one in leaks] == ["pass", "pass", "fail"]


@pytest.mark.parametrize("right", range(60, 200, 10))
def test_a_loss_of_exactly_what_recovery_may_give_back_is_a_near_miss(right):
    rules = RULES.model_copy(update={"near_miss": 0.15})  # and a margin of 5 points: 40 of 200 items
    base = replace(BASE, items={**BASE.items, "recall": outcomes("recall", right)})
    for lost, result in ((40, "near miss"), (41, "fail")):
        verdict = check_candidate(rules, "archive", model("raft-0", recall=right - lost), base, CHAMPION, 0.99)
        assert check(verdict, "general: recall").result == result


def from_sources(model, task, sources):
    """The model with the task's items of so many sources."""
    rows = [row.model_copy(update={"source": f"page {n % sources}"}) for n, row in enumerate(model.items[task])]
    return replace(model, items={**model.items, task: rows})


def test_a_task_whose_items_have_one_source_shows_nothing():
    """All is forgotten, and there is no interval that could say so."""
    models = (model("raft-0", recall=0), replace(BASE, items={**BASE.items, "recall": outcomes("recall", 200)}))
    candidate, base = (from_sources(one, "recall", 1) for one in models)
    verdict = check_candidate(RULES, "archive", candidate, base, CHAMPION, fidelity=0.99)
    for rule in ("general: recall", "general average"):
        unknown = check(verdict, rule)
        assert (unknown.candidate, unknown.result) == ("unknown", "unproven")
        assert unknown.evidence == (
            "all items of recall have one source, so there is no interval: give the items different sources"
        )
    assert (verdict.promoted, verdict.harmful, verdict.undecidable) == (False, False, True)


@pytest.mark.parametrize("right", [200, 0])
def test_of_fewer_sources_than_a_sign_test_needs_the_domain_shows_nothing(right):
    def judged(sources, confidence=0.95):
        candidate, base, champion = (
            from_sources(one, "domain", sources) for one in (model("raft-0", domain=right), BASE, CHAMPION)
        )
        rules = RULES.model_copy(update={"confidence": confidence})
        against = base if right else champion
        verdict = check_candidate(rules, "archive", candidate, against, champion if right == 0 else None, 0.99)
        return verdict, check(verdict, "domain")

    verdict, few = judged(5)
    assert (few.candidate, few.result) == ("unknown", "unproven")
    assert few.evidence.startswith("the items have 5 source(s), expected at least 6")
    assert (verdict.promoted, verdict.undecidable) == (False, True)
    assert judged(6)[1].result == judged(5, 0.9)[1].result == ("pass" if right else "fail")


@pytest.mark.parametrize(("sources", "result"), [(8, "unproven"), (20, "unproven"), (58, "unproven"), (59, "pass")])
def test_few_sources_that_all_agree_do_not_show_that_nothing_was_lost(sources, result):
    same = replace(CHAMPION, items={"domain": outcomes("domain", sources, 2 * sources)})
    rule = check(check_candidate(RULES, "archive", same, same, same, 0.99), "domain")
    assert (rule.candidate, rule.result) == ("+0.0 points (+0.0 to +0.0)", result)
    assert ("sources may miss a loss of" in rule.evidence) == (result == "unproven")


def test_a_gain_that_is_shown_needs_no_more_sources():
    better, champion = (replace(CHAMPION, items={"domain": outcomes("domain", right, 40)}) for right in (36, 8))
    assert check(check_candidate(RULES, "archive", better, champion, champion, 0.99), "domain").result == "pass"


def test_different_prompts_are_shown():
    facts = {"prompting": {"one turn": None, "system turn": "token 3 is 'a', in training 'b'"}}
    found = check(check_candidate(RULES, "archive", model("raft-0", **facts), BASE, CHAMPION, 0.99), "prompting")
    assert (found.candidate, found.result) == ("1 of 2 as in training", "fail")
    assert found.evidence == "system turn: token 3 is 'a', in training 'b'"


def test_what_is_refused_for_another_reason_too_is_not_undecidable():
    verdict = check_candidate(RULES, "archive", model("raft-0", leaks=0.5), BASE, CHAMPION, fidelity=None)
    assert {one.rule: one.result for one in verdict.checks if one.result != "pass"} == {
        "fidelity": "unproven",
        "leaks": "fail",
    }
    assert not verdict.undecidable
    assert verdict.harmful


def test_fidelity_is_no_rule_where_params_say_so():
    rules = RULES.model_copy(update={"min_fidelity": None})
    verdict = check_candidate(rules, "archive", model("raft-0"), BASE, CHAMPION, fidelity=None)
    assert verdict.promoted
    assert "fidelity" not in [one.rule for one in verdict.checks]


def test_other_items_or_none_are_no_evidence():
    others = replace(CHAMPION, items={**CHAMPION.items, "domain": outcomes("domain", 10, 100)})
    found = check(check_candidate(RULES, "archive", model("raft-0"), BASE, others, fidelity=0.99), "domain")
    assert (found.result, found.evidence) == (
        "unproven",
        "raft-0 and raft-archive@v3 have different items of domain",
    )
    without = replace(model("raft-0"), items={"domain": outcomes("domain", 190)})
    found = check(check_candidate(RULES, "archive", without, BASE, CHAMPION, fidelity=0.99), "general: recall")
    assert (found.result, found.evidence) == ("unproven", "no outcomes of recall by acc for raft-0")


def test_the_verdict_is_one_table_and_one_line():
    verdict = check_candidate(RULES, "archive", model("raft-0", instructions=100), BASE, CHAMPION, fidelity=0.99)
    text = verdict.markdown()
    assert text.startswith("Kept: raft-0 is refused: general: instructions: -45.0 points (")
    assert text.count("\n| ") == 1 + len(verdict.checks)
    assert [row["rule"] for row in verdict.rows()] == [one.rule for one in verdict.checks]
    approved = check_candidate(RULES, "archive", model("raft-0"), BASE, CHAMPION, fidelity=0.99)
    refused = replace(approved, refused_by="Ada")
    assert not refused.promoted
    assert refused.reason.endswith("and is refused by Ada")


def told(model, task, right, undecided=()):
    """The model with a panel's verdict on a task: the first `right` items are, but for the undecided ones."""
    rows = [
        row
        if number in undecided
        else row.model_copy(update={"metrics": {"judged": float(number < right), **row.metrics}})
        for number, row in enumerate(model.items[task])
    ]
    return replace(model, items={**model.items, task: rows})


def test_of_the_domain_the_panel_decides_where_params_say_so():
    worse = told(model("raft-0"), "domain", 100, undecided=[0, 150])  # by the rule's metric it is better
    best = told(CHAMPION, "domain", 180, undecided=[0, 150])
    assert check(check_candidate(RULES, "archive", worse, BASE, best, 1.0), "domain").result == "pass"
    judged = RULES.model_copy(update={"domain_metric": "judged"})
    found = check(check_candidate(judged, "archive", worse, BASE, best, 1.0), "domain")
    assert found.result == "fail"
    assert found.evidence.startswith("79 of 198 items lost, 0 won")
    unknown = check(check_candidate(judged, "archive", model("raft-0"), BASE, best, 1.0), "domain")
    assert (unknown.candidate, unknown.result) == ("unknown", "unproven")
    assert unknown.evidence == "no outcomes of domain by judged for raft-0"


def test_of_a_judged_general_task_the_panel_decides():
    worse, base = told(model("raft-0"), "recall", 100), told(BASE, "recall", 190)
    found = check(check_candidate(RULES, "archive", worse, base, CHAMPION, 1.0), "general: recall")
    assert found.result == "fail"
    assert found.evidence.startswith("90 of 200 items lost, 0 won")


REPEAT = replace(model("raft-0 repeated"), bytes=None, seconds=None, prompting=None)


def noisy(candidate, repeat, champion=CHAMPION):
    verdict = check_candidate(RULES, "archive", candidate, BASE, champion, 0.99, repeat)
    return verdict, {one.rule: one for one in verdict.checks}


def test_a_model_that_measures_the_same_again_has_no_noise():
    verdict, _ = noisy(model("raft-0"), REPEAT)
    assert verdict.promoted
    judged = [one for one in verdict.checks if one.rule.startswith(("domain", "general", "leaks"))]
    assert len(judged) == 5
    assert all(one.evidence.endswith("; noise 0.0 points") for one in judged)
    without = check_candidate(RULES, "archive", model("raft-0"), BASE, CHAMPION, 0.99)
    assert [one.result for one in without.checks] == [one.result for one in verdict.checks]
    assert "noise" not in without.markdown()


@pytest.mark.parametrize(
    ("task", "rule"), [("instructions", "general: instructions"), ("domain", "domain"), ("recall", "general: recall")]
)
def test_a_margin_below_the_evaluators_noise_is_refused_as_undecidable(task, rule):
    repeat = replace(REPEAT, items={**REPEAT.items, task: outcomes(task, 176)})  # 190 before
    verdict, rules = noisy(model("raft-0"), repeat)
    assert (rules[rule].candidate, rules[rule].result) == ("unknown", "unproven")
    assert rules[rule].evidence.startswith("the margin of 5 points lies below the evaluator's noise, up to ")
    assert {one.rule for one in verdict.checks if one.result != "pass"} <= {rule, "general average"}
    assert verdict.undecidable
    assert not verdict.promoted
    assert not verdict.harmful
    wide = RULES.model_copy(update={"domain_margin": 0.15, "general_margin": 0.15})
    assert check_candidate(wide, "archive", model("raft-0"), BASE, CHAMPION, 0.99, repeat).promoted


def test_noise_is_what_flips_not_what_is_left_of_it_on_average():
    """As many items won as lost: the mean is the same, and says little."""
    swapped = [row.model_copy(update={"metrics": {"acc": float(n >= 20)}}) for n, row in
               enumerate(outcomes("recall", 0))]  # fmt: skip
    candidate = replace(model("raft-0"), items={**BASE.items, "domain": outcomes("domain", 190),
                                                "recall": outcomes("recall", 180)})  # fmt: skip
    repeat = replace(REPEAT, items={**candidate.items, "recall": swapped})
    verdict, rules = noisy(candidate, repeat)
    assert rules["general: recall"].candidate == "unknown"
    assert verdict.undecidable


@pytest.mark.parametrize(("right", "result"), [(100, "fail"), (160, "unproven")])
def test_a_loss_beyond_the_noise_is_a_loss_one_within_it_is_none(right, result):
    without = check_candidate(RULES, "archive", model("raft-0", instructions=right), BASE, CHAMPION, 0.99)
    assert check(without, "general: instructions").result == "fail"
    repeat = replace(REPEAT, items={**REPEAT.items, "instructions": outcomes("instructions", right - 20)})
    verdict, rules = noisy(model("raft-0", instructions=right), repeat)
    assert rules["general: instructions"].result == result
    assert verdict.harmful == (result == "fail")
    assert verdict.undecidable == (result == "unproven")


def test_a_first_candidates_gain_must_exceed_the_noise():
    gained = model("raft-0", domain=20)
    repeat = replace(REPEAT, items={**REPEAT.items, "domain": outcomes("domain", 14)})
    assert noisy(gained, replace(REPEAT, items={**REPEAT.items, "domain": outcomes("domain", 20)}), None)[0].promoted
    verdict, rules = noisy(gained, repeat, None)
    assert rules["domain"].result == "unproven"
    assert not verdict.harmful


def test_leaks_within_the_noise_are_not_judged():
    _, rules = noisy(model("raft-0", leaks=0.03), replace(REPEAT, leaks=0.0))
    assert rules["leaks"].candidate == "unknown"
    assert noisy(model("raft-0", leaks=0.08), replace(REPEAT, leaks=0.05))[1]["leaks"].candidate == "8.0%"
    assert noisy(model("raft-0", leaks=0.08), replace(REPEAT, leaks=0.05))[1]["leaks"].result == "fail"


def test_a_second_measurement_of_other_items_is_none():
    repeat = replace(REPEAT, items={**REPEAT.items, "recall": outcomes("recall", 10, 100)})
    verdict, rules = noisy(model("raft-0"), repeat)
    found = rules["general: recall"]
    assert (found.candidate, found.evidence) == (
        "unknown",
        "raft-0 repeated and raft-0 have different items of recall",
    )
    assert verdict.undecidable
