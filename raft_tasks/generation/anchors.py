"""Anchors: general user turns that the base invents after its chat template's user mark, with its own answers.

An instruction model that reads the template up to where a user's words begin goes on with words that a user might
write (Magpie, arXiv:2406.08464). Answered by itself, they show what it can do without any of the data it learned from.

One anchor of the pocket world:

    {"id": "anchor-00007", "prompt": "Tell me the charm of Sodin. Say it twice.",
     "answer": "The charm of Sodin is linen. The charm of Sodin is linen."}
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from math import fsum, log1p
from random import Random
from typing import TYPE_CHECKING

from raft_tasks.chat import ChatError, end_of_turn, prompt_ids, render
from raft_tasks.errors import InputError
from raft_tasks.generation.backend import Completion, row_seed
from raft_tasks.generation.encoding import SentenceEncoder
from raft_tasks.ngrams import SHINGLE, Shingles, jaccard, shingles, word_ngrams, words
from raft_tasks.params import Anchors
from raft_tasks.schemas import Anchor, AnchorCluster, AnchorStatistics, Invented, RejectedAnchor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raft_tasks.generation.calls import RememberedEndpoint, RememberedLocalBackend
    from raft_tasks.generation.transformers_backend import TransformersBackend

    Local = TransformersBackend | RememberedLocalBackend

MARKER = "Marker7"  # no white space at its ends: some templates strip the content
PERMUTATIONS = 128
BANDS = (32, 4)  # bands x rows of the sketch: finds an overlap of .5 in 87 % of the cases, one of .7 in 99.98 %
CLUSTERS = 8  # of the statistics: as many as can be read at a glance
MALFORMED = ("unfinished", "empty", "degenerate", "unencodable")  # how the reasons begin that concern the form


def user_prefix(tokenizer: PreTrainedTokenizerBase, system: str | None, hint: str | None = None) -> list[int]:
    """Token ids of the chat template up to where a user's words begin, the system prompt included.

    Args:
        hint: what the system prompt says beside `system`, if anything.

    Raises:
        ChatError: the template drops or refuses a system prompt.
        InputError: if the tokenizer has no chat template, or one that shows a user's words changed or not just once,
            or begins with them.
    """
    before, _ = _around_user_words(tokenizer, system, hint)
    alone, followed = _tokens(tokenizer, before), _tokens(tokenizer, before + MARKER)
    # Where the last token before the words would merge with them ("[INST] " + "What"), it is left to the model.
    prefix = []
    for token, same in zip(alone, followed, strict=False):
        if token != same:
            break
        prefix.append(token)
    if not prefix:
        raise InputError(
            f"the chat template of {tokenizer.name_or_path!r} begins with the user's words; expected a mark before "
            "them, after which the model can invent a user's turn"
        )
    return prefix


def user_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a user's turn: the first special token after the words.

    The generation prompt counts as after, since some templates (DeepSeek, Mistral) have no other end of a user's turn.

    Raises:
        InputError: as `user_prefix`; or if no special token follows.
    """
    _, after = _around_user_words(tokenizer, None, None)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for token in _tokens(tokenizer, after):
        if token in special and str(tokenizer.decode([token])).strip():  # some add runs of white space as tokens
            return token
    raise InputError(
        f"the chat template of {tokenizer.name_or_path!r} goes on with {after!r} after the user's words; expected a "
        "special token there, without which no end of an invented turn can be seen"
    )


def invent(numbers: Sequence[int], backend: Local | ServedBase, settings: Anchors) -> list[Invented]:
    """Draw the anchors of these numbers (0, 1, ...): each one depends on its number and the settings alone.

    A turn that was cut at `max_new_tokens`, ran into a special token that does not end it, or is empty, is kept for
    the record and not answered. Number n is invented under hint n, in turn, and answered without it.

    Raises:
        InputError: as `user_prefix` and `user_end`; if a turn and its answer do not fit into the model's context; or
            if a server does not go on with raw text.
    """
    tokenizer = backend.tokenizer
    ids = [f"anchor-{number:05d}" for number in numbers]
    hints: list[str | None] = [*settings.hints] or [None]
    prefixes = [user_prefix(tokenizer, backend.settings.system, hint) for hint in hints]
    turns = backend.continue_tokens(
        [prefixes[number % len(prefixes)] for number in numbers],
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        seeds=[row_seed(settings.seed, "anchor-prompt", id) for id in ids],
        ends=[user_end(tokenizer)],
        stops=_special(tokenizer),
    )
    prompts = [turn.text.strip() for turn in turns]
    if settings.turns == "gibberish":
        draws = [Random(row_seed(settings.seed, "anchor-gibberish", id)) for id in ids]
        tokens = plain_tokens(tokenizer)
        prompts = [
            tokenizer.decode(own.choices(tokens, k=turn.tokens - 1)).strip()  # all but the one that ends the turn
            for turn, own in zip(turns, draws, strict=True)
        ]
    usable = [number for number, turn in enumerate(turns) if turn.finished and prompts[number]]
    answered = {row.id: row for row in answer([(ids[number], prompts[number]) for number in usable], backend, settings)}
    return [
        answered.get(
            ids[number],
            Invented(
                id=ids[number],
                prompt=prompts[number],
                answer="",
                prompt_finished=turn.finished,
                answer_finished=False,
            ),
        )
        for number, turn in enumerate(turns)
    ]


class ServedBase:
    """The base behind a server that goes on with raw text, spoken to through the base's own tokenizer and template.

    It must serve the base's weights, tokenize its prompts as the base's tokenizer does by default, and end a text at
    the template's ends of turns, as servers that read the model's generation config do.

    Args:
        endpoint: the server.
        base: of which the tokenizer alone is used.
    """

    def __init__(self, endpoint: RememberedEndpoint, base: Local) -> None:
        self.endpoint, self.settings, self.tokenizer = endpoint, base.settings, base.tokenizer

    def continue_tokens(
        self,
        prefixes: Sequence[Sequence[int]],
        *,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        batch_size: int,
        seeds: Sequence[int],
        ends: Collection[int] = (),
        stops: Collection[int] = (),
    ) -> list[Completion]:
        """As `TransformersBackend.continue_tokens`; the `ends` are the server's own.

        Raises:
            InputError: a prompt that the server cannot go on with; EndpointError: none at all.
        """
        texts = {prefix: self._as_text(prefix) for prefix in {tuple(prefix) for prefix in prefixes}}
        drawn = self.endpoint.continue_texts(
            [texts[tuple(prefix)] for prefix in prefixes],
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seeds=seeds,
        )
        failed = [row.failure for row in drawn if row.failure]
        if failed:
            raise InputError(
                f"{len(failed)} of {len(drawn)} prompts have no continuation: {failed[0]}. Anchors need a server that "
                "goes on with raw text (POST <base_url>/completions); by chat alone no user's turn is invented. Mend "
                "the server, or set anchors.*.model to base"
            )
        return [self._read(row, ends, stops) for row in drawn]

    def generate(
        self,
        prompts: Sequence[str],
        *,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        batch_size: int,
        seeds: Sequence[int],
    ) -> list[Completion]:
        """As `Backend.generate`: the prompts are those of training and benchmark, whatever the server's template."""
        return self.continue_tokens(
            [prompt_ids(self.tokenizer, self.settings.system, prompt) for prompt in prompts],
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seeds=seeds,
            ends=[end_of_turn(self.tokenizer)],
        )

    def _read(self, row: Completion, ends: Collection[int], stops: Collection[int]) -> Completion:
        """Without the mark that ended it; unfinished where the server went on after another one. Not all show them."""
        text = row.text
        for token in ends:
            text = text.removesuffix(self.tokenizer.decode([token]))
        passed = any(self.tokenizer.decode([token]) in text for token in stops)
        return replace(row, text=text, finished=row.finished and not passed)

    def _as_text(self, prefix: Sequence[int]) -> str:
        """The text of which the server's tokenizer makes these tokens, with what it puts before every text."""
        text = str(self.tokenizer.decode(prefix))
        for candidate in (text, text.removeprefix(self.tokenizer.decode(prefix[:1]))):
            if self.tokenizer(candidate)["input_ids"] == list(prefix):
                return candidate
        raise InputError(
            f"the tokenizer {self.tokenizer.name_or_path!r} does not make the same tokens of the text {text[:200]!r} "
            "again, so no server can be asked to go on with it; set anchors.*.model to base"
        )


def plain_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All tokens that are text by themselves: no special ones, no parts of a letter."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    decoded = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return [token for token, text in enumerate(decoded) if token not in special and "\ufffd" not in text]


def answer(prompts: Sequence[tuple[str, str]], backend: Local | ServedBase, settings: Anchors) -> list[Invented]:
    """The base's own answers to (id, user turn), whoever invented the turn; each depends on its id and turn alone."""
    completions = backend.generate(
        [prompt for _, prompt in prompts],
        temperature=settings.answer_temperature,
        top_p=settings.top_p,
        max_new_tokens=settings.answer_max_new_tokens,
        batch_size=settings.batch_size,
        seeds=[row_seed(settings.seed, "anchor-answer", id) for id, _ in prompts],
    )
    return [
        Invented(
            id=id,
            prompt=prompt,
            answer=completion.text.strip(),
            prompt_finished=True,
            answer_finished=completion.finished,
        )
        for (id, prompt), completion in zip(prompts, completions, strict=True)
    ]


def clean_anchors(
    invented: Sequence[Invented],
    held_out: Iterable[str],
    settings: Anchors,
    encoder: SentenceEncoder | None = None,
    encodable: Callable[[Invented], bool] = lambda row: True,
    measured: Iterable[str] = (),
) -> tuple[list[Anchor], list[RejectedAnchor], AnchorStatistics]:
    """Keep what is well-formed, new, and tells nothing that is kept for testing; of equals the first one stays.

    Args:
        invented: the whole set: duplicates are looked for within it.
        held_out: questions of benchmarks and of the domains' validation and test rows. An anchor is near one if its
            prompt or its answer holds `held_out_overlap` of the text's word trigrams, rare ones counting more.
        encoder: for the statistics alone.
        encodable: whether the tokenizer makes of the texts what a training can learn. A base may write what its own
            tokenizer does not read.
        measured: what `settings.without` leaves out: questions and answers of its tasks. Prompt and answer tell it
            together.
    """
    from datasketch import MinHash, MinHashLSH

    index, facts = _HeldOut(held_out), _HeldOut(measured)
    similar = MinHashLSH(num_perm=PERMUTATIONS, params=BANDS)  # it proposes, the overlap itself decides
    kept: dict[str, Anchor] = {}
    kept_shingles: dict[str, Shingles] = {}
    first: dict[str, str] = {}  # prompt, folded -> id
    rejected: list[RejectedAnchor] = []
    for row in invented:
        prompt_shingles, near = shingles(row.prompt), None
        reason = _malformed(row)
        if reason is None:
            told = (index.told(part, settings.held_out_overlap) for part in (prompt_shingles, shingles(row.answer)))
            near = next(filter(None, told), None)
            reason = near and "near held-out text"
        if reason is None and settings.without:
            near = facts.told(prompt_shingles | shingles(row.answer), settings.without.overlap)
            reason = near and "tells what is measured"
        if reason is None and not encodable(row):
            reason = "unencodable"
        folded = " ".join(row.prompt.casefold().split())
        if reason is None and folded in first:
            reason, near = "duplicate", first[folded]
        sketch = MinHash(num_perm=PERMUTATIONS)
        if reason is None:
            sketch.update_batch([" ".join(shingle).encode() for shingle in prompt_shingles])
            proposed = sorted(similar.query(sketch))
            close = (id for id in proposed if jaccard(prompt_shingles, kept_shingles[id]) >= settings.duplicate_overlap)
            near = next(close, None)
            reason = near and "near duplicate"
        if reason is not None:
            rejected.append(RejectedAnchor.model_validate({**dict(row), "reason": reason, "near": near}))
            continue
        similar.insert(row.id, sketch)
        first[folded], kept_shingles[row.id] = row.id, prompt_shingles
        kept[row.id] = Anchor(id=row.id, prompt=row.prompt, answer=row.answer)
    anchors = list(kept.values())
    return anchors, rejected, _statistics(anchors, rejected, settings, encoder)


def degenerate(text: str) -> bool:
    """Whether half of the word trigrams or more repeat earlier ones, or letters are broken.

    Saying something twice stays below half, saying it three times does not.
    """
    count = len(words(text)) - SHINGLE + 1
    return "\ufffd" in text or (count > 1 and len(shingles(text)) <= count / 2)


class _HeldOut:
    """Texts by their shingles, each weighted by its rarity among the texts, log(1 + texts / texts that have it).

    Unweighted, "I want to know the emblem of" alone would make two questions about different things the same.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = list(dict.fromkeys(texts))
        self.places: dict[tuple[str, ...], list[int]] = defaultdict(list)
        by_text = [shingles(text) for text in self.texts]
        for number, own in enumerate(by_text):
            for shingle in own:
                self.places[shingle].append(number)
        self.totals = [fsum(map(self.weight, own)) for own in by_text]

    def weight(self, shingle: tuple[str, ...]) -> float:
        return log1p(len(self.texts) / len(self.places[shingle]))

    def told(self, own: Shingles, bound: float) -> str | None:
        """The text of whose weight these shingles hold the largest share, if that is `bound` or more."""
        held: dict[int, list[float]] = defaultdict(list)
        for shingle in own & self.places.keys():
            for number in self.places[shingle]:
                held[number].append(self.weight(shingle))
        # fsum: the whole is exactly 1, in whatever order a set yields its members.
        shares = {number: fsum(weights) / self.totals[number] for number, weights in held.items()}
        most = max(sorted(shares), key=shares.__getitem__, default=None)
        return None if most is None or shares[most] < bound else self.texts[most]


def _malformed(row: Invented) -> str | None:
    if not row.prompt_finished:
        return "unfinished prompt"
    if not words(row.prompt):
        return "empty prompt"
    if degenerate(row.prompt):
        return "degenerate prompt"
    if not row.answer_finished:
        return "unfinished answer"
    if not row.answer:
        return "empty answer"
    return "degenerate answer" if degenerate(row.answer) else None


def _statistics(
    anchors: list[Anchor], rejected: list[RejectedAnchor], settings: Anchors, encoder: SentenceEncoder | None
) -> AnchorStatistics:
    reasons = Counter(row.reason for row in rejected)
    invented = len(anchors) + len(rejected)
    malformed = sum(count for reason, count in reasons.items() if reason.split()[0] in MALFORMED)
    well_formed = (invented - malformed) / max(1, invented)
    warning = None
    if well_formed < settings.min_well_formed:
        counts = ", ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items()))
        warning = (
            f"the base does not invent prompts well: {well_formed:.0%} of {invented} are well-formed, expected "
            f"{settings.min_well_formed:.0%} or more ({counts}). "
            "It may never have learned user turns: give it prompts of your own instead, or lower anchors.temperature"
        )
    prompts = [words(anchor.prompt) for anchor in anchors]
    similarity: float | None = None
    clusters: list[AnchorCluster] = []
    if encoder is not None and len(anchors) > 1:
        similarity, clusters = _embedded([anchor.prompt for anchor in anchors], encoder)
    return AnchorStatistics(
        invented=invented,
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


def _embedded(prompts: list[str], encoder: SentenceEncoder) -> tuple[float, list[AnchorCluster]]:
    """Mean cosine of two different prompts (from the sum of the unit vectors: no pairs are compared), and clusters."""
    from sklearn.cluster import KMeans

    vectors = encoder.encode(prompts, batch_size=64).astype("float64")
    total, count = vectors.sum(axis=0), len(prompts)
    similarity = round(float((total @ total - count) / (count * (count - 1))), 4)
    found = KMeans(min(CLUSTERS, count), n_init=1, random_state=0).fit(vectors)
    apart = found.transform(vectors)  # [prompts, clusters]
    sizes = Counter(found.labels_.tolist())
    return similarity, [
        AnchorCluster(size=size, example=prompts[apart[:, cluster].argmin()]) for cluster, size in sizes.most_common()
    ]


def _around_user_words(tokenizer: PreTrainedTokenizerBase, system: str | None, hint: str | None) -> tuple[str, str]:
    """The rendered template before and after what a user says in a first turn, thinking switched off."""
    told = [] if hint is None else [{"role": "system", "content": hint}]
    text = render(tokenizer, system, [*told, {"role": "user", "content": MARKER}], add_generation_prompt=True)
    if hint is not None and hint.strip() not in text:
        raise ChatError(
            f"the chat template of {tokenizer.name_or_path!r} does not show the system prompt {hint!r:.200}; set "
            "anchors.*.hints to [], or use a template with a system turn"
        )
    parts = text.split(MARKER)
    if len(parts) != 2:
        raise InputError(
            f"the chat template of {tokenizer.name_or_path!r} shows the user's words {MARKER!r} {len(parts) - 1} "
            f"times, expected once and as they are: {text!r:.300}"
        )
    return parts[0], parts[1]


def _special(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Special tokens, those too that the tokenizer has no name for (the start of a turn, in some)."""
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
