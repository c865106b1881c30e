"""Does a row repeat an item of a benchmark? Word n-grams that both have, as a share of the item's.

Items with fewer than `LENGTH` words have no n-gram: they count where a row's question is the item, word for word and
sign for sign.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from raft_tasks.ngrams import Hashes, concatenate, hash_ngrams, hash_question, hash_words

LENGTH = 8  # words of an n-gram


class BenchmarkIndex:
    """The n-grams of a benchmark's items; 12 bytes each.

    Args:
        items: (task and number, question).
        share: of an item's n-grams from which a row repeats it.
    """

    def __init__(self, items: Iterable[tuple[str, str]], share: float) -> None:
        self.share = share
        self.names: list[str] = []
        self._sizes: list[int] = []  # distinct n-grams of each item
        self._whole: dict[tuple[int, ...], int] = {}  # an item's words and signs -> the item
        hashes, owners = [], []
        for name, question in items:
            words = hash_words(question)
            number = len(self.names)
            self.names.append(name)
            if asked := hash_question(question):
                self._whole.setdefault(tuple(asked), number)
            grams = np.zeros(0, dtype=np.uint64)
            if len(words) >= LENGTH:
                grams = np.unique(hash_ngrams(*concatenate([words], LENGTH), LENGTH)[0])
            self._sizes.append(len(grams))
            hashes.append(grams)
            owners.append(np.full(len(grams), number, dtype=np.int32))
        flat = np.concatenate([np.zeros(0, dtype=np.uint64), *hashes])
        order = np.argsort(flat, kind="stable")
        self._hashes: Hashes = flat[order]
        self._owners = np.concatenate([np.zeros(0, dtype=np.int32), *owners])[order]

    def matches(self, words: Hashes, starts: NDArray[np.int64]) -> dict[int, tuple[str, float]]:
        """{row of the batch: (item, share of its n-grams)} for rows that repeat an item; the most repeated one."""
        hashes, row = hash_ngrams(words, starts, LENGTH)
        low = np.searchsorted(self._hashes, hashes, side="left")
        high = np.searchsorted(self._hashes, hashes, side="right")
        shared: dict[int, Counter[int]] = {}
        seen: set[tuple[int, int]] = set()
        for hit in np.flatnonzero(high > low):
            where, gram = int(row[hit]), int(low[hit])
            if (where, gram) not in seen:  # a row that says an n-gram twice shares it once
                seen.add((where, gram))
                shared.setdefault(where, Counter()).update(self._owners[low[hit] : high[hit]].tolist())
        found = {}
        for where, counts in shared.items():
            share, item = max((count / self._sizes[item], -item) for item, count in counts.items())
            if share >= self.share:
                found[where] = self.names[-item], share
        return found

    def item_of(self, question: list[int]) -> str | None:
        """The item that a question's words and signs are, whole."""
        number = self._whole.get(tuple(question))
        return None if number is None else self.names[number]
