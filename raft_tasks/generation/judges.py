"""Judges of fusion candidates. A judge is a function: (questions, references, candidates) -> a judgement of each.

It judges every candidate by itself, in batches for speed alone. The panel is a dictionary of judges by name: rules (an
encoder and a likelihood among them) and language models. Another rule is another function here and a name in
`config.Fuse.judges`; another model is an entry of `models` and one of `fuse.judges`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from raft_tasks.config import Fuse, PromptedCall
from raft_tasks.generation.backend import Backend, LikelihoodBackend, TextEncoder
from raft_tasks.generation.data_blocks import guarded
from raft_tasks.generation.fidelity import fidelity_score
from raft_tasks.generation.structured import Unusable, ask
from raft_tasks.generation.templates import LIKELIHOOD_TEMPLATE, render
from raft_tasks.schemas import Better
from raft_tasks.seeds import derive_seed

SCALE = 10.0  # of a model's scores
Pair = tuple[str, str, str, str]  # question, reference, and two candidate answers to be compared


@dataclass(frozen=True)
class Judgement:
    score: float | None  # in [0, 1]; None: no usable answer, and `reason` says why
    reason: str | None = None  # a model's; a rule's score speaks for itself


Judge = Callable[[Sequence[str], Sequence[str], Sequence[str]], list[Judgement]]


def refuse_truth(value: Any) -> Any:
    """`value`, unless it is true or false, which pydantic would take for 1 or 0."""
    if isinstance(value, bool):
        raise ValueError(f"got {str(value).lower()}, expected a number")
    return value


class Verdict(BaseModel):
    """What a judging model answers."""

    reason: str = Field(min_length=1, max_length=4000)
    score: Annotated[float, BeforeValidator(refuse_truth), Field(ge=0, le=SCALE, allow_inf_nan=False)]


class Preference(BaseModel):
    """What a comparing model answers."""

    reason: str = Field(min_length=1, max_length=4000)
    better: Better


def fidelity_judge(questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]) -> list[Judgement]:
    """By rule: the share of the reference's numbers, dates, names and negations that the candidate says."""
    return [Judgement(round(fidelity_score(*pair), 4)) for pair in zip(references, candidates, strict=True)]


def similarity_judge(encoder: TextEncoder, batch_size: int) -> Judge:
    """By meaning: the sentence encoder's cosine of candidate and reference, negative ones being 0."""

    def judge(questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]) -> list[Judgement]:
        pairs = list(zip(references, candidates, strict=True))
        return [Judgement(max(0.0, cosine)) for cosine in encoder.similarities(pairs, batch_size)]

    return judge


def likelihood_judge(backend: LikelihoodBackend, batch_size: int) -> Judge:
    """By style: how much the candidate is what the base model itself would say, knowing the facts.

    The geometric mean of the candidate's token probabilities, end-of-turn included, after the teacher's prompt (Eq. 7).
    Without the reference in the prompt, new facts would count against the candidate that states them.
    """

    def judge(questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]) -> list[Judgement]:
        prompts = [
            render(LIKELIHOOD_TEMPLATE, question=question, answer=reference)
            for question, reference in zip(questions, references, strict=True)
        ]
        means = backend.mean_log_likelihood(prompts, candidates, batch_size)
        return [Judgement(round(math.exp(mean), 4)) for mean in means]

    return judge


def model_judge(backend: Backend, settings: PromptedCall, *, batch_size: int, seed: int) -> Judge:
    """By a language model: 0 to 10 with a reason, brought to [0, 1]. What it reads is fenced as data."""

    def judge(questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]) -> list[Judgement]:
        cases = list(zip(questions, references, candidates, strict=True))
        seeds = [derive_seed(seed, "judge", settings.model, *case) for case in cases]
        prompts = [
            guarded(settings.template, seed, question=question, reference=reference, candidate=candidate)
            for seed, (question, reference, candidate) in zip(seeds, cases, strict=True)
        ]
        answers = ask(backend, prompts, Verdict, settings, batch_size=batch_size, seeds=seeds)
        return [
            Judgement(None, str(answer))
            if isinstance(answer, Unusable)
            else Judgement(round(answer.score / SCALE, 4), answer.reason)
            for answer in answers
        ]

    return judge


def compare(
    backend: Backend, settings: PromptedCall, pairs: Sequence[Pair], *, batch_size: int, seed: int
) -> list[tuple[Preference | Unusable, Preference | Unusable]]:
    """Each pair twice, the second time with its answers in each other's place.

    Returns:
        Per pair both preferences. The second one is turned back, so that "first" names the same answer in both.
    """
    shown = [
        (question, reference, *order)
        for question, reference, first, second in pairs
        for order in ((first, second), (second, first))
    ]
    seeds = [derive_seed(seed, "compare", settings.model, *case) for case in shown]
    prompts = [
        guarded(settings.template, seed, question=question, reference=reference, first=first, second=second)
        for seed, (question, reference, first, second) in zip(seeds, shown, strict=True)
    ]
    answers = ask(backend, prompts, Preference, settings, batch_size=batch_size, seeds=seeds)
    return [(straight, _swap_back(swapped)) for straight, swapped in zip(answers[::2], answers[1::2], strict=True)]


def _swap_back(answer: Preference | Unusable) -> Preference | Unusable:
    if isinstance(answer, Unusable) or answer.better == "equal":
        return answer
    return answer.model_copy(update={"better": "second" if answer.better == "first" else "first"})


def build_panel(
    settings: Fuse, encoder: TextEncoder, base: LikelihoodBackend, backends: Mapping[str, Backend]
) -> dict[str, Judge]:
    """The judges of `settings.judges`, by name and in its order.

    Args:
        base: whose likelihood counts.
        backends: of the judges that are models, by the model's name.
    """
    rules: dict[str, Judge] = {
        "fidelity": fidelity_judge,
        "similarity": similarity_judge(encoder, settings.batch_size),
        "likelihood": likelihood_judge(base, settings.batch_size),
    }
    panel: dict[str, Judge] = {}
    for judge in settings.judges:
        if isinstance(judge, str):
            panel[judge] = rules[judge]
        else:
            panel[judge.model] = model_judge(
                backends[judge.model], judge, batch_size=settings.batch_size, seed=settings.seed
            )
    return panel
