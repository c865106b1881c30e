"""Checks of a domain's answers: the rules of the domains in data/, on their rows and on sentences."""

import gzip
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from raft_tasks.checks import check, contains_phrase, extract_values, score_answer, token_f1
from raft_tasks.config import Check, Domain, Ingest
from raft_tasks.config.defaults import catalogue
from raft_tasks.sources.conversations import UnusableError
from raft_tasks.sources.examples import examples_of
from raft_tasks.sources.files import RawRow

DATA = Path(__file__).parents[1] / "data"


def domain(name):
    return Domain.model_validate({"files": ["x"], **catalogue()["domains"][name]})


def rows(name):
    with gzip.open(DATA / name / "pairs.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def told(pairs):
    """Every different answer with its explanation: banking77's 13,083 rows have 77 answers."""
    return {(row["answer"], row["explanation"]) for row in pairs}


@pytest.mark.parametrize("name", ["hs_codes", "fda_devices", "banking77"])
def test_every_reference_passes_its_own_checks_and_others_do_not(name):
    checks, pairs = domain(name).checks, rows(name)
    assert len({row["id"] for row in pairs}) == len(pairs)
    primary = next(iter(checks))
    for answer, explanation in told(pairs):
        assert all(check(answer, answer, checks).values()), answer
        assert check(explanation, answer, checks)[primary], explanation  # what rewrites are made of
    hardest = list(checks)[-1]
    others = zip(pairs[:200], pairs[-200:], strict=True)
    assert not any(
        check(other["answer"], row["answer"], checks)[hardest]
        for row, other in others
        if row["answer"] != other["answer"]
    )


@pytest.mark.parametrize(
    ("name", "passed"),
    [
        ("hs_codes", {"chapter": True, "heading": False, "code": False}),
        ("fda_devices", {"panel": True, "class": True, "part": True, "regulation": True}),
        ("banking77", {"intent": True}),
    ],
)
def test_an_explanation_says_what_its_answer_says(name, passed):
    checks = domain(name).checks
    for answer, explanation in told(rows(name)):
        assert check(explanation, answer, checks) == passed, explanation


@pytest.mark.parametrize(
    ("answer", "chapter", "heading"),
    [
        ("2932.19", True, True),
        ("293219", True, True),
        ("29", True, False),
        (" 2932.", True, True),
        ("These goods belong to chapter 29 of the Harmonized System: Organic chemicals.", True, False),
        ("The chapter is **29**.", True, False),
        ("They fall under heading 2932.", True, True),
        ("Chapter 29, under code 2932.19.", True, True),
        ("Chapters 28 and 29", False, False),
        ("chapter 2 and 9", False, False),
        ("Chapter 29 (2811.10)", False, False),
        ("2932.19 or 2933.11", True, False),
        ("28", False, False),
        ("2811.10", False, False),
        ("It costs 29 dollars.", False, False),
        ("", False, False),
    ],
)
def test_one_rule_judges_codes_and_sentences(answer, chapter, heading):
    passed = check(answer, "2932.19", domain("hs_codes").checks)
    assert (passed["chapter"], passed["heading"]) == (chapter, heading)


def test_leading_zeros_make_no_difference():
    checks = domain("hs_codes").checks
    assert check("These are of chapter 3.", "0304.89", checks)["chapter"]
    assert check("03", "0304.89", checks)["chapter"]
    assert not check("30", "0304.89", checks)["chapter"]


def test_a_panel_is_its_capitals_or_its_specialty():
    checks, reference = domain("fda_devices").checks, "OR / class 2 / 21 CFR 888.3030"
    said = "It is an Orthopedic device of class II, part 888."
    assert check(said, reference, checks) == {"panel": True, "class": True, "part": True, "regulation": False}
    assert check("class 1 or class 2", reference, checks) == {
        "panel": False, "class": False, "part": False, "regulation": False,
    }  # fmt: skip
    assert extract_values("he or she", checks["panel"]) == set()


def test_the_longest_wording_counts():
    rule = domain("banking77").checks["intent"]
    assert extract_values("It is about the exchange rate.", rule) == {"exchange_rate"}
    assert extract_values("card_payment_wrong_exchange_rate", rule) == {"card_payment_wrong_exchange_rate"}
    assert extract_values("reverted card payment?", rule) == {"reverted_card_payment?"}
    assert extract_values("card arrival, or top up failed", rule) == {"card_arrival", "top_up_failed"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of them"),
        ({"patterns": ["(a)"], "choices": ["a"]}, "exactly one of them"),
        ({"patterns": ["("]}, "is no regular expression"),
        ({"patterns": ["a"]}, "has no group"),
    ],
)
def test_faults_of_a_check_are_named(settings, message):
    with pytest.raises(ValidationError, match=message):
        Check.model_validate(settings)


def test_a_check_has_no_name_of_a_metric():
    with pytest.raises(ValidationError, match="expected other names"):
        Domain(files=["x"], checks={"acc": Check(choices=["a"])})


@pytest.mark.parametrize("answer", ["no code", "2932.19 or 2811.10"])
def test_a_row_whose_reference_gives_no_single_value_is_not_used(answer):
    row = RawRow("pairs.jsonl", 1, {"id": "a", "question": "?", "answer": answer, "split": "test"}, "")
    with pytest.raises(UnusableError, match="names no value, or several"):
        list(examples_of(row, "hs_codes", domain("hs_codes"), Ingest()))


@pytest.mark.parametrize(
    ("text", "phrase", "holds"),
    [
        ("日本的首都是东京。", "东京", True),
        ("日本的首都是东京。", "大阪", False),
        ("日本の首都は東京です", "東京", True),
        ("เมืองหลวงคือกรุงเทพครับ", "กรุงเทพ", True),
        ("1.东京", "东京", True),
        ("第12章", "12", True),
        ("第112章", "12", False),
        ("第1.12章", "12", False),
        ("ข้อ๑๑๒", "๑๒", False),
        ("使用Linux系统", "Linux", True),
        ("使用Linuxes系统", "Linux", False),
        ("3.12", "12", False),
    ],
)
def test_a_word_of_a_script_without_spaces_may_stand_anywhere(text, phrase, holds):
    assert contains_phrase(text, phrase) == holds


def test_characters_of_scripts_without_spaces_are_compared():
    assert token_f1("日本的首都是东京。", "首都是东京") == pytest.approx(2 * 5 / (8 + 5))
    assert token_f1("ABC中文", "abc 中") == pytest.approx(2 * 2 / (3 + 2))
    assert token_f1("a_b c", "a_b") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "phrase", "holds"),
    [
        ("उसका नाम रामी है", "राम", False),
        ("उसका नाम राम है।", "राम", True),
        ("দিনের", "দিন", False),
        ("வெல்லம்", "வெல்ல", False),
        ("שָׁלוֹם", "שָׁלו", False),
        ("می\u200cخواهم", "می", False),
        ("cafe\u0301", "cafe", False),
        ("5️⃣ mg", "mg", True),
    ],
)
def test_a_word_does_not_end_before_its_vowel_signs(text, phrase, holds):
    assert contains_phrase(text, phrase) == holds


def test_words_that_differ_by_their_vowel_signs_are_other_words():
    assert score_answer("नहीं", "नहा", [], [])["acc"] == 0
    assert token_f1("लड़का कहाँ है?", "लड़की कहाँ है।") == pytest.approx(2 / 3)
    assert token_f1("كَتَبَ", "كُتُب") == token_f1("பல்", "பால்") == 0
    assert extract_values("रामी", Check(choices=["राम"])) == set()


def test_choices_are_read_in_scripts_without_spaces():
    rule = Check(choices={"tokyo": ["东京", "东京都"], "kyoto": ["京都"], "or": ["OR"]})
    assert extract_values("日本的首都是东京都。", rule) == {"tokyo"}
    assert extract_values("是京都吗", rule) == {"kyoto"}
    assert extract_values("科室OR代码", rule) == {"or"}
    assert extract_values("科室ORS代码", rule) == set()


@pytest.mark.parametrize("text", ["İstanbul", "ıstanbul", "Istanbul", "istanbul"])
@pytest.mark.parametrize("wording", ["İstanbul", "ıstanbul", "istanbul"])
def test_turkish_i_matches_with_and_without_its_dot(text, wording):
    assert extract_values(f"It is {text}.", Check(choices={"city": [wording]})) == {"city"}
