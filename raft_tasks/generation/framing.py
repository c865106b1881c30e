"""Words of the prompt, and of the chat around it, that rewrites bring into what is learned.

A model that learns "The answer to this question is: chapter 54" says "The answer to this question is: Paris" as well.
Such words come from the template ("... in your own words"), or many rewrites begin with them and they say nothing of
their row. An opening that names the row's own subject ("These goods belong to ...") is none of these.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from raft_tasks.ngrams import MARKS
from raft_tasks.schemas import Filtered, Rewritten

WORDS = 4  # of an opening, and of a run that is the template's
SHARED = 0.1  # share of the rewrites from which an opening counts as shared
SHARED_ROWS = 5  # ... but at least so many
FUNCTION_WORDS = """
a an and are as at be by for from has have here i in into is it its of on or so that the their there these they this
those to was were which with you your
"""
FIELD = re.compile(r"\{[{%#].*?[#%}]\}", re.DOTALL)

Run = tuple[str, ...]


@dataclass(frozen=True)
class Framing:
    """Runs of WORDS words that no target may have: anywhere the template's, at its beginning the shared ones."""

    template: frozenset[Run]
    openings: frozenset[Run]


def find_framing(rows: Iterable[Rewritten], template: str) -> Framing:
    """The framing of one domain's rewrites, which were asked for with `template` (its Jinja source)."""
    openings: Counter[Run] = Counter()
    total = 0
    for row in rows:
        words = split_words(row.rewritten)
        total += 1
        if len(words) > WORDS and not _speaks_of_row(words[:WORDS], row):
            openings[words[:WORDS]] += 1
    shared = {run for run, count in openings.items() if count >= max(SHARED_ROWS, SHARED * total)}
    return Framing(template_runs(template), frozenset(shared))


def drop_framing(row: Filtered, framing: Framing) -> Filtered:
    """The row with its reference as its target where the rewrite brings framing words along."""
    if not row.passed:
        return row
    words = split_words(row.rewritten)
    of_row = _runs(split_words(row.in_context)) | _runs(split_words(row.statement))
    repeats = (_runs(words) & framing.template) - of_row
    opens = words[:WORDS] in framing.openings and not _speaks_of_row(words[:WORDS], row)
    if not (repeats or opens):
        return row
    return row.model_copy(update={"passed": False, "chosen": row.answer, "fallback": "framing"})


def template_runs(template: str) -> frozenset[Run]:
    """The runs of a template (its Jinja source), none across a field."""
    return frozenset(run for part in FIELD.split(template) for run in runs_of(part))


def runs_of(text: str) -> set[Run]:
    return _runs(split_words(text))


def find_loop(text: str, times: int) -> Run | None:
    """A run that `text` says that often."""
    words = split_words(text)
    counts = Counter(words[start : start + WORDS] for start in range(len(words) - WORDS + 1))
    return next((run for run, count in counts.items() if count >= times), None)


def split_words(text: str) -> Run:
    return tuple(re.findall(rf"\w+(?:[{MARKS}]+\w*)*", text.casefold()))


def _runs(words: Run) -> set[Run]:
    return {words[start : start + WORDS] for start in range(len(words) - WORDS + 1)}


def _speaks_of_row(opening: Run, row: Rewritten) -> bool:
    subject = {*split_words(row.in_context), *split_words(row.statement)} - {*split_words(FUNCTION_WORDS)}
    return not subject.isdisjoint(opening)
