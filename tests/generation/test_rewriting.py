import pytest

from raft_tasks.config import Rewrite
from raft_tasks.generation.backend import Completion
from raft_tasks.generation.rewriting import rewrite
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.sampling import SamplingParams
from raft_tasks.schemas import Example

SETTINGS = Rewrite(temperature=0.9, max_new_tokens=12, batch_size=4, seed=3)


class Recorded:
    """A backend that answers from a list and keeps what it was asked."""

    def __init__(self, completions: list[Completion]) -> None:
        self.completions = completions

    def generate(self, prompts: list[str], params: SamplingParams, seeds: list[int]) -> list[Completion]:
        self.prompts, self.params, self.seeds = prompts, params, seeds
        return self.completions


def test_rows_gain_their_rewrite(examples: list[Example]) -> None:
    backend = Recorded([Completion(" It is rope .\n", True, 5), Completion("It is it is", False, 12)])
    rows = rewrite(examples[:2], backend, SETTINGS)  # type: ignore[arg-type]
    assert [(row.id, row.rewritten, row.finished) for row in rows] == [
        ("row-0", "It is rope .", True),
        ("row-1", "It is it is", False),
    ]
    assert rows[0].model_dump(exclude={"rewritten", "finished", "failure"}) == examples[0].model_dump()
    assert examples[0].question in backend.prompts[0]
    assert examples[0].answer in backend.prompts[0]
    assert backend.prompts[0].endswith("Rewrite the reference answer in your own words. Keep every fact.")
    assert backend.params == SamplingParams(temperature=0.9, top_p=0.95, max_tokens=12, batch_size=4)
    assert len(set(backend.seeds)) == 2


def test_a_terse_answer_is_rewritten_from_its_explanation(examples: list[Example]) -> None:
    backend = Recorded([Completion("Chapter 54 covers it.", True, 5)])
    terse = examples[0].model_copy(update={"answer": "5402.31", "explanation": "chapter 54 (Man-made filaments)"})
    rewrite([terse], backend, SETTINGS)  # type: ignore[arg-type]
    assert "chapter 54 (Man-made filaments)" in backend.prompts[0]
    assert "5402.31" not in backend.prompts[0]


@pytest.mark.parametrize("size", [1, 7])
def test_chunks_change_nothing(tiny: TransformersBackend, examples: list[Example], size: int) -> None:
    whole = rewrite(examples, tiny, SETTINGS)
    chunks = [row for n in range(0, 15, size) for row in rewrite(examples[n : n + size], tiny, SETTINGS)]
    assert chunks == whole
    assert len({row.rewritten for row in whole}) > 10
    assert whole != rewrite(examples, tiny, SETTINGS.model_copy(update={"seed": 4}))
