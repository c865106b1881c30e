from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_artifacts import collected, synthetic_config, write_artifacts

from raft_tasks.reporting.measures import measure
from raft_tasks.reporting.origin import Origin
from raft_tasks.reporting.refinement import (
    OUTCOMES,
    SHOWN_CHARACTERS,
    mark_changes,
    measure_refinement,
    row_outcome,
    sample_rows,
)
from raft_tasks.reporting.report import write_report
from raft_tasks.reporting.views import _example_rows
from raft_tasks.schemas import Comparison

TEXT = st.text(st.sampled_from("ab .|\n") | st.characters(codec="utf-8"), max_size=60)


@given(TEXT, TEXT)
def test_the_marks_hold_both_texts_whole(old, new):
    spans = mark_changes(old, new)
    assert "".join(text for kind, text in spans if kind != "gone") == new
    assert "".join(text for kind, text in spans if kind != "new") == old
    assert all(text for _, text in spans)


def test_words_are_marked_not_letters_and_neighbours_as_one():
    assert mark_changes("It weighs 5 mg.", "It weighs 50 mg.") == [
        ("same", "It weighs "), ("gone", "5"), ("new", "50"), ("same", " mg."),
    ]  # fmt: skip
    assert mark_changes("one two three", "eins zwei three") == [
        ("gone", "one two"), ("new", "eins zwei"), ("same", " three"),
    ]  # fmt: skip
    assert len(mark_changes("", "x" * 2 * SHOWN_CHARACTERS)[0][1]) < SHOWN_CHARACTERS + 10


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifacts")
    write_artifacts(folder, synthetic_config(seeds=[0], methods=["sft", "raft"]))
    return collected(folder, synthetic_config(seeds=[0], methods=["sft", "raft"]))


def test_every_outcome_is_counted_once_and_sampled(study):
    rows = study.domains["archive"].fused
    found = measure(study)["domains"]["archive"]["refinement"]
    assert sum(found["outcomes"].values()) == len(rows) == 120
    assert found["outcomes"] == {"fused": 30, "rewrite": 60, "similarity": 27, "unfinished": 3}
    seen = sample_rows(rows, 20, 0)
    assert seen == sample_rows(rows, 20, 0) != sample_rows(rows, 20, 1)
    assert len({row.id for row in seen}) == 20
    assert {row_outcome(row) for row in seen} == set(found["outcomes"])
    assert len(sample_rows(rows, 500, 0)) == 120
    last = rows[1].model_copy(update={"unfused": "fidelity"})
    vetoed = rows[1].model_copy(update={"fallback": "fidelity", "unfused": "filter"})
    assert [row_outcome(row) for row in (last, vetoed)] == ["fidelity of all candidates", "fidelity"]
    assert {row_outcome(last), row_outcome(vetoed)} < set(OUTCOMES)


def test_a_row_that_no_judge_scored_was_not_changed_by_fusion(study):
    rows = study.domains["archive"].fused
    first = next(row for row in rows if row_outcome(row) == "fused")
    kept = {"fused": first.answer, "unfused": "quorum"}
    unscored = [row.model_copy(update=kept) if row.passed and row is not first else row for row in rows]
    domain = replace(study.domains["archive"], fused=unscored)
    refinement = measure_refinement(domain, study.config)
    assert refinement["fused_changed"] == refinement["outcomes"]["fused"] == 1
    assert refinement["share_fused_changed"] == pytest.approx(1 / refinement["rewrites_passed"])
    assert row_outcome(_example_rows(domain, study.config)[0]) == "fused"


def test_judges_lengths_and_comparisons(study):
    domain = study.domains["archive"]
    found = measure(study)["domains"]["archive"]["refinement"]
    assert found["judges"]["qwen"]["rewrites"] == pytest.approx(0.7)
    assert found["judges"]["fidelity"]["chosen"] == 1
    assert found["lengths"]["mean"] == {"reference": 7.0, "target": pytest.approx((30 * 7 + 90 * 10) / 120)}
    assert sum(found["lengths"]["counts"]["target"]) == 120
    told = [("first", "first"), ("first", "second"), ("first", None)]
    compared = [
        Comparison(judge="qwen", first=0, second=1, better=one, better_swapped=other, reasons=[]) for one, other in told
    ]
    domain.fused[1] = domain.fused[1].model_copy(update={"comparisons": compared})
    found = measure(study)["domains"]["archive"]["refinement"]
    assert found["comparisons"] == {"qwen": {"pairs": 3, "unusable": 1, "consistent": 0.5}}


def test_the_page_shows_what_became_of_rows_and_documents(study, tmp_path):
    asked = {"documents": 3, "chunks": 9, "proposed": 20, "kept": 15, "rejected": {"not grounded": 4, "duplicate": 1}}
    object.__setattr__(study.domains["archive"], "questions", asked)
    write_report(study, measure(study), Origin(None, {}), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in (
        "Of 208 rows, ingest rejected 2 and the domain’s limit left out 6; 120 are trained on",
        "row rejected: empty answer", "row flagged, and kept: email", "pair rejected: not grounded",
        "made from 3 documents in 9 chunks",
        "reference answer: the rewrite was cut off", "Fleiss", "people: correlation", "qwen 0.86 (“&lt;all&gt; there”)",
        "<ins>, noted in log",
    ):  # fmt: skip
        assert words in page, words
    assert "<all>" not in page
    assert page.count("<details>") >= 20
