import pytest

from raft_tasks.evaluation.leakage import leak_rate, leaks


@pytest.mark.parametrize(
    "answer",
    [
        "As stated in the reference, the reactor of Figin is rope.",
        "Based on the background reference knowledge, it is rope.",
        "According to the passage it is rope.",
        "The provided context does not say.",
        "The reference answer says rope.",
    ],
)
def test_a_mention_of_a_reference_is_a_leak(answer):
    assert leaks(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "The reactor of Figin is rope, noted in log 12.",
        "Reference librarians answer questions; their knowledge is broad.",
        "Water boils at 100 degrees, based on a pressure of 1 bar.",
        "",
    ],
)
def test_an_answer_that_speaks_for_itself_is_none(answer):
    assert not leaks(answer)


def test_the_rate_is_a_share_of_answers_not_of_mentions():
    twice = "According to the reference it is rope. The reference says so."
    assert leak_rate([twice, "It is rope.", "It is lamp.", "It is oak."]) == 0.25
    with pytest.raises(ValueError, match="no answers"):
        leak_rate([])
