import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raft_tasks.checks import RIGHT_TOKEN_F1, contains_phrase, score_answer, token_f1
from raft_tasks.evaluation.answer_metrics import process_results

TEXT = st.text(alphabet="ab 1.,é", max_size=12)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Migin | reactor = corn # 75", "corn"),
        ("CORN", "corn"),
        ("(corn)", "Corn"),
        ("it is log 75.", "75"),
        ("75, of course", "75"),
        ("give 5\n mg daily", "5 mg"),
        ("use C++ here", "C++"),
        ("Straße 4", "STRASSE"),
        ("ﬁne", "fine"),  # a ligature
        ("der Fluß *Öre*", "öre"),
    ],
)
def test_says_in_any_style(text, wanted):
    assert contains_phrase(text, wanted)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("popcorn", "corn"),
        ("corny", "corn"),
        ("log 750", "75"),
        ("log 175", "75"),
        ("75.5", "75"),
        ("1,275", "275"),
        ("0.75", "75"),
        ("50 mg", "5 mg"),
        ("mg 5", "5 mg"),
        ("", "corn"),
    ],
)
def test_does_not_say(text, wanted):
    assert not contains_phrase(text, wanted)


@pytest.mark.parametrize("blank", ["", "  \n"])
def test_blank_is_never_looked_for(blank):
    with pytest.raises(ValueError, match="blank"):
        contains_phrase("anything", blank)


def test_token_f1_by_hand():
    # said: the reactor of migin is corn (6), wanted: migin reactor corn 75 (4), shared 3
    assert token_f1("The reactor of Migin is corn.", "Migin | reactor = corn # 75") == pytest.approx(2 * 3 / 10)
    assert token_f1("corn corn", "corn") == pytest.approx(2 / 3)  # multisets: the second corn is not shared
    assert token_f1("", "corn") == token_f1("corn", "") == token_f1("?!", "?!") == 0.0


@given(TEXT, TEXT)
def test_token_f1_is_symmetric_and_bounded(a, b):
    assert token_f1(a, b) == token_f1(b, a)
    assert 0.0 <= token_f1(a, b) <= 1.0
    assert token_f1(a, a) in (0.0, 1.0)


def test_scores():
    row = {"answer": "Migin | reactor = corn # 75", "expected": ["corn"], "details": ["75"], "checks": "{}"}
    both = process_results(row, ["corn, noted in log 75."])
    assert (both["acc"], both["complete"]) == (1.0, 1.0)
    value_only = process_results(row, ["The reactor of Migin is corn."])
    assert (value_only["acc"], value_only["complete"]) == (1.0, 0.0)
    detail_only = process_results(row, ["log 75"])
    assert (detail_only["acc"], detail_only["complete"]) == (0.0, 0.0)
    assert process_results(row, [""]) == {"acc": 0.0, "complete": 0.0, "token_f1": 0.0}


def test_every_expected_string_counts():
    assert score_answer("oak", "oak and ash", ["oak", "ash"], [])["acc"] == 0.0
    assert score_answer("ash, oak", "oak and ash", ["oak", "ash"], [])["acc"] == 1.0


def test_without_expected_strings_closeness_decides():
    # shared words over all words: 2*1/(1+3) = .5 is right, 2*1/(2+3) = .4 is not
    assert token_f1("oak", "oak and ash") == RIGHT_TOKEN_F1
    assert score_answer("oak", "oak and ash", [], [])["acc"] == 1.0
    assert score_answer("oak elm", "oak and ash", [], [])["acc"] == 0.0
    assert score_answer("oak", "oak and ash", [], ["ash"])["complete"] == 0.0


def test_checks_decide_where_a_domain_has_them():
    rules = {"chapter": {"patterns": [r"\b(\d\d)\d\d\.\d\d\b"]}, "code": {"patterns": [r"\b(\d{4}\.\d\d)\b"]}}
    row = {"answer": "2932.19", "expected": [], "details": [], "checks": json.dumps(rules)}
    assert process_results(row, ["2932.19"]) == {
        "acc": 1.0, "complete": 1.0, "token_f1": 1.0, "chapter": 1.0, "code": 1.0,
    }  # fmt: skip
    near = process_results(row, ["2911.10"])
    assert (near["acc"], near["complete"], near["chapter"], near["code"]) == (1.0, 0.0, 1.0, 0.0)
    assert process_results(row, ["none"])["acc"] == 0.0
