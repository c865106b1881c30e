"""A backend that says what a function says: for tests of what is done with the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raft_tasks.generation.backend import Completion, Failure
from raft_tasks.sampling import SamplingParams


class Scripted:
    """Answers each prompt with `say(prompt)`; None stands for a call that finally failed. Keeps the prompts."""

    def __init__(self, say: Callable[[str], str | Completion | None], name: str = "scripted") -> None:
        self.say, self.identity = say, {"scripted": name}
        self.prompts: list[str] = []
        self.seeds: list[int] = []

    def generate(self, prompts: Sequence[str], params: SamplingParams, seeds: Sequence[int]) -> list[Completion]:
        self.prompts += prompts
        self.seeds += seeds
        return [self._completion(self.say(prompt)) for prompt in prompts]

    def _completion(self, answer: str | Completion | None) -> Completion:
        if answer is None:
            return Completion("", finished=False, tokens=0, failure=Failure("unreachable", "HTTP 500"))
        return Completion(answer, finished=True, tokens=1) if isinstance(answer, str) else answer
