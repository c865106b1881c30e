import pytest

from raft_tasks.config import Check
from raft_tasks.generation.semantic_filter import semantic_filter
from raft_tasks.schemas import Example, Rewritten


def rewritten(example: Example, text: str = "It is Figin , 1 2", finished: bool = True) -> Rewritten:
    return Rewritten(**dict(example), rewritten=text, finished=finished)


def test_the_rewrite_passes_from_tau_on(examples: list[Example]) -> None:
    rows = [rewritten(example) for example in examples[:3]]
    low, equal, high = semantic_filter(rows, [0.7999, 0.8, 1.0], 0.8, fidelity_veto=False)
    assert (low.passed, equal.passed, high.passed) == (False, True, True)
    assert (low.chosen, equal.chosen) == (examples[0].answer, "It is Figin , 1 2")
    assert [row.similarity for row in (low, equal, high)] == [0.7999, 0.8, 1.0]
    assert (low.fallback, equal.fallback) == ("similarity", None)
    assert low.lost == []
    assert equal.lost == ["Tarin", "3"]  # row 1; the decision is the paper's, what is lost stands beside it
    assert high.model_dump(include=set(Rewritten.model_fields)) == rows[2].model_dump()


@pytest.mark.parametrize("tau", [-1.0, 0.0, 0.8])
def test_empty_and_unfinished_rewrites_never_pass(examples: list[Example], tau: float) -> None:
    rows = [rewritten(examples[1], ""), rewritten(examples[1], finished=False)]
    for row in semantic_filter(rows, [1.0, 1.0], tau, fidelity_veto=False):
        assert not row.passed
        assert row.chosen == examples[1].answer
    failed = rows[0].model_copy(update={"failure": "unreachable: HTTP 500"})
    decided = semantic_filter([*rows, failed], [1.0, 1.0, 1.0], tau, fidelity_veto=True)
    assert [row.fallback for row in decided] == ["empty", "unfinished", "failed"]


def test_a_veto_sends_what_lost_something_back_to_its_reference(examples: list[Example]) -> None:
    lossy, whole, low = rewritten(examples[1]), rewritten(examples[1], "Tarin , 1 2 3"), rewritten(examples[1])
    rows = semantic_filter([lossy, whole, low], [0.9, 0.9, 0.7], 0.8, fidelity_veto=True)
    assert [(row.passed, row.fallback, bool(row.lost)) for row in rows] == [
        (False, "fidelity", True), (True, None, False), (False, "similarity", True),
    ]  # fmt: skip
    assert rows[0].chosen == examples[1].answer


def test_one_similarity_per_row(examples: list[Example]) -> None:
    with pytest.raises(ValueError, match="shorter"):
        semantic_filter([rewritten(examples[0])], [], 0.8, fidelity_veto=False)


def test_of_a_terse_answer_the_explanation_must_survive(examples: list[Example]) -> None:
    terse = examples[0].model_copy(update={"answer": "5402.31", "explanation": "chapter 54 (filaments)"})
    rows = [rewritten(terse, "Chapter 54 covers filaments."), rewritten(terse, "Chapter 55 covers filaments.")]
    kept, lost = semantic_filter(rows, [0.9, 0.9], 0.8, fidelity_veto=True)
    assert (kept.chosen, kept.lost) == ("Chapter 54 covers filaments.", [])
    assert (lost.chosen, lost.fallback, lost.lost) == ("5402.31", "fidelity", ["54"])


def test_a_domain_s_checks_say_what_a_rewrite_has_lost(examples: list[Example]) -> None:
    checks = {
        "chapter": Check(patterns=[r"chapter (\d+)", r"\b(\d\d)\d\d\.\d\d"]),
        "code": Check(patterns=[r"(\d{4}\.\d\d)"]),
    }
    terse = examples[0].model_copy(update={"answer": "5402.31", "explanation": "chapter 54 (Filaments)"})
    texts = ["Chapter 54 is about yarn.", "Chapter 54, beside chapter 55, covers Filaments."]
    rows = [rewritten(terse, text) for text in texts]
    kept, lost = semantic_filter(rows, [0.9, 0.9], 0.8, True, checks)
    assert (kept.chosen, kept.lost) == (texts[0], [])  # the explanation names no code, and the capital is no fact
    assert (lost.chosen, lost.fallback, lost.lost) == ("5402.31", "fidelity", ["chapter"])
    plain = examples[0].model_copy(update={"answer": "A rope costs 12 euros."})  # of a document: no check has its value
    (changed,) = semantic_filter([rewritten(plain, "A rope costs 13 euros.")], [0.9], 0.8, True, checks)
    assert (changed.fallback, changed.lost) == ("fidelity", ["12 euros"])
