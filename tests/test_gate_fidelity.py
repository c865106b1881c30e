from raft_tasks.config import Check
from raft_tasks.gate import fidelity_rate
from raft_tasks.schemas import Fused

CHAPTER = {"chapter": Check(patterns=[r"chapter (\d+)", r"\b(\d\d)\d\d\.\d\d"])}


def fused(text: str, **fields: str) -> Fused:
    row = {"id": "a", "domain": "goods", "question": "?", "source": "s", "split": "train", "rewritten": text, **fields}
    return Fused.model_validate(
        {**row, "similarity": 0.9, "passed": True, "lost": [], "chosen": text, "fallback": None, "fused": text,
         "score": 1.0, "candidates": []}
    )  # fmt: skip


def test_a_terse_answer_kept_or_said_in_a_sentence_is_faithful_and_another_chapter_is_not():
    goods = {"answer": "5402.31", "explanation": "chapter 54 (yarn)"}
    rows = [fused(text, **goods) for text in ("5402.31", "Yarn is in chapter 54.", "It is chapter 54 or chapter 55.")]
    assert fidelity_rate(rows, CHAPTER) == 2 / 3
    assert fidelity_rate(rows[:2], {}) == 1.0  # by the rules on facts: the explanation's number


def test_without_checks_the_facts_of_the_answer_count():
    rows = [fused(text, answer="Take 5 mg.") for text in ("Swallow 5 mg.", "Swallow 50 mg.")]
    assert fidelity_rate(rows, {}) == 0.5
    assert fidelity_rate([], {}) is None
