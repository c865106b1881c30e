"""Questions from documents: a model proposes pairs from a chunk, a rule and several models check them.

What a chunk becomes:

    chunk "The fee for a permit of class B is 12 euros." under [Permits, Fees]
    kept  {"question": "What does a class B permit cost?", "answer": "A class B permit costs 12 euros.", ...}
    out   {"question": "According to the text, what is the fee?", ..., "reason": "refers to the text"}
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, Field

from raft_tasks.generation.backend import Backend, row_seed
from raft_tasks.generation.data_blocks import guarded
from raft_tasks.generation.structured import Unusable, ask
from raft_tasks.params import Question
from raft_tasks.schemas import Chunk, DocumentPair, PairFault, Questioned, RejectedPair

_TEXT = "text|passage|excerpt|paragraph|snippet|chunk|context|extract"
_PART = f"{_TEXT}|document|article|section|chapter|report|page|table|figure|content|information|material|source|author"
_AS_SAID = "mentioned|described|stated|discussed|given|listed|shown|defined|provided|outlined|presented|referred\\sto"
_SAYS = "say|state|mention|describe|discuss|claim|refer|mean|suggest|explain|list|give|provide|indicate|note"
_THE = r"(?:(?:the|this|that|these|those)\s)?(?:(?:above|following|given|provided|preceding)\s)?"
# What points to the passage instead of naming what it is about: "the report" by itself may be the topic, and
# "according to the report of the committee" names it.
POINTS_TO_TEXT = re.compile(
    rf"""
      \b(?:according\sto|based\son|as\s\w+\s(?:in|by)|(?:{_AS_SAID})\s(?:in|by)|from)\s
        {_THE}(?:{_PART})s?\b(?!\s(?:of|by|from|on|about|\d))
    | \b(?:in|of|by|does|do|did)\s(?=the|this|that){_THE}(?:{_TEXT})s?\b
    | \b(?:the|this)\s(?:{_TEXT}|author|article|document)s?\s(?:{_SAYS})(?:s|ed|d)?\b
    | \b(?:{_AS_SAID}|see)\s(?:above|below|here|earlier|previously)\b
    | \bthe\s(?:above|following|preceding|aforementioned)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
WORD = re.compile(r"\w+")
NO_ANSWER = ("no proposal", "no usable check")  # a model's fault, not the pair's


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
class _Open:
    """A proposed pair on its way through the checks."""

    chunk: Chunk
    question: str
    answer: str

    @property
    def id(self) -> str:
        return f"{self.chunk.id}-{hashlib.sha256(self.question.encode('utf-8', 'replace')).hexdigest()[:8]}"


def points_to_text(question: str) -> str | None:
    """The words by which a question points to the passage that it was made from, if it does."""
    found = POINTS_TO_TEXT.search(question)
    return found.group() if found else None


def make_questions(
    chunks: Sequence[Chunk], maker: Backend, checkers: Mapping[str, Backend], settings: Question
) -> list[Questioned]:
    """Pairs from each chunk; those that a rule or too few votes reject stand beside them with the reason.

    A pair needs the share `settings.agreement` of the votes; a vote is for it if it says yes to all three questions.
    A checker without a usable answer votes against it. What comes of a chunk does not depend on the chunks beside it.
    """
    proposals, failures = _proposed(chunks, maker, settings)
    rejected: dict[str, list[RejectedPair]] = {chunk.id: [] for chunk in chunks}
    pairs: dict[str, list[DocumentPair]] = {chunk.id: [] for chunk in chunks}
    for chunk in chunks:
        if chunk.id in failures:
            rejected[chunk.id].append(_rejected(_Open(chunk, "", ""), "no proposal", failures[chunk.id]))
    to_check: list[_Open] = []
    for chunk in chunks:
        asked: set[str] = set()
        for one in proposals[chunk.id]:
            key = " ".join(WORD.findall(one.question.casefold()))
            if not key or not WORD.search(one.answer):
                rejected[chunk.id].append(_rejected(one, "empty", "question or answer has no word"))
            elif pointing := points_to_text(one.question):
                rejected[chunk.id].append(_rejected(one, "refers to the text", pointing))
            elif key in asked:
                rejected[chunk.id].append(_rejected(one, "duplicate", "the same question of the same chunk"))
            else:
                asked.add(key)
                to_check.append(one)
    for one, votes in zip(to_check, _checked(to_check, checkers, settings), strict=True):
        agreed = sum(not against for against, _ in votes) / len(votes)
        if agreed >= settings.agreement:
            pairs[one.chunk.id].append(_pair(one, agreed))
        else:
            fault, reason = next((fault, reason) for fault, reason in votes if fault)
            rejected[one.chunk.id].append(_rejected(one, fault, reason))
    return [
        Questioned(
            chunk=chunk.id,
            pairs=pairs[chunk.id],
            rejected=rejected[chunk.id],
            failure=next((out.details for out in rejected[chunk.id] if out.reason in NO_ANSWER), None),
        )
        for chunk in chunks
    ]


def _proposed(
    chunks: Sequence[Chunk], maker: Backend, settings: Question
) -> tuple[dict[str, list[_Open]], dict[str, str]]:
    """By chunk: the pairs of all rounds; and, where every round gave no usable answer, why."""
    slots = [(chunk, number) for chunk in chunks for number in range(settings.rounds)]
    seeds = [row_seed(settings.seed, "question", chunk.id, number) for chunk, number in slots]
    prompts = [
        guarded(settings.template, seed, {"pairs": str(settings.pairs)}, **_place(chunk))
        for seed, (chunk, _) in zip(seeds, slots, strict=True)
    ]
    answers = ask(maker, prompts, Proposal, settings, batch_size=settings.batch_size, seeds=seeds)
    found: dict[str, list[_Open]] = {chunk.id: [] for chunk in chunks}
    errors: dict[str, list[str]] = {chunk.id: [] for chunk in chunks}
    for (chunk, _), answer in zip(slots, answers, strict=True):
        if isinstance(answer, Unusable):
            errors[chunk.id].append(str(answer))
        else:
            found[chunk.id] += [_Open(chunk, one.question.strip(), one.answer.strip()) for one in answer.pairs]
    return found, {name: own[0] for name, own in errors.items() if len(own) == settings.rounds}


def _checked(
    pairs: Sequence[_Open], checkers: Mapping[str, Backend], settings: Question
) -> list[list[tuple[PairFault | None, str]]]:
    """Per pair every vote: what is wrong, or None, and the checker's reason."""
    votes: list[list[tuple[PairFault | None, str]]] = [[] for _ in pairs]
    for checker in settings.checkers:
        for number in range(checker.rounds):
            seeds = [row_seed(settings.seed, "check", checker.model, number, one.id, one.answer) for one in pairs]
            prompts = [
                guarded(checker.template, seed, None, **_place(one.chunk), question=one.question, answer=one.answer)
                for seed, one in zip(seeds, pairs, strict=True)
            ]
            answers = ask(checkers[checker.model], prompts, Check, checker, batch_size=settings.batch_size, seeds=seeds)
            for own, answer in zip(votes, answers, strict=True):
                said = str(answer) if isinstance(answer, Unusable) else answer.reason
                own.append((_fault(answer), f"{checker.model}: {said}"))
    return votes


def _fault(answer: Check | Unusable) -> PairFault | None:
    if isinstance(answer, Unusable):
        return "no usable check"
    if not answer.grounded:
        return "not grounded"
    if not answer.answerable:
        return "not answerable"
    return None if answer.self_contained else "not self-contained"


def _place(chunk: Chunk) -> dict[str, str]:
    return {"headings": " > ".join(chunk.heading), "passage": chunk.text}


def _pair(one: _Open, agreement: float) -> DocumentPair:
    chunk = one.chunk
    return DocumentPair(
        id=one.id,
        question=one.question,
        answer=one.answer,
        source=chunk.file,
        chunk=chunk.id,
        page=chunk.page,
        start=chunk.start,
        end=chunk.end,
        agreement=round(agreement, 4),
    )


def _rejected(one: _Open, reason: PairFault, details: str) -> RejectedPair:
    chunk = one.chunk
    return RejectedPair(
        file=chunk.file,
        chunk=chunk.id,
        page=chunk.page,
        start=chunk.start,
        end=chunk.end,
        question=one.question,
        answer=one.answer,
        reason=reason,
        details=details,
    )
