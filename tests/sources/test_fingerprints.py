import random

import numpy as np
import pytest
from datasketch import MinHash

from raft_tasks.sources import fingerprints
from raft_tasks.sources.fingerprints import SHINGLE, bands, batch, grams, jaccard, words_of


def shingles(*texts: str) -> tuple[np.ndarray, np.ndarray]:
    return grams(*batch([words_of(text) for text in texts], SHINGLE), SHINGLE)


def test_case_punctuation_and_white_space_do_not_count() -> None:
    assert words_of("The fee, is  12-50.") == words_of("the FEE is\n12 50")
    assert len(words_of("snake_case")) == 2
    assert words_of("a b") != words_of("b a")


def test_a_character_is_a_word_where_words_are_not_parted() -> None:
    assert len(words_of("法律规定 fee")) == 5


def test_grams_stay_within_their_row() -> None:
    found, row = shingles("a b c d", "b c d", "a")
    assert row.tolist() == [0, 0, 1, 2]
    assert found[1] == found[2]  # b c d
    assert len(set(found.tolist())) == 3


def test_hashes_are_the_same_everywhere() -> None:
    found, row = shingles("the fee is due")
    assert found.tolist() == [13090206578447666628, 12621180074241275345]
    assert bands(found, row, 1).shape == (1, fingerprints.BANDS)
    assert bands(found, row, 1)[0, :2].tolist() == [7932207229757094266, 614422063335039816]


@pytest.mark.parametrize(("changed", "least"), [(0, 1.0), (2, 0.99), (12, 0.0)])
def test_near_rows_meet_in_a_band_and_far_ones_do_not(changed: int, least: float) -> None:
    rng = random.Random(changed)
    words = [f"w{n}" for n in range(500)]
    meet = same = 0
    for _ in range(200):
        first = rng.choices(words, k=60)
        second = list(first)
        for place in rng.sample(range(60), changed):
            second[place] = "other"
        found, row = shingles(" ".join(first), " ".join(second))
        both = bands(found, row, 2)
        meet += bool((both[0] == both[1]).any())
        same += jaccard(np.unique(found[row == 0]), np.unique(found[row == 1])) >= 0.8
    assert meet / 200 >= least
    if changed == 12:
        assert meet / 200 < 0.5
        assert same == 0


def test_jaccard_is_exact_where_datasketch_estimates() -> None:
    first, second = " ".join(map(str, range(200))), " ".join(map(str, range(20, 220)))
    found, row = shingles(first, second)
    one, two = np.unique(found[row == 0]), np.unique(found[row == 1])
    exact = jaccard(one, two)
    assert exact == 178 / 218
    sketches = []
    for values in (one, two):
        sketch = MinHash(num_perm=256)
        sketch.update_batch([int(value).to_bytes(8, "little") for value in values])
        sketches.append(sketch)
    assert sketches[0].jaccard(sketches[1]) == pytest.approx(exact, abs=0.1)
