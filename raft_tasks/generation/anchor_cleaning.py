"""Which generated anchors are kept: well-formed ones that repeat neither each other nor a held-out text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import fsum, log1p

from raft_tasks.config import AnchorSet
from raft_tasks.generation.encoding import SentenceEncoder
from raft_tasks.ngrams import SHINGLE, Shingles, jaccard, shingles, word_ngrams, words
from raft_tasks.schemas import Anchor, AnchorCluster, AnchorStatistics, GeneratedAnchor, RejectedAnchor

PERMUTATIONS = 128
BANDS = (32, 4)  # bands x rows of the sketch: finds an overlap of .5 in 87 % of the cases, one of .7 in 99.98 %
CLUSTERS = 8  # of the statistics: as many as can be read at a glance
MALFORMED = ("unfinished", "empty", "degenerate", "unencodable")  # how the reasons begin that concern the form


@dataclass(frozen=True)
class Cleaning:
    """What anchors are checked against.

    Args:
        held_out: questions of benchmarks and of the domains' validation and test rows. An anchor is near one if its
            prompt or its answer holds `held_out_overlap` of the text's word trigrams, rare ones counting more.
        measured: what `settings.without` leaves out: questions and answers of its tasks. Prompt and answer tell it
            together.
        is_encodable: whether the tokenizer makes of the texts what a training can learn. A base may write what its own
            tokenizer does not read.
        encoder: for the statistics alone.
    """

    settings: AnchorSet
    held_out: Iterable[str] = ()
    measured: Iterable[str] = ()
    is_encodable: Callable[[GeneratedAnchor], bool] = lambda row: True
    encoder: SentenceEncoder | None = None


def clean_anchors(
    rows: Sequence[GeneratedAnchor], cleaning: Cleaning
) -> tuple[list[Anchor], list[RejectedAnchor], AnchorStatistics]:
    """Keep what is well-formed, new, and tells nothing that is held out; of equals in `rows`, a whole set, the first.

    Reasons are looked for in the order of their cost.
    """
    held_out, measured = _TextIndex(cleaning.held_out), _TextIndex(cleaning.measured)
    duplicates = _Duplicates(cleaning.settings.duplicate_overlap)
    anchors: list[Anchor] = []
    rejected: list[RejectedAnchor] = []
    for row in rows:
        reason, near = _malformed(row, cleaning.settings.unfinished), None
        if reason is None:
            reason, near = _find_overlap(row, held_out, measured, cleaning.settings)
        if reason is None and not cleaning.is_encodable(row):
            reason = "unencodable"
        if reason is None:
            reason, near = duplicates.add(row)
        if reason is None:
            anchors.append(
                Anchor(
                    id=row.id, prompt=row.prompt, answer=row.answer, finished=row.answer_finished, history=row.history
                )
            )
        else:
            rejected.append(RejectedAnchor.model_validate({**dict(row), "reason": reason, "near": near}))
    return anchors, rejected, _statistics(anchors, rejected, cleaning)


def _find_overlap(
    row: GeneratedAnchor, held_out: _TextIndex, measured: _TextIndex, settings: AnchorSet
) -> tuple[str, str] | tuple[None, None]:
    """Why the row tells what it must not, and the text that it tells."""
    prompt, answer = shingles(row.in_context), shingles(row.answer)
    for part in (prompt, answer):
        if near := held_out.find(part, settings.held_out_overlap):
            return "near held-out text", near
    if settings.without and (near := measured.find(prompt | answer, settings.without.overlap)):
        return "tells what is measured", near
    return None, None


class _Duplicates:
    """Prompts so far, to find equal and near-equal ones: MinHash proposes, the overlap itself decides."""

    def __init__(self, overlap: float) -> None:
        from datasketch import MinHashLSH

        self.overlap, self.similar = overlap, MinHashLSH(num_perm=PERMUTATIONS, params=BANDS)
        self.shingles: dict[str, Shingles] = {}  # by id
        self.ids: dict[str, str] = {}  # by folded prompt

    def add(self, row: GeneratedAnchor) -> tuple[str, str] | tuple[None, None]:
        """Remember the prompt, or say why not and the id of the earlier row."""
        from datasketch import MinHash

        folded, prompt = " ".join(row.in_context.casefold().split()), shingles(row.in_context)
        if folded in self.ids:
            return "duplicate", self.ids[folded]
        sketch = MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch([" ".join(shingle).encode() for shingle in prompt])
        for id in sorted(self.similar.query(sketch)):
            if jaccard(prompt, self.shingles[id]) >= self.overlap:
                return "near duplicate", id
        self.similar.insert(row.id, sketch)
        self.ids[folded], self.shingles[row.id] = row.id, prompt
        return None, None


def degenerate(text: str) -> bool:
    """Whether half of the word trigrams or more repeat earlier ones, or letters are broken.

    Saying something twice stays below half, saying it three times does not.
    """
    count = len(words(text)) - SHINGLE + 1
    return "\ufffd" in text or (count > 1 and len(shingles(text)) <= count / 2)


class _TextIndex:
    """Texts by their shingles, each weighted by its rarity among the texts, log(1 + texts / texts that have it).

    Unweighted, "I want to know the emblem of" alone would make two questions about different things the same.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = list(dict.fromkeys(texts))
        self.positions: dict[tuple[str, ...], list[int]] = defaultdict(list)
        by_text = [shingles(text) for text in self.texts]
        for number, of_text in enumerate(by_text):
            for shingle in of_text:
                self.positions[shingle].append(number)
        self.totals = [fsum(map(self.weight, of_text)) for of_text in by_text]

    def weight(self, shingle: tuple[str, ...]) -> float:
        return log1p(len(self.texts) / len(self.positions[shingle]))

    def find(self, query: Shingles, bound: float) -> str | None:
        """The text of whose weight these shingles hold the largest share, if that is `bound` or more."""
        held: dict[int, list[float]] = defaultdict(list)
        for shingle in query & self.positions.keys():
            for number in self.positions[shingle]:
                held[number].append(self.weight(shingle))
        # fsum: the whole is exactly 1, in whatever order a set yields its members.
        shares = {number: fsum(weights) / self.totals[number] for number, weights in held.items()}
        most = max(sorted(shares), key=shares.__getitem__, default=None)
        return None if most is None or shares[most] < bound else self.texts[most]


def _malformed(row: GeneratedAnchor, unfinished: str) -> str | None:
    if row.prompt or not row.answer:  # else a text without prompt
        if not row.prompt_finished:
            return "unfinished prompt"
        if not words(row.prompt):
            return "empty prompt"
        if degenerate(row.prompt):
            return "degenerate prompt"
    if not row.answer_finished and unfinished == "drop":
        return "unfinished answer"
    if not row.answer:
        return "empty answer"
    return "degenerate answer" if degenerate(row.answer) else None


def _statistics(anchors: list[Anchor], rejected: list[RejectedAnchor], cleaning: Cleaning) -> AnchorStatistics:
    settings, encoder = cleaning.settings, cleaning.encoder
    reasons = Counter(row.reason for row in rejected)
    generated = len(anchors) + len(rejected)
    malformed = sum(count for reason, count in reasons.items() if reason.split()[0] in MALFORMED)
    well_formed = (generated - malformed) / max(1, generated)
    warning = None
    if well_formed < settings.min_well_formed:
        counts = ", ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items()))
        warning = (
            f"the base does not generate prompts well: {well_formed:.0%} of {generated} are well-formed, expected "
            f"{settings.min_well_formed:.0%} or more ({counts}). "
            "It may never have learned user turns: give it prompts of your own instead, or lower anchors.temperature"
        )
    texts = [anchor.prompt or anchor.answer for anchor in anchors]
    prompts = [words(text) for text in texts]
    similarity: float | None = None
    clusters: list[AnchorCluster] = []
    if encoder is not None and len(anchors) > 1:
        similarity, clusters = _cluster(texts, encoder)
    return AnchorStatistics(
        generated=generated,
        kept=len(anchors),
        well_formed=round(well_formed, 4),
        rejected=dict(sorted(reasons.items())),
        distinct_1=_distinct(prompts, 1),
        distinct_2=_distinct(prompts, 2),
        distinct_3=_distinct(prompts, 3),
        similarity=similarity,
        clusters=clusters,
        warning=warning,
    )


def _distinct(prompts: list[list[str]], length: int) -> float:
    """Different runs of `length` words / all of them."""
    runs = [run for prompt in prompts for run in word_ngrams(prompt, length)]
    return round(len(set(runs)) / max(1, len(runs)), 4)


def _cluster(prompts: list[str], encoder: SentenceEncoder) -> tuple[float, list[AnchorCluster]]:
    """Mean cosine of two different prompts (from the sum of the unit vectors: no pairs are compared), and clusters."""
    from sklearn.cluster import KMeans

    vectors = encoder.encode(prompts, batch_size=64).astype("float64")
    total, count = vectors.sum(axis=0), len(prompts)
    similarity = round(float((total @ total - count) / (count * (count - 1))), 4)
    clusters = KMeans(min(CLUSTERS, count), n_init=1, random_state=0).fit(vectors)
    distances = clusters.transform(vectors)  # [prompts, clusters]
    sizes = Counter(clusters.labels_.tolist())
    return similarity, [
        AnchorCluster(size=size, example=prompts[distances[:, cluster].argmin()])
        for cluster, size in sizes.most_common()
    ]
