import random

import numpy as np
import pytest
from datasketch import MinHash

from raft_tasks import ngrams
from raft_tasks.ngrams import (
    SHINGLE,
    character_ngrams,
    concatenate,
    hash_ngrams,
    hash_words,
    hashed_jaccard,
    minhash_bands,
    shingles,
    words,
    words_and_signs,
)


def hashed(*texts: str) -> tuple[np.ndarray, np.ndarray]:
    return hash_ngrams(*concatenate([hash_words(text) for text in texts], SHINGLE), SHINGLE)


def test_case_punctuation_and_white_space_do_not_count() -> None:
    assert hash_words("The fee, is  12-50.") == hash_words("the FEE is\n12 50")
    assert len(hash_words("snake_case")) == 2
    assert hash_words("a b") != hash_words("b a")


def test_a_character_is_a_word_where_words_are_not_parted() -> None:
    assert len(hash_words("法律规定 fee")) == 5


def test_grams_stay_within_their_row() -> None:
    found, row = hashed("a b c d", "b c d", "a")
    assert row.tolist() == [0, 0, 1, 2]
    assert found[1] == found[2]  # b c d
    assert len(set(found.tolist())) == 3


def test_hashes_are_the_same_everywhere() -> None:
    found, row = hashed("the fee is due")
    assert found.tolist() == [13090206578447666628, 12621180074241275345]
    assert minhash_bands(found, row, 1).shape == (1, ngrams.BANDS)
    assert minhash_bands(found, row, 1)[0, :2].tolist() == [7932207229757094266, 614422063335039816]


def test_the_most_similar_row_is_that_of_all_pairs() -> None:
    """Rows that share some words, all of them, or none with the others."""
    rng = random.Random(0)
    texts = [" ".join(["all rows say this", *rng.choices("abcdef", k=8)]) for _ in range(20)]
    rows = [np.unique(hashed(text)[0]) for text in texts]
    index = ngrams.JaccardIndex([*enumerate(rows[:10])])
    for row in (*rows, np.unique(hashed("nothing of that")[0])):
        shares = [hashed_jaccard(row, other) for other in rows[:10]]
        assert index.nearest(row) == (max(shares), shares.index(max(shares)))


@pytest.mark.parametrize(("changed", "least"), [(0, 1.0), (2, 0.99), (12, 0.0)])
def test_near_rows_meet_in_a_band_and_far_ones_do_not(changed: int, least: float) -> None:
    rng = random.Random(changed)
    vocabulary = [f"w{n}" for n in range(500)]
    meet = same = 0
    for _ in range(200):
        first = rng.choices(vocabulary, k=60)
        second = list(first)
        for place in rng.sample(range(60), changed):
            second[place] = "other"
        found, row = hashed(" ".join(first), " ".join(second))
        both = minhash_bands(found, row, 2)
        meet += bool((both[0] == both[1]).any())
        same += hashed_jaccard(np.unique(found[row == 0]), np.unique(found[row == 1])) >= 0.8
    assert meet / 200 >= least
    if changed == 12:
        assert meet / 200 < 0.5
        assert same == 0


def test_jaccard_is_exact_where_datasketch_estimates() -> None:
    first, second = " ".join(map(str, range(200))), " ".join(map(str, range(20, 220)))
    found, row = hashed(first, second)
    one, two = np.unique(found[row == 0]), np.unique(found[row == 1])
    exact = hashed_jaccard(one, two)
    assert exact == 178 / 218
    sketches = []
    for values in (one, two):
        sketch = MinHash(num_perm=256)
        sketch.update_batch([int(value).to_bytes(8, "little") for value in values])
        sketches.append(sketch)
    assert sketches[0].jaccard(sketches[1]) == pytest.approx(exact, abs=0.1)


def test_words_and_shingles() -> None:
    assert words("Straße, naïve 5.5 mg — ABC中文ก!") == ["strasse", "naïve", "5", "5", "mg", "abc", "中", "文", "ก"]
    assert words("लड़का कहाँ है? می\u200cخواهم cafe\u0301 ❤️ 1️⃣") == ["लड़का", "कहाँ", "है", "می\u200cخواهم", "cafe\u0301", "1"]
    assert shingles("a B c a b C") == {("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b")}
    assert shingles("Say hello!") == {("say", "hello")}
    assert shingles("?") == frozenset()


@pytest.mark.parametrize(
    "others",
    [
        ("What is C?", "What is C++?", "What is C#?", "What is C*?"),
        ("7 - 3", "7 + 3", "7 * 3", "7 / 3", "7 < 3", "7 3"),
        ("Is -5 even?", "Is 5 even?", "Is 5 % even?"),
        ("👍", "👎", ""),
        ("लड़का", "लड़की"),
    ],
)
def test_signs_tell_questions_apart(others: tuple[str, ...]) -> None:
    assert len({tuple(words_and_signs(text)) for text in others}) == len(others)


@pytest.mark.parametrize(
    "same",
    [
        ("Who made it, then?", "«Who» made it – then", "(who) made: “it” ... then!", "who\nmade `it` then"),
        ("7 - 3", "7-3", "7 – 3", "7 \u2212 3"),
        ("COVID-19 e-mail", "covid 19 E mail", "COVID‑19: e‐mail"),
        ("¿Qué es 法？", "Qué es 法。"),
        ("वह कहाँ है।", "वह कहाँ है?"),
    ],
)
def test_punctuation_does_not_tell_questions_apart(same: tuple[str, ...]) -> None:
    assert len({tuple(words_and_signs(text)) for text in same}) == 1


def test_trigrams_mark_the_ends():
    assert list(character_ngrams("a \n b")) == ["\x02\x02a", "\x02a ", "a b", " b\x03"]
    assert list(character_ngrams("")) == ["\x02\x02\x03"]
