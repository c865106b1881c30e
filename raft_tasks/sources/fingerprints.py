"""What of a text is compared with other texts: hashes of its word n-grams, and MinHash bands of these.

Everything here is numpy on a batch of rows: `words` [W] are the hashed words of all rows one after the other,
`starts` [R+1] where each row's words begin. All hashes are the same on every machine and in every process.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

SHINGLE = 3  # words of a shingle, what near duplicates share
BANDS, ROWS = 14, 5  # a pair of Jaccard similarity J meets in a band with probability 1 - (1 - J^5)^14: .8 -> .996
# Scripts without spaces between words: a character is a word.
_DENSE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
WORD = re.compile(f"[{_DENSE}]|[^\\W_{_DENSE}]+")

_BASE = np.uint64(0x9E3779B97F4A7C15)  # of the polynomial; odd, so that it can be undone modulo 2^64
_random = np.random.Generator(np.random.PCG64(20260529))
_FACTORS = _random.integers(0, 2**64, BANDS * ROWS, dtype=np.uint64) | np.uint64(1)
_SHIFTS = _random.integers(0, 2**64, BANDS * ROWS, dtype=np.uint64)


def words_of(text: str) -> list[int]:
    """Hashes of the words of `text`, in order; case, punctuation and white space do not count."""
    return list(map(crc32, "\n".join(WORD.findall(text.lower())).encode().split()))


def batch(texts: Iterable[list[int]], least: int) -> tuple[Hashes, NDArray[np.int64]]:
    """(words [W], starts [R+1]) of rows' words; a row with fewer than `least` is filled up with zeros."""
    flat: list[int] = []
    starts = [0]
    for words in texts:
        flat += words
        if len(words) < least:
            flat += [0] * (least - len(words))
        starts.append(len(flat))
    return _mixed(np.array(flat, dtype=np.uint64)), np.array(starts, dtype=np.int64)


def grams(words: Hashes, starts: NDArray[np.int64], length: int) -> tuple[Hashes, NDArray[np.int64]]:
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
    return _mixed(hashed[starts[row] + offset]), row


def bands(shingles: Hashes, row: NDArray[np.int64], rows: int) -> Hashes:
    """MinHash bands [rows, BANDS] of the rows' shingles; every row has at least one, and `row` ascends."""
    begins = np.searchsorted(row, np.arange(rows))
    signature = np.empty((BANDS * ROWS, rows), dtype=np.uint64)
    for index, (factor, shift) in enumerate(zip(_FACTORS, _SHIFTS, strict=True)):
        signature[index] = np.minimum.reduceat(shingles * factor + shift, begins)
    combined = np.zeros((BANDS, rows), dtype=np.uint64)
    for position in range(ROWS):
        combined = _mixed(combined * _BASE + signature[position::ROWS])
    return combined.T


def jaccard(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> float:
    """Shared over all distinct shingles of two rows; each array holds distinct ones."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)


def _mixed(hashes: Hashes) -> Hashes:
    """Every bit of the result depends on every bit of the input (the finaliser of splitmix64)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))
