"""From one raw row to examples: the roles' values checked and cleaned, ids, the split."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, get_args
from zlib import crc32

from raft_tasks.checks import extract_values
from raft_tasks.config import Domain, Ingest, SplitBySource
from raft_tasks.ngrams import hash_question, hash_words
from raft_tasks.schemas import Example, Split, Turn
from raft_tasks.sources.cleaning import cleaned, normalised
from raft_tasks.sources.conversations import Pair, UnusableError, learned_pairs, shown, text_of
from raft_tasks.sources.files import RawRow
from raft_tasks.sources.roles import FROM_DOCUMENT, NOT_LEARNED
from raft_tasks.thoughts import strip_thoughts

SPLITS: tuple[Split, ...] = get_args(Split)
LABEL_CHARACTERS = 500  # of an id or a split


def examples_of(row: RawRow, name: str, domain: Domain, ingest: Ingest) -> Iterator[Example]:
    """The example of a row, or those of a conversation's turns, all of one source.

    Raises:
        UnusableError: the row lacks something, or has it in a form or length that is not allowed.
    """
    if NOT_LEARNED in row.values:
        raise UnusableError(
            f"the row is marked as not learned: {row.values[NOT_LEARNED]}; if that means something else, add the "
            "column to columns.unused",
            NOT_LEARNED,
        )
    if domain.chat is None or FROM_DOCUMENT in row.values:
        yield _example(row.values, name, domain, ingest)
        return
    pairs = learned_pairs(row.values.get("chat"), domain.chat)
    # Without a source column: what comes out of one conversation goes to one split, as do those whose first question is
    # one, whatever their system messages say (a date).
    source = _label(row.values, "source") or normalised(_first_question(pairs[0]))
    several = domain.chat.conversation == "all"
    for pair in pairs:
        values = {**row.values, "question": pair.question, "answer": pair.answer, "source": source}
        if several and pair.number > 1 and isinstance(values.get("id"), str | int):
            # Its own mark: "a-2" may be another row's id.
            mark = hashlib.sha256(json.dumps([str(values["id"]), pair.number]).encode()).hexdigest()[:8]
            values["id"] = f"{values['id']}#{pair.number}-{mark}"
        yield _example(values, name, domain, ingest, _checked(pair.history, ingest))


def _first_question(pair: Pair) -> str:
    return next((turn["content"] for turn in pair.history if turn["role"] == "user"), pair.question)


def split_of_source(source: str, split: SplitBySource) -> Split:
    """Draw the split of a source by a hash: it never depends on the other sources, so grown data moves no row."""
    drawn = int.from_bytes(hashlib.sha256(f"{split.seed}\n{source}".encode()).digest()[:8]) / 2**64
    if drawn < split.test:
        return "test"
    return "validation" if drawn < split.test + split.validation else "train"


def content_key(question: str, answer: str, history: Sequence[Turn] = ()) -> bytes:
    """32 bytes that are equal where question, answer and history are, white space and Unicode form aside."""
    before = [[turn["role"], normalised(turn["content"])] for turn in history]
    return hashlib.sha256(json.dumps([normalised(question), normalised(answer), *before]).encode()).digest()


def hash_row(example: Example) -> tuple[list[int], list[int], list[int]]:
    """Hashed words and signs of the question, words of question and answer, and words of the history.

    A history is one word more before a question's: the rows of one conversation share most of their histories, and are
    no near duplicates for that; the same words in other conversations are no duplicates either. A system message (a
    date, a role) makes no other question.
    """
    before = hash_words("\n".join(turn["content"] for turn in example.history))
    told = [crc32(repr(before).encode())] if before else []
    talked = hash_words("\n".join(turn["content"] for turn in example.history if turn["role"] != "system"))
    asked = [crc32(repr(talked).encode()), *hash_question(example.question)]
    return asked, [*told, *hash_words(example.question), *hash_words(example.answer)], before


def _checked(history: list[Turn], ingest: Ingest) -> list[Turn]:
    """The turns before a question, clean as it.

    Raises:
        UnusableError: one is blank, too long or, of the assistant, holds a thought.
    """
    turns = []
    for turn in history:
        text = cleaned(turn["content"]).strip()
        message = f"an earlier turn of the {turn['role']}"
        if not text:
            raise UnusableError(f"{message} is blank", "missing")
        if len(text) > ingest.max_characters:
            raise UnusableError(
                f"{message} has {len(text)} characters, at most {ingest.max_characters} (ingest.max_characters)",
                "too long",
            )
        if turn["role"] == "assistant" and strip_thoughts(text)[0] != text:
            raise UnusableError(
                f"{message} has a think block; conversations go on without earlier thoughts: take it out"
            )
        turns.append(Turn(role=turn["role"], content=text))
    return turns


def _example(
    values: dict[str, Any], name: str, domain: Domain, ingest: Ingest, history: Sequence[Turn] = ()
) -> Example:
    question, answer = _text(values, "question", ingest), _text(values, "answer", ingest)
    if strip_thoughts(answer)[0] != answer:
        raise UnusableError("the answer begins with a think block; answers are learned with thinking off: take it out")
    if domain.columns.id is None:
        identity = f"{name}-{content_key(question, answer, history).hex()[:16]}"
    else:
        identity = _label(values, "id")
        if not identity:
            raise UnusableError(f"no id: column {domain.columns.id!r} is empty")
    # Without a source of its own, a row can still leak through the same question in another split.
    source = _label(values, "source") or normalised(question)
    from_document = FROM_DOCUMENT in values
    if isinstance(domain.split, SplitBySource):
        split = split_of_source(source, domain.split)
    else:
        label = _label(values, "split") or ("train" if from_document else "")
        if label not in SPLITS:
            raise UnusableError(f"split: got {label!r}, expected one of {', '.join(SPLITS)}")
        split = label
    unclear = [check for check, rule in domain.checks.items() if len(extract_values(answer, rule)) != 1]
    if unclear and not (from_document and split == "train"):  # held-out answers are scored by their values
        raise UnusableError(f"checks {unclear}: the answer {shown(answer)} names no value, or several; expected one")
    return Example(
        id=identity,
        domain=name,
        question=question,
        answer=answer,
        source=source,
        split=split,
        expected=_strings(values, "expected"),
        details=_strings(values, "details"),
        explanation=_text(values, "explanation", ingest) if "explanation" in values else "",
        history=list(history),
    )


def _text(values: dict[str, Any], role: str, ingest: Ingest) -> str:
    if role not in values:
        raise UnusableError(f"no {role}", "missing")
    text = cleaned(text_of(values[role], role)).strip()
    if not text:
        raise UnusableError(f"{role} is blank", "missing")
    if len(text) > ingest.max_characters:
        raise UnusableError(
            f"{role} has {len(text)} characters, at most {ingest.max_characters} (ingest.max_characters)", "too long"
        )
    if len(text) < ingest.min_characters:
        raise UnusableError(
            f"{role} has {len(text)} characters, at least {ingest.min_characters} (ingest.min_characters)", "too short"
        )
    return text


def _label(values: dict[str, Any], role: str) -> str:
    """An id, source or split: text or a whole number; "" where there is none."""
    value = values.get(role, "")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    label = normalised(cleaned(text_of(value, role)))
    if len(label) > LABEL_CHARACTERS and role != "source":
        raise UnusableError(f"{role} has {len(label)} characters, at most {LABEL_CHARACTERS}")
    return label


def _strings(values: dict[str, Any], role: str) -> list[str]:
    """A list of strings, a JSON list of strings (CSV has no other way to write one), or a single string."""
    value = values.get(role, [])
    if isinstance(value, str):
        text = value.strip()
        try:
            value = json.loads(text) if text.startswith("[") and text.endswith("]") else [text] if text else []
        except (ValueError, RecursionError) as error:
            raise UnusableError(f"{role} is not a JSON list of strings: {error}") from error
    if not isinstance(value, list):
        raise UnusableError(f"{role}: got {shown(value)}, expected a list of strings")
    strings = [cleaned(text_of(item, f"an entry of {role}")).strip() for item in value]
    if not all(strings):
        raise UnusableError(f"{role}: a blank entry would be found in any answer")
    return strings
