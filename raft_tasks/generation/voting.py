"""Judges that vote: is this answer right? Each model is asked by itself, about each answer by itself.

A panel of three says of one answer, the third one without a usable reply:

    {"gpt_oss": Vote(reason="Names the fee.", right=True), "qwen": Vote(reason="...", right=False),
     "deepseek": Unusable("no answer: unreachable: HTTP 500", "")}
"""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, Field

from raft_tasks.config import Judge
from raft_tasks.generation.backend import Backend
from raft_tasks.generation.data_blocks import guarded
from raft_tasks.generation.structured import Unusable, ask
from raft_tasks.seeds import derive_seed

Case = tuple[str, str, str, str]  # task, question, reference, candidate


class Vote(BaseModel):
    """What a judge answers."""

    reason: str = Field(min_length=1, max_length=4000)
    right: bool


def vote(cases: Sequence[Case], backends: Mapping[str, Backend], settings: Judge) -> list[dict[str, Vote | Unusable]]:
    """What every judge says of every case, by the judge's name.

    Args:
        cases: the task says by which template is asked. Equal answers of two
            models are one case to the judges, whose name they never see.
        backends: by the judge's name.
    """
    votes: list[dict[str, Vote | Unusable]] = [{} for _ in cases]
    for judge in settings.judges:
        seeds = [derive_seed(settings.seed, "vote", judge.model, *case) for case in cases]
        prompts = [
            guarded(settings.tasks[task], seed, question=question, reference=reference, candidate=candidate)
            for seed, (task, question, reference, candidate) in zip(seeds, cases, strict=True)
        ]
        answers = ask(backends[judge.model], prompts, Vote, judge, batch_size=settings.batch_size, seeds=seeds)
        for by_judge, answer in zip(votes, answers, strict=True):
            by_judge[judge.model] = answer
    return votes
