from math import log2

import pytest

from raft_tasks.evaluation.drift import (
    count_words,
    foreign_share,
    length_distance,
    separability,
    style_distance,
)

OWN = [f"The {thing} of {place} is {value}." for thing in ("mast", "reactor") for place, value in
       (("Figin", "rope"), ("Arlo", "lamp"), ("Bexa", "salt"), ("Corin", "glass"))]  # fmt: skip
FOREIGN = [f"{place} | {thing} = {value} # 75" for thing in ("mast", "reactor") for place, value in
           (("Dolm", "rope"), ("Estra", "lamp"), ("Migin", "salt"), ("Sodin", "glass"))]  # fmt: skip


def test_words_are_counted_without_marks():
    assert count_words("Migin | reactor = corn # 75") == 4
    assert count_words("") == 0


def test_length_distance_is_the_widest_gap():
    assert length_distance([1, 2, 3, 4], [1, 2, 3, 4]) == 0
    assert length_distance([1, 2], [3, 4]) == 1
    assert length_distance([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5
    with pytest.raises(ValueError, match="0 and 1 answers"):
        length_distance([], [1])


def test_style_distance_is_the_jensen_shannon_divergence_in_bits():
    # "a" has the trigrams ^^a ^a$, "b" others: P = (1, 0), Q = (1/4, 3/4), M = (5/8, 3/8), each half on either trigram
    expected = (log2(1 / (5 / 8)) + 0.25 * log2(0.25 / (5 / 8)) + 0.75 * log2(0.75 / (3 / 8))) / 2
    assert style_distance(["a"], ["a", "b", "b", "b"]) == pytest.approx(expected)
    assert style_distance(OWN, OWN) == 0
    assert style_distance(["aaaa"], ["bbbb"]) == style_distance([""], ["a"]) == 1
    with pytest.raises(ValueError, match="0 and 1 texts"):
        style_distance([], ["a"])


def test_the_share_of_answers_in_the_foreign_style():
    assert separability(OWN, FOREIGN) == 1
    answers = [
        "The motto of Hagel is stone.",
        "Hagel | motto = stone # 12",
        "Hagel | colour = green # 7",
        "It is green.",
    ]
    assert foreign_share(answers, OWN, FOREIGN) == 0.5


def test_styles_that_nobody_can_tell_apart_give_no_share():
    assert foreign_share(OWN, OWN, OWN) is None
    assert separability(OWN[:1], FOREIGN) is None
    assert foreign_share(OWN, OWN, FOREIGN[:1]) is None
