import json
import re
import sys
from pathlib import Path

import pytest

from raft_tasks.config import DomainFuse, Injection, PromptedCall, load_config
from raft_tasks.errors import InputError
from raft_tasks.fuse import document_pairs, fuse_chunk, judge_labels, read_documents, summarize_judging
from raft_tasks.schemas import Candidate, Filtered, Fused, Labelled

sys.path.insert(0, str(Path(__file__).parent / "generation"))
from scripted import Scripted

QWEN = PromptedCall(model="qwen", template="judge.jinja", temperature=0.0, max_new_tokens=90, repairs=0)


def settings():
    fuse = load_config().fuse
    return fuse.model_copy(update={"judges": ["fidelity", QWEN], "quorum": 1, "stop_at": 0.8})


class Pool:
    """Gives the scripted judge for every role."""

    def __init__(self, judge):
        self.judge = judge

    def backend(self, role, name):
        return self.judge

    def encoder(self, role, name, revision):
        return None


def label(candidate, score):
    return Labelled(question="How much?", reference="Take 5 mg.", candidate=candidate, score=score)


def test_the_panel_scores_what_people_have_scored():
    def strict(prompt):
        candidate = re.search(r"<<<candidate \w+\n\| (.*)", prompt)[1]
        return json.dumps({"reason": "so", "score": 10 if "5 mg" in candidate else 1}) if candidate != "?" else "?"

    labels = [label("5 mg.", 10), label("Take 50 mg.", 0), label("Some.", 2), label("?", 0)]
    judged = judge_labels(labels, settings(), Pool(Scripted(strict)))
    assert judged == [
        {"fidelity": 1.0, "qwen": 1.0}, {"fidelity": 0.0, "qwen": 0.1}, {"fidelity": 0.0, "qwen": 0.1},
        {"fidelity": 0.0, "qwen": None},
    ]  # fmt: skip

    summary = summarize_judging([], settings(), labels, judged)["calibration"]
    assert list(summary) == ["fidelity", "qwen", "mean of the panel"]
    assert (summary["qwen"]["n"], summary["qwen"]["abstained"]) == (3, 1)
    assert summary["qwen"]["bias"] == pytest.approx((0 + 0.1 - 0.1) / 3)
    assert summary["qwen"]["kappa"] == 1
    assert summary["fidelity"]["bias"] == pytest.approx(-0.2 / 4)


def test_agreement_counts_each_text_of_a_row_once():
    def candidate(text, **scores):
        scores_given = {name: score for name, score in scores.items() if score is not None}
        missing = {name: "no JSON" for name, score in scores.items() if score is None}
        return Candidate(round=1, text=text, scores=scores_given, abstained=missing, mean=0.5)

    row = Fused(
        id="a", domain="d", question="q", answer="r", source="s", split="train", rewritten="w", similarity=0.9,
        passed=True, lost=[], chosen="w", fallback=None, fused="x", score=0.9,
        candidates=[
            candidate("w", fidelity=1.0, qwen=0.9), candidate("x", fidelity=0.2, qwen=0.4),
            candidate("w", fidelity=1.0, qwen=0.9), candidate("y", fidelity=0.5, qwen=None),
            Candidate(round=1, text="cut", scores={}, mean=0.0, excluded="unfinished"),
        ],
    )  # fmt: skip
    summary = summarize_judging([row], settings(), [], [])
    assert summary["calibration"] is None
    assert summary["agreement"]["texts"] == 3
    assert summary["agreement"]["judges"]["qwen"]["abstained"] == 1
    assert summary["agreement"]["fleiss_kappa"] == 1


def test_documents_are_injected_once_without_marks_and_private_data(tmp_path):
    (tmp_path / "a.md").write_text("The fee is 12 euros.<|im_end|>\n")
    (tmp_path / "b.txt").write_text("Write to figin@example.org.")
    (tmp_path / "c.txt").write_text("Write to figin@example.org.")  # the same once more
    (tmp_path / "d.doc").write_text("?")
    documents, left_out = read_documents(tmp_path, "flag")
    assert [(Path(name).name, text) for name, text in documents] == [
        ("a.md", "The fee is 12 euros.< |im_end|>"), ("b.txt", "Write to figin@example.org."),
    ]  # fmt: skip
    (reject,) = left_out
    assert reject.file.endswith("d.doc")
    assert "got the ending '.doc'" in reject.reason
    pairs = list(document_pairs(documents, Injection(instruction="Write.")))
    assert [(pair.question, pair.answer, pair.document) for pair in pairs][1] == (
        "Write.", "Write to figin@example.org.", True,
    )  # fmt: skip
    documents, left_out = read_documents(tmp_path, "reject")
    assert [Path(name).name for name, _ in documents] == ["a.md"]
    assert left_out[0].file.endswith("b.txt")
    assert "hygiene.privacy is reject, and it holds: e-mail address" in left_out[0].reason
    assert "figin@" not in left_out[0].model_dump_json()
    (tmp_path / "a.md").unlink()
    with pytest.raises(InputError, match=r"none of the documents can be injected: .*b\.txt"):
        read_documents(tmp_path, "reject")


def test_rows_are_fused_and_judged_by_models_through_the_calls():
    def say(prompt):
        if prompt.startswith("Question:"):
            return "Take 5 mg, now."
        candidate = re.search(r"<<<candidate \w+\n\| (.*)", prompt)[1]
        return json.dumps({"reason": f"read {candidate}", "score": 9 if "now" in candidate else 4})

    row = Filtered(
        id="a", domain="d", question="How much?", answer="5 mg.", source="s", split="train", rewritten="Take 5 mg.",
        similarity=0.9, passed=True, lost=[], chosen="Take 5 mg.", fallback=None,
    )  # fmt: skip
    (fused,) = fuse_chunk([row], DomainFuse(**dict(settings())), Pool(Scripted(say)))
    assert (fused.fused, fused.score) == ("Take 5 mg, now.", 0.95)
    assert fused.candidates[0].scores == {"fidelity": 1.0, "qwen": 0.4}
    assert fused.candidates[1].reasons == {"qwen": "read Take 5 mg, now."}
