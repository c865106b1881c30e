"""Judges of fusion candidates. A judge is a function: (questions, references, candidates) -> scores in [0, 1].

It judges every candidate by itself, in batches for speed alone. The panel is a dictionary of judges by name; another
kind of judge is another function here and a name in `params.Fuse.judges`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from raft_tasks.generation.encoding import SentenceEncoder
from raft_tasks.generation.fidelity import fidelity_score
from raft_tasks.generation.templates import render
from raft_tasks.generation.transformers_backend import TransformersBackend

Judge = Callable[[Sequence[str], Sequence[str], Sequence[str]], list[float]]


def fidelity_judge() -> Judge:
    """By rule: the share of the reference's numbers, dates, names and negations that the candidate says."""

    def judge(questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]) -> list[float]:
        return [round(fidelity_score(*pair), 4) for pair in zip(references, candidates, strict=True)]

    return judge


def similarity_judge(encoder: SentenceEncoder, batch_size: int) -> Judge:
    """By meaning: the sentence encoder's cosine of candidate and reference, negative ones being 0."""

    def judge(questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]) -> list[float]:
        pairs = list(zip(references, candidates, strict=True))
        return [max(0.0, cosine) for cosine in encoder.similarities(pairs, batch_size)]

    return judge


def likelihood_judge(backend: TransformersBackend, batch_size: int) -> Judge:
    """By style: how much the candidate is what the base model itself would say, knowing the facts.

    The geometric mean of the candidate's token probabilities, end-of-turn included, after the teacher's prompt (Eq. 7).
    Without the reference in the prompt, new facts would count against the candidate that states them.
    """

    def judge(questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]) -> list[float]:
        prompts = [
            render("teacher.jinja", question=question, answer=reference)
            for question, reference in zip(questions, references, strict=True)
        ]
        means = backend.mean_log_likelihood(prompts, candidates, batch_size)
        return [round(math.exp(mean), 4) for mean in means]

    return judge


def build_panel(
    names: Sequence[str], *, encoder: SentenceEncoder, backend: TransformersBackend, batch_size: int
) -> dict[str, Judge]:
    """The judges of `params.Fuse.judges`, by name and in its order."""
    known: dict[str, Callable[[], Judge]] = {
        "fidelity": fidelity_judge,
        "similarity": lambda: similarity_judge(encoder, batch_size),
        "likelihood": lambda: likelihood_judge(backend, batch_size),
    }
    return {name: known[name]() for name in names}
