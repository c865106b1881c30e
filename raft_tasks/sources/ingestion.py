"""All rows of a domain: read, checked, cleaned of duplicates and contamination, split. Every row ends kept or rejected.

Rows are read once and wait on disk (`Spool`) with their keys while the rules that compare rows are decided; 14 bytes a
row stay in memory. The rules, in order; a row is rejected by the first that holds:

1. unreadable, unusable, missing, too long, too short, several turns: the row itself (`files`, `examples`)
2. language: question and answer are surely in another one than `hygiene.language`
3. privacy: a secret or personal datum, where `hygiene.privacy` says reject; not learnable, not askable: `ingest_rows`
4. contamination: a benchmark's item (`contamination.py`)
5. duplicate: question and answer of an earlier row; id: an earlier row's with other content
6. contamination: the same question as a held-out row, or (with `hygiene.near_duplicates`) nearly the same row
7. near duplicate: the word triples of a row before it in the same split, by MinHash and then exactly

Where a domain declares `sources_may_straddle`, its splits share facts on purpose, and rule 6 is not applied.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raft_tasks import ngrams
from raft_tasks.config import Domain, Ingest, SplitBySource
from raft_tasks.errors import InputError
from raft_tasks.schemas import Example, Flag, Reject, Split
from raft_tasks.sources.contamination import LENGTH, BenchmarkIndex
from raft_tasks.sources.conversations import UnusableError
from raft_tasks.sources.examples import SPLITS, content_key, examples_of, hash_row
from raft_tasks.sources.files import RawRow, find_files, read_file, reject
from raft_tasks.sources.hub import read_hub
from raft_tasks.sources.language import other_language
from raft_tasks.sources.privacy import Finding, findings, mask
from raft_tasks.sources.roles import roles_of
from raft_tasks.sources.spool import Spool

BATCH = 1024  # rows that are fingerprinted together
CONTENT_KEPT = 1000  # characters of a row as its file has it that wait with it, for the case that it is rejected
COMPARED = 4  # rows of a MinHash bucket that each further one of their split is compared with
REJECT, KEPT, DUPLICATE, SAME_ID, SAME_QUESTION, NEAR_HELD_OUT, NEAR = range(7)  # what becomes of a row
RULES = {
    DUPLICATE: "duplicate",
    SAME_ID: "id",
    SAME_QUESTION: "contamination",
    NEAR_HELD_OUT: "contamination",
    NEAR: "near duplicate",
}
RowCheck = Callable[[Example], str | None]


@dataclass(frozen=True)
class Line:
    """A row as it is written: a JSON object of `artifact`, which is a split, `rejects` or `flags`."""

    artifact: str
    text: str
    rule: str | None = None  # of a reject or a flag: what it is counted by


@dataclass(frozen=True)
class _Waiting:
    """An example that no rule has rejected yet, `place`d in its batch."""

    place: int
    example: Example
    row: RawRow
    flags: bytes
    asked: list[int]  # a word for the turns before, the question's words and signs; none where no rule needs them
    words: list[int]  # the question's and the answer's, after a word for the history, if there is one
    before: list[int]  # the history's


class Ingested:
    """The domain's rows, decided, on disk in the `work` folder until `close`.

    Iterating gives Examples and Rejects in the files' order; `lines` gives the same as text, with flags.
    """

    def __init__(
        self, name: str, domain: Domain, ingest: Ingest, work: Path, index: BenchmarkIndex | None, check: RowCheck
    ) -> None:
        self.name, self.domain, self.ingest, self.index, self.check = name, domain, ingest, index, check
        self.roles = roles_of(domain)
        hygiene = domain.hygiene
        straddle = domain.split.by == "column" and domain.split.sources_may_straddle
        self._protected = hygiene.contamination is not None and not straddle  # held-out rows, from training rows
        self._near = hygiene.near_duplicates
        self._has_sources = domain.split.by == "column" and not straddle
        self._bands = [f"band_{n}" for n in range(ngrams.BANDS)] if self._near else []
        names = ["content", "id", "source", "question", *self._bands]
        self._spool = Spool(work / "rows.sqlite", names)
        self._straddle = straddle
        self.read = self.refused = 0  # rows of the files, and those without any example: a conversation has several
        self._states, self._splits = bytearray(), bytearray()  # of every row: its decision, its split's place in SPLITS
        self.state: NDArray[np.uint8] = np.zeros(0, dtype=np.uint8)
        self._splits_of = self.state
        self._other: NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # the row that this one repeats
        self._share: NDArray[np.float32] = np.zeros(0, dtype=np.float32)  # how much of it

    def add(self, rows: Iterable[RawRow | Reject]) -> None:
        """Read `rows`, apply the rules that need a row alone, and put all of them down with their keys."""
        stream = iter(rows)
        while self._add_batch(islice(stream, BATCH)):
            pass

    def _add_batch(self, rows: Iterator[RawRow | Reject]) -> bool:
        """Returns whether there were rows. No more than one is held as its file has it: a line can have megabytes."""
        waiting: list[_Waiting] = []
        records: list[bytes] = []
        for row in rows:
            self.read += 1
            if isinstance(row, Reject):
                records.append(_rejected(row))
                continue
            try:
                examples = examples_of(row, self.name, self.domain, self.ingest)
                checked = [(example, self._check(example, row)) for example in examples]
            except UnusableError as why:
                records.append(_rejected(_reject(row, str(why), why.rule)))
                continue
            short = RawRow(row.file, row.line, {}, row.content[:CONTENT_KEPT])
            for example, flags in checked:
                words = hash_row(example) if self._needs_words else ([], [], [])
                waiting.append(_Waiting(len(records), example, short, flags, *words))
                records.append(b"")
        self.refused += len(records) - len(waiting)
        waiting = self._without_benchmark_items(waiting, records)
        states, splits = bytearray(len(records)), bytearray(len(records))
        for entry in waiting:
            origin = json.dumps([entry.row.file, entry.row.line, entry.row.content]).encode()
            records[entry.place] = entry.example.model_dump_json().encode() + b"\n" + origin + entry.flags
            states[entry.place], splits[entry.place] = KEPT, SPLITS.index(entry.example.split)
        self._add_keys(waiting)
        self._spool.append(records)
        self._states += states
        self._splits += splits
        return bool(records)

    @property
    def _needs_words(self) -> bool:
        return self._near is not None or self._protected or self.index is not None

    def _check(self, example: Example, row: RawRow) -> bytes:
        """The rules on one example; returns its flags as lines, each after a newline."""
        hygiene = self.domain.hygiene
        parts = [*(turn["content"] for turn in example.history), example.question, example.answer]
        text = "\n".join([*parts, *filter(None, [example.explanation])])
        if hygiene.language is not None:
            language = other_language(text, hygiene.language)
            if language is not None:
                raise UnusableError(f"the text is {language!r}, expected {hygiene.language!r}", "language")
        private = findings(text)
        if private and hygiene.privacy == "reject":
            named = ", ".join(mask(text, finding) for finding in private)
            raise UnusableError(f"private: {named}", "privacy")
        if (problem := self.check(example)) is not None:
            raise UnusableError(problem, "not learnable" if example.split == "train" else "not askable")
        return b"".join(b"\n" + _flag(example.id, row, text, finding) for finding in private)

    def _without_benchmark_items(self, waiting: list[_Waiting], records: list[bytes]) -> list[_Waiting]:
        """Those that repeat no benchmark's item; the others become rejects in `records`."""
        if self.index is None or not waiting:
            return waiting
        texts = ([*entry.before, *entry.words] for entry in waiting)
        matches = self.index.matches(*ngrams.concatenate(texts, LENGTH))
        clean = []
        for number, entry in enumerate(waiting):
            whole = self.index.item_of(entry.asked[1:])
            if number in matches:
                name, share = matches[number]
                reason = f"contamination: repeats {name} ({share:.0%} of its word {LENGTH}-grams)"
            elif whole is not None:
                reason = f"contamination: repeats {whole} (the same question)"
            else:
                clean.append(entry)
                continue
            records[entry.place] = _rejected(_reject(entry.row, reason, "contamination"))
        return clean

    def _add_keys(self, waiting: list[_Waiting]) -> None:
        """Store what rows are compared by: keys that equal rows share, bands that near ones do, and their shingles."""
        if not waiting:
            return
        rows = [self._spool.count + entry.place for entry in waiting]
        bands: Iterable[Sequence[int]] = [()] * len(rows)
        if self._near:
            words, starts = ngrams.concatenate((entry.words for entry in waiting), ngrams.SHINGLE)
            hashes, owner = ngrams.hash_ngrams(words, starts, ngrams.SHINGLE)
            bands = ngrams.minhash_bands(hashes, owner, len(waiting)).view(np.int64).tolist()
            ends = np.searchsorted(owner, np.arange(len(waiting) + 1)).tolist()
            parts = (hashes[begin:end].tobytes() for begin, end in pairwise(ends))
            self._spool.append_shingles(zip(rows, parts, strict=True))
        keys = []
        for row, entry, band in zip(rows, waiting, bands, strict=True):
            example = entry.example
            content = content_key(example.question, example.answer, example.history)[:16]
            asked = np.array(entry.asked, dtype=np.uint32).tobytes()
            digests = map(_digest, (example.id.encode(), example.source.encode(), asked))
            keys.append((row, content, *digests, *band))
        self._spool.append_keys(keys)

    def decide(self) -> None:
        """Apply the rules that compare rows."""
        self.state = np.frombuffer(self._states, dtype=np.uint8)
        self._splits_of = np.frombuffer(self._splits, dtype=np.uint8)
        self._other = np.full(len(self.state), -1, dtype=np.int64)
        self._share = np.ones(len(self.state), dtype=np.float32)
        for group in self._spool.groups("content", self.state == KEPT):
            self._drop(group[1:], DUPLICATE, group[0])
        for group in self._spool.groups("id", self.state == KEPT):
            self._drop(group[1:], SAME_ID, group[0])
        if self._protected:
            for group in self._spool.groups("question", self.state == KEPT):
                held_out = group[self._splits_of[group] > 0]
                if len(held_out):
                    self._drop(group[self._splits_of[group] == 0], SAME_QUESTION, held_out[0])
        for band in self._bands:
            for group in self._spool.groups(band, self.state == KEPT):
                self._drop_near(group)

    def _drop(self, rows: NDArray[np.int64], state: int, other: int, share: float = 1.0) -> None:
        self.state[rows], self._other[rows], self._share[rows] = state, other, share

    def _drop_near(self, group: NDArray[np.int64]) -> None:
        """Of the rows of a bucket, drop what repeats a row before it: test, validation, training, each as they came.

        All rows of the splits before are compared, and COMPARED ones of the same split.
        """
        assert self._near is not None
        held: list[tuple[int, NDArray[np.uint64]]] = []
        for split in reversed(range(len(SPLITS))):
            index = ngrams.JaccardIndex(held) if held and not self._straddle else None
            kept: list[tuple[int, NDArray[np.uint64]]] = []
            for row in group[self._splits_of[group] == split].tolist():
                shingles = self._spool.shingles(row)
                share, other = index.nearest(shingles) if index else (0.0, -1)
                if share < self._near:
                    shares = [(ngrams.hashed_jaccard(shingles, others), other) for other, others in kept[:COMPARED]]
                    share, other = max(shares, default=(0.0, -1))
                if share >= self._near:
                    training = split == 0 and self._splits_of[other] > 0
                    self._drop(np.array([row]), NEAR_HELD_OUT if training else NEAR, other, share)
                elif split or len(kept) < COMPARED:
                    kept.append((row, shingles))
            held += kept

    def lines(self) -> Iterator[Line]:
        """Every row as text, in order, and the flags of the kept ones."""
        for number, record in enumerate(self._spool):
            state = self.state[number]
            if state == REJECT:
                text = record.decode()
                yield Line("rejects", text, json.loads(text)["rule"])
                continue
            parts = record.decode().split("\n")
            if state == KEPT:
                yield Line(SPLITS[self._splits_of[number]], parts[0])
                for flag in parts[2:]:
                    yield Line("flags", flag, json.loads(flag)["rule"])
            else:
                file, line, content = json.loads(parts[1])
                row = RawRow(file, line, {}, content)
                rule = RULES[int(state)]
                yield Line("rejects", _reject(row, self._reason(number), rule).model_dump_json(), rule)

    def __iter__(self) -> Iterator[Example | Reject]:
        for line in self.lines():
            if line.artifact == "rejects":
                yield Reject.model_validate_json(line.text)
            elif line.artifact != "flags":
                yield Example.model_validate_json(line.text)

    def _reason(self, number: int) -> str:
        state, other = self.state[number], int(self._other[number])
        there = self._place(other)
        if state == SAME_ID:
            identity = json.loads(self._spool[number].split(b"\n", 1)[0])["id"]
            return f"id {identity!r} has other content in {there}"
        if state == DUPLICATE:
            return f"duplicate of {there}"
        if state == SAME_QUESTION:
            return f"contamination: the question of the held-out row {there}"
        gone = "" if self.state[other] == KEPT else ", which is rejected too"
        share = f"{self._share[number]:.2f} of their word triples shared"
        if state == NEAR_HELD_OUT:
            return f"contamination: near the held-out row {there} ({share}){gone}"
        return f"near duplicate of {there} ({share}){gone}"

    def _place(self, number: int) -> str:
        file, line, _ = json.loads(self._spool[number].split(b"\n", 2)[1])
        return f"{file}:{line}"

    def sizes(self) -> dict[Split, int]:
        """Kept rows per split."""
        counts = np.bincount(self._splits_of[self.state == KEPT], minlength=len(SPLITS))
        return dict(zip(SPLITS, counts.tolist(), strict=True))

    def check_sources(self) -> None:
        """Raises InputError for a source in more than one split, where that is not declared."""
        if not self._has_sources:
            return
        straddling: list[str] = []
        count = 0
        for group in self._spool.groups("source", self.state == KEPT):
            found = sorted({SPLITS[place] for place in self._splits_of[group]})
            if len(found) > 1:
                count += 1
                if len(straddling) < 5:
                    source = json.loads(self._spool[int(group[0])].split(b"\n", 1)[0])["source"]
                    straddling.append(f"{source!r} ({', '.join(found)})")
        if count:
            more = f" and {count - 5} more" if count > 5 else ""
            raise InputError(
                f"domains.{self.name}: {count} source(s) in more than one split: {', '.join(straddling)}{more}; "
                "correct the split column, or set split.sources_may_straddle if that is meant"
            )

    def check_splits(self) -> None:
        """Raises InputError if there is nothing to train on, or nothing to test with."""
        sizes = self.sizes()
        empty = [split for split in ("train", "test") if not sizes[split]]
        if not empty:
            return
        sources = len({row.source for row in self if isinstance(row, Example)})
        rejects = islice((row for row in self if isinstance(row, Reject)), 1)
        counts = ", ".join(f"{split} {size}" for split, size in sizes.items())
        reasons = "".join(f"; first reject {row.file}:{row.line}: {row.reason}" for row in rejects)
        remedy = (
            "give more sources, other shares or another split.seed"
            if isinstance(self.domain.split, SplitBySource)
            else f"correct column {self.domain.columns.split!r}"
        )
        raise InputError(
            f"domains.{self.name}: no row for {' and '.join(empty)}: {counts} from {sources} source(s), "
            f"{len(self.state) - sum(sizes.values())} row(s) rejected{reasons}; {remedy}"
        )

    def close(self) -> None:
        self._spool.close()


def ingest_rows(
    name: str,
    domain: Domain,
    ingest: Ingest,
    workspace: Path,
    work: Path,
    index: BenchmarkIndex | None,
    check: RowCheck = lambda example: None,
) -> Ingested:
    """Read, check and split the rows of one domain, in the files' order; the same files give the same rows.

    Args:
        name: the domain's, the prefix of ids that come from the content.
        domain: its files (glob patterns within `workspace`), data set, columns, split and hygiene.
        ingest: bounds on a row.
        workspace: the folder that no file may lie outside of.
        work: an empty folder for what waits on disk.
        index: the items of the benchmarks in use; None where contamination with them is not asked for.
        check: why a training row cannot be learned, or a held-out question not be asked, or None.

    Raises:
        InputError: a file as a whole is wrong, a source stands in two splits, or train or test came out empty.
    """
    if domain.split.by == "column" and domain.columns.split is None:
        raise InputError(f"domains.{name}: split.by is 'column', but columns.split is null; name the column")
    ingested = Ingested(name, domain, ingest, work, index, check)
    try:
        for path in find_files(domain.files, workspace):
            ingested.add(read_file(path, ingested.roles))
        if domain.hub is not None:
            ingested.add(read_hub(domain.hub, ingested.roles, workspace))
        ingested.decide()
        ingested.check_sources()
        ingested.check_splits()
    except BaseException:
        ingested.close()
        raise
    return ingested


def _reject(row: RawRow, reason: str, rule: str) -> Reject:
    return reject(row.file, row.line, reason, row.content, rule)


def _rejected(row: Reject) -> bytes:
    return row.model_dump_json().encode()


def _flag(identity: str, row: RawRow, text: str, finding: Finding) -> bytes:
    shown = mask(text, finding)
    return Flag(id=identity, file=row.file, line=row.line, rule=finding.rule, shown=shown).model_dump_json().encode()


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
