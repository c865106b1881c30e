"""Questions from documents: a model proposes pairs from a chunk, a rule and several models check them.

What a chunk becomes:

    chunk "The fee for a permit of class B is 12 euros." under [Permits, Fees]
    kept  {"question": "What does a class B permit cost?", "answer": "A class B permit costs 12 euros.", ...}
    out   {"question": "According to the text, what is the fee?", ..., "reason": "refers to the text"}
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field

from raft_tasks.config import Question
from raft_tasks.generation.backend import Backend
from raft_tasks.generation.data_blocks import RULE, guarded
from raft_tasks.generation.fidelity import find_additions
from raft_tasks.generation.framing import Run, find_loop, runs_of, split_words, template_runs
from raft_tasks.generation.structured import Unusable, ask
from raft_tasks.generation.templates import template_text
from raft_tasks.ngrams import words_and_signs
from raft_tasks.schemas import Chunk, DocumentPair, PairFault, Probe, Questioned, RejectedPair
from raft_tasks.seeds import derive_seed

_TEXT = "text|passage|excerpt|paragraph|snippet|chunk|context|extract"
_PART = f"{_TEXT}|document|article|section|chapter|report|page|table|figure|content|information|material|source|author"
_AS_SAID = "mentioned|described|stated|discussed|given|listed|shown|defined|provided|outlined|presented|referred\\sto"
_SAYS = (
    "say|state|mention|describe|discuss|claim|refer|mean|suggest|explain|list|give|provide|indicate|note|tell|focuse?"
)
_SPEAKER = rf"\b(?:the|this)\s(?:{_TEXT}|author|article|document)s?\s(?:{_SAYS})(?:s|ed|d)?\b"
_ITSELF = (
    r"\bthis\s(?:passage|excerpt|paragraph|snippet|chunk|section|chapter)\b"
    r"|\bthe\s(?:passage|excerpt|snippet)\b(?!\s(?:of|to|through|from|between|by|in)\b)"
)
_THE = r"(?:(?:the|this|that|these|those)\s)?(?:(?:above|following|given|provided|preceding)\s)?"
# What points to the passage instead of naming what it is about: "the report" by itself may be the topic, and
# "according to the report of the committee" names it.
POINTS_TO_TEXT = re.compile(
    rf"""
      \b(?:according\sto|based\son|as\s\w+\s(?:in|by)|(?:{_AS_SAID})\s(?:in|by)|from)\s
        {_THE}(?:{_PART})s?\b(?!\s(?:of|by|from|on|about|\d))
    | \b(?:in|of|by|does|do|did)\s(?=the|this|that){_THE}(?:{_TEXT})s?\b
    | {_SPEAKER} | {_ITSELF}
    | \b(?:{_AS_SAID}|see)\s(?:above|below|here|earlier|previously)\b
    | \bthe\s(?:above|following|preceding|aforementioned)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
# An answer may well say "the following" and "in the context of".
ANSWER_POINTS_TO_TEXT = re.compile(
    rf"{_SPEAKER}|{_ITSELF}|\b(?:according\sto|based\son)\s(?:the|this)\s(?:{_TEXT}|document|section)\b", re.IGNORECASE
)
LOOP = 4  # times that a pair says the same words: a model that no longer gets out of them
NO_ANSWER = ("no proposal", "no usable check")  # a model's fault, not the pair's
PROBES = 20  # kept pairs, at most, that the checkers are shown again, with another passage


class Proposed(BaseModel):
    question: str
    answer: str


class Proposal(BaseModel):
    """What the maker answers; an empty list says that the chunk holds nothing worth asking."""

    pairs: list[Proposed] = Field(max_length=50)


class Check(BaseModel):
    """What a checker answers."""

    reason: str = Field(min_length=1, max_length=4000)
    answerable: bool
    grounded: bool
    self_contained: bool


@dataclass(frozen=True)
class _Pair:
    """A proposed pair on its way through the checks."""

    chunk: Chunk
    question: str
    answer: str

    @property
    def id(self) -> str:
        return f"{self.chunk.id}-{hashlib.sha256(self.question.encode('utf-8', 'replace')).hexdigest()[:8]}"

    @property
    def fields(self) -> dict[str, Any]:
        """What a kept and a rejected pair have in common."""
        origin = self.chunk.model_dump(include={"page", "start", "end"})
        return {"question": self.question, "answer": self.answer, "chunk": self.chunk.id, **origin}

    def keep(self, agreement: float) -> DocumentPair:
        return DocumentPair(id=self.id, source=self.chunk.file, agreement=round(agreement, 4), **self.fields)

    def reject(self, reason: PairFault, details: str) -> RejectedPair:
        return RejectedPair(file=self.chunk.file, reason=reason, details=details, **self.fields)


def points_to_text(question: str, answer: str = "") -> str | None:
    """The words by which a question or its answer points to the passage that it was made from, if one does."""
    match = POINTS_TO_TEXT.search(question) or ANSWER_POINTS_TO_TEXT.search(answer)
    return match.group() if match else None


def make_questions(
    chunks: Sequence[Chunk], maker: Backend, checkers: Mapping[str, Backend], settings: Question
) -> list[Questioned]:
    """Pairs from each chunk; those that a rule or too few votes reject stand beside them with the reason.

    A pair needs the share `settings.agreement` of the votes; a vote is for it if it says yes to all three questions.
    A checker without a usable answer votes against it. What comes of a chunk does not depend on the chunks beside it.
    """
    proposals, failures = _propose(chunks, maker, settings)
    prompt = template_runs(template_text(settings.template)) | template_runs(template_text(RULE))
    rejected: dict[str, list[RejectedPair]] = {chunk.id: [] for chunk in chunks}
    kept: dict[str, list[DocumentPair]] = {chunk.id: [] for chunk in chunks}
    to_check: list[_Pair] = []
    for chunk in chunks:
        if chunk.id in failures:
            rejected[chunk.id].append(_Pair(chunk, "", "").reject("no proposal", failures[chunk.id]))
        asked: set[str] = set()
        for pair in proposals[chunk.id]:
            key = " ".join(words_and_signs(pair.question))
            if fault := _find_fault(pair, key, asked, prompt):
                rejected[chunk.id].append(pair.reject(*fault))
            else:
                asked.add(key)
                to_check.append(pair)
    for pair, votes in zip(to_check, _check(to_check, checkers, settings), strict=True):
        agreement = sum(not against for against, _ in votes) / len(votes)
        if agreement >= settings.agreement:
            kept[pair.chunk.id].append(pair.keep(agreement))
        else:
            rejected[pair.chunk.id].append(pair.reject(*next((fault, reason) for fault, reason in votes if fault)))
    return [
        Questioned(
            chunk=chunk.id,
            pairs=kept[chunk.id],
            rejected=rejected[chunk.id],
            failure=next((out.details for out in rejected[chunk.id] if out.reason in NO_ANSWER), None),
        )
        for chunk in chunks
    ]


def wrong_passages(kept: Sequence[DocumentPair], chunks: Sequence[Chunk]) -> list[Probe]:
    """Kept pairs, evenly over all of them, each with the passage that shares fewest words with it.

    It is of another document, where there is one.
    """
    words = [frozenset(split_words(chunk.text)) for chunk in chunks]
    probes = []
    for number in range(min(PROBES, len(kept))):
        pair = kept[number * len(kept) // min(PROBES, len(kept))]
        pair_words = frozenset(split_words(f"{pair.question} {pair.answer}"))
        others = [index for index, chunk in enumerate(chunks) if chunk.id != pair.chunk]
        others = [index for index in others if chunks[index].file != pair.source] or others
        if others:
            passage = chunks[min(others, key=lambda index: len(words[index] & pair_words))]
            probes.append(Probe(chunk=passage, question=pair.question, answer=pair.answer))
    return probes


def count_approvals(
    probes: Sequence[Probe], checkers: Mapping[str, Backend], settings: Question
) -> dict[str, dict[str, int]]:
    """By checker: its usable votes on the probes, and how many of them approve. None should."""
    pairs = [_Pair(probe.chunk, probe.question, probe.answer) for probe in probes]
    counts = {}
    for checker in settings.checkers:
        votes = _check(pairs, checkers, settings.model_copy(update={"checkers": [checker]}))
        approved = [fault is None for of_pair in votes for fault, _ in of_pair if fault != "no usable check"]
        counts[checker.model] = {"votes": len(approved), "approved": sum(approved)}
    return counts


def _find_fault(pair: _Pair, key: str, asked: set[str], prompt: frozenset[Run]) -> tuple[PairFault, str] | None:
    """What a rule has against the pair; `key` is its question's words and signs, `asked` those of the chunk so far."""
    if not split_words(pair.question) or not split_words(pair.answer):
        return "empty", "question or answer has no word"
    if key == " ".join(words_and_signs(pair.answer)):
        return "empty", "the answer is the question"
    if loop := find_loop(f"{pair.question} {pair.answer}", LOOP):
        return "repeats itself", " ".join(loop)
    if pointing := points_to_text(pair.question, pair.answer):
        return "refers to the text", pointing
    source = "\n".join(_passage(pair.chunk).values())
    if repeated := (runs_of(pair.question) | runs_of(pair.answer)) & prompt - runs_of(source):
        return "repeats the prompt", " ".join(min(repeated))
    if added := find_additions(f"{pair.question}\n{pair.answer}", source):
        return "not grounded", f"not in the passage: {', '.join(added)}"
    return ("duplicate", "the same question of the same chunk") if key in asked else None


def _propose(
    chunks: Sequence[Chunk], maker: Backend, settings: Question
) -> tuple[dict[str, list[_Pair]], dict[str, str]]:
    """By chunk: the pairs of all rounds; and, where every round gave no usable answer, why."""
    slots = [(chunk, number) for chunk in chunks for number in range(settings.rounds)]
    seeds = [derive_seed(settings.seed, "question", chunk.id, number) for chunk, number in slots]
    prompts = [
        guarded(settings.template, seed, {"pairs": str(settings.pairs)}, **_passage(chunk))
        for seed, (chunk, _) in zip(seeds, slots, strict=True)
    ]
    answers = ask(maker, prompts, Proposal, settings, batch_size=settings.batch_size, seeds=seeds)
    pairs: dict[str, list[_Pair]] = {chunk.id: [] for chunk in chunks}
    errors: dict[str, list[str]] = {chunk.id: [] for chunk in chunks}
    for (chunk, _), answer in zip(slots, answers, strict=True):
        if isinstance(answer, Unusable):
            errors[chunk.id].append(str(answer))
        else:
            pairs[chunk.id] += [_Pair(chunk, pair.question.strip(), pair.answer.strip()) for pair in answer.pairs]
    return pairs, {name: of_chunk[0] for name, of_chunk in errors.items() if len(of_chunk) == settings.rounds}


def _check(
    pairs: Sequence[_Pair], checkers: Mapping[str, Backend], settings: Question
) -> list[list[tuple[PairFault | None, str]]]:
    """Per pair every vote: what is wrong, or None, and the checker's reason."""
    votes: list[list[tuple[PairFault | None, str]]] = [[] for _ in pairs]
    for checker in settings.checkers:
        for number in range(checker.rounds):
            seeds = [derive_seed(settings.seed, "check", checker.model, number, pair.id, pair.answer) for pair in pairs]
            prompts = [
                guarded(
                    checker.template, seed, None, **_passage(pair.chunk), question=pair.question, answer=pair.answer
                )
                for seed, pair in zip(seeds, pairs, strict=True)
            ]
            answers = ask(checkers[checker.model], prompts, Check, checker, batch_size=settings.batch_size, seeds=seeds)
            for of_pair, answer in zip(votes, answers, strict=True):
                reason = str(answer) if isinstance(answer, Unusable) else answer.reason
                of_pair.append((_fault(answer), f"{checker.model}: {reason}"))
    return votes


def _fault(answer: Check | Unusable) -> PairFault | None:
    if isinstance(answer, Unusable):
        return "no usable check"
    if not answer.grounded:
        return "not grounded"
    if not answer.answerable:
        return "not answerable"
    return None if answer.self_contained else "not self-contained"


def _passage(chunk: Chunk) -> dict[str, str]:
    return {"headings": " > ".join(chunk.heading), "passage": chunk.text}
