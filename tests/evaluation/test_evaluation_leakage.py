import pytest

from raft_tasks.evaluation.leakage import find_leaks, leak_rate, repeats_template


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
    assert find_leaks(answer)


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
    assert not find_leaks(answer)


def test_the_rate_is_a_share_of_answers_not_of_mentions():
    twice = "According to the reference it is rope. The reference says so."
    assert leak_rate([twice, "It is rope.", "It is lamp.", "It is oak."]) == 0.25
    with pytest.raises(ValueError, match="no answers"):
        leak_rate([])


TEMPLATE = (
    "Background reference knowledge: {{ answer }}\nAnswer the question based on the reference knowledge: {{ question }}"
)


@pytest.mark.parametrize(
    ("answer", "repeats"),
    [
        ("Rope, to answer the question.", True),
        ("BACKGROUND reference, knowledge", True),
        ("The question is based in Rome.", False),  # two words in a row are chance
        ("knowledge answer the", False),  # words around a field do not follow each other
        ("answer question rope", False),  # a field's name is no word of the template
        ("", False),
    ],
)
def test_three_words_of_the_teachers_prompt_are_an_echo(answer, repeats):
    assert repeats_template(answer, TEMPLATE) is repeats
