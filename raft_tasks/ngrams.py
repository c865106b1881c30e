"""N-grams of words and of characters: shingles, overlap, Jaccard similarity, MinHash.

Two forms of the same thing. Sets of tuples, for a few thousand texts: `shingles`, `jaccard`. Hashes in numpy, for
millions of rows: `words` [W] are the hashed words of all rows one after the other, `starts` [R+1] where each row's
words begin. Hashes are the same on every machine and in every process.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

Shingles = frozenset[tuple[str, ...]]
Hashes = NDArray[np.uint64]

SHINGLE = 3  # words of a shingle; questions are too short for the 8 to 13 that are usual for documents
BANDS, ROWS = 14, 5  # a pair of Jaccard similarity J meets in a band with probability 1 - (1 - J^5)^14: .8 -> .996
# Scripts without spaces between words (Japanese, Chinese, Thai, Lao, Burmese, Khmer): a character is a word.
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
# Combining marks (vowel signs of Indic scripts, points of Arabic and Hebrew, accents) and joiners belong to the letter
# before them; `re` takes them for punctuation. Those above U+FE00 (emoji's variation selectors) are left out.
_MARKS = (chr(code) for code in range(0x300, 0xFE00) if unicodedata.category(chr(code)) in ("Mn", "Mc"))
MARKS = re.sub(f"[{UNSPACED}]", "", "".join(_MARKS)) + "\u200c\u200d"
_LETTER = rf"[^\W_{UNSPACED}]"
WORD = re.compile(rf"[{UNSPACED}]|{_LETTER}+(?:[{MARKS}]+{_LETTER}*)*")
DASH = re.compile("[\u2010-\u2015\u2212]")
MINUS = r"(?<![^\W\d_])-(?=\s?\d)"  # not within a name: COVID-19
WORD_OR_SIGN = re.compile(rf"{WORD.pattern}|{MINUS}|[^\w\s-]")
SIGNS, NO_SIGNS = frozenset("-#%&*/@\\"), frozenset("`´¨®©™")  # beside, and among, Unicode's symbols

_BASE = np.uint64(0x9E3779B97F4A7C15)  # of the polynomial; odd, so that it has an inverse modulo 2^64
_random = np.random.Generator(np.random.PCG64(20260529))
_FACTORS = _random.integers(0, 2**64, BANDS * ROWS, dtype=np.uint64) | np.uint64(1)
_SHIFTS = _random.integers(0, 2**64, BANDS * ROWS, dtype=np.uint64)


def words(text: str) -> list[str]:
    """Case-folded words; punctuation and white space do not count."""
    return WORD.findall(text.casefold())


def words_and_signs(text: str) -> list[str]:
    """Case-folded words and signs (+, <, #, an emoji), in order: "What is C?" is not "What is C++?".

    Other punctuation does not count.
    """
    parts = WORD_OR_SIGN.findall(DASH.sub("-", text.casefold()))
    return [
        part
        for part in parts
        if len(part) > 1 or part in SIGNS or (part not in NO_SIGNS and unicodedata.category(part)[0] in "LNS")
    ]


def word_ngrams(words: Sequence[str], length: int = SHINGLE) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(length)), strict=False)


def character_ngrams(text: str, length: int = 3) -> Iterator[str]:
    """N-grams of a text with marked ends, so that an empty one has one; white space counts as one blank."""
    marked = "\x02" * (length - 1) + " ".join(text.split()) + "\x03"
    return (marked[start : start + length] for start in range(len(marked) - length + 1))


def shingles(text: str) -> Shingles:
    """Word trigrams; a text of one or two words is one whole shingle, one without words has none."""
    sequence = words(text)
    if len(sequence) < SHINGLE:
        return frozenset({tuple(sequence)} if sequence else ())
    return frozenset(word_ngrams(sequence))


def jaccard(first: Shingles, second: Shingles) -> float:
    """Shared over all distinct shingles."""
    return len(first & second) / len(first | second)


def hash_words(text: str) -> list[int]:
    """Hashes of `words(text)`, in order."""
    return list(map(crc32, "\n".join(words(text)).encode().split()))


def hash_question(text: str) -> list[int]:
    """Hashes of `words_and_signs(text)`, in order: equal where two texts ask the same."""
    return list(map(crc32, "\n".join(words_and_signs(text)).encode().split()))


def concatenate(rows: Iterable[list[int]], least: int) -> tuple[Hashes, NDArray[np.int64]]:
    """(words [W], starts [R+1]) of rows of hashed words; a row with fewer than `least` is padded with zeros."""
    flat: list[int] = []
    starts = [0]
    for row in rows:
        flat += row
        if len(row) < least:
            flat += [0] * (least - len(row))
        starts.append(len(flat))
    return _mix(np.array(flat, dtype=np.uint64)), np.array(starts, dtype=np.int64)


def hash_ngrams(words: Hashes, starts: NDArray[np.int64], length: int) -> tuple[Hashes, NDArray[np.int64]]:
    """Hashes of the rows' n-grams of `length` words [G], and the row of each [G]; rows have at least `length` words."""
    total = len(words) - length + 1
    if total < 1:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    hashed = np.zeros(total, dtype=np.uint64)
    for position in range(length):
        hashed = hashed * _BASE + words[position : position + total]
    lengths = np.diff(starts) - (length - 1)
    row = np.repeat(np.arange(len(lengths)), lengths)
    offset = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return _mix(hashed[starts[row] + offset]), row


def minhash_bands(hashes: Hashes, row: NDArray[np.int64], rows: int) -> Hashes:
    """MinHash bands [rows, BANDS] of the rows' n-grams; every row has at least one, and `row` ascends."""
    begins = np.searchsorted(row, np.arange(rows))
    signature = np.empty((BANDS * ROWS, rows), dtype=np.uint64)
    for index, (factor, shift) in enumerate(zip(_FACTORS, _SHIFTS, strict=True)):
        signature[index] = np.minimum.reduceat(hashes * factor + shift, begins)
    combined = np.zeros((BANDS, rows), dtype=np.uint64)
    for position in range(ROWS):
        combined = _mix(combined * _BASE + signature[position::ROWS])
    return combined.T


def hashed_jaccard(first: Hashes, second: Hashes) -> float:
    """Shared over all distinct n-grams of two rows; each array holds distinct ones."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


class JaccardIndex:
    """Rows by their distinct n-grams, to find the one that is most similar to another row.

    Args:
        rows: (number, distinct n-grams) of each; at least one.
    """

    def __init__(self, rows: Sequence[tuple[int, Hashes]]) -> None:
        self._numbers = [number for number, _ in rows]
        self._sizes = np.array([len(hashes) for _, hashes in rows])
        flat = np.concatenate([hashes for _, hashes in rows])
        order = np.argsort(flat, kind="stable")
        self._hashes, self._owners = flat[order], np.repeat(np.arange(len(rows)), self._sizes)[order]

    def nearest(self, hashes: Hashes) -> tuple[float, int]:
        """(Jaccard similarity, number) of the most similar row; the first of equals."""
        low, high = (np.searchsorted(self._hashes, hashes, side) for side in ("left", "right"))
        shared_by_all = high - low == len(self._numbers)  # a template's, which are counted at once
        ranges = zip(low[~shared_by_all], high[~shared_by_all], strict=True)
        owners = np.concatenate([self._owners[:0], *(self._owners[begin:end] for begin, end in ranges)])
        shared = shared_by_all.sum() + np.bincount(owners, minlength=len(self._numbers))
        shares = shared / (len(hashes) + self._sizes - shared)
        nearest = int(shares.argmax())
        return float(shares[nearest]), self._numbers[nearest]


def _mix(hashes: Hashes) -> Hashes:
    """Every bit of the result depends on every bit of the input (the finaliser of splitmix64)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))
