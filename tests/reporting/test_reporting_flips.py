from raft_tasks.reporting.flips import Flip, find_flips, select_flips, telling_questions
from raft_tasks.reporting.study import Answered, Run
from raft_tasks.reporting.wording import SHOWN_CHARACTERS
from raft_tasks.schemas import Example, ItemResult


def item(task, name, right, answer="said", prompt="<user>What is Q?<end>"):
    return ItemResult(task=task, id=name, source=name, metrics={"acc": float(right)}, prompt=prompt, answer=answer)


ASKED = Example(
    id="d1", domain="archive", question="What is Q?", answer="Q.", source="Q", split="test", expected=["Q"], details=[]
)
BASE = [item("domain", "d1", False), item("recall", "a", True), item("recall", "b", True, "x" * 999)]
RUNS = [
    Run([item("domain", "d1", True, "Q."), item("recall", "a", True), item("recall", "b", False, "zero")], 0),
    Run([item("domain", "d1", True, "Q!"), item("recall", "a", False, "no"), item("recall", "b", False, "one")], 1),
]
PARTS = [("domain", "acc"), ("recall", "acc")]
DOMAIN = Answered([ASKED], BASE, {"sft": RUNS})


def test_flips_say_which_way_how_often_and_what_was_said():
    won, both, once = find_flips(DOMAIN, PARTS)
    assert (won.task, won.id, won.direction, won.seeds) == ("domain", "d1", "won", 2)
    assert (won.question, won.before, won.after) == ("What is Q?", "said", "Q.")
    assert (both.id, both.direction, both.seeds, both.after) == ("b", "lost", 2, "zero")
    assert len(both.before) < SHOWN_CHARACTERS + 10
    assert (once.id, once.direction, once.seeds, once.after) == ("a", "lost", 1, "no")


def test_few_are_chosen_of_every_method_direction_and_task_in_turn():
    listed = find_flips(DOMAIN, PARTS)
    assert select_flips(listed, 2) == listed[:2]  # one won, one lost
    assert select_flips(listed, 0) == []
    assert select_flips(listed, 9) == listed
    other = [Flip("sft", "reading", str(n), "lost", 1, "", "", "") for n in range(5)]
    assert [flip.task for flip in select_flips(listed + other, 6)] == ["domain", "recall", "recall", *["reading"] * 3]


def test_questions_that_tell_the_methods_apart_come_first():
    runs = {"sft": [RUNS[1]], "raft": [RUNS[0]]}  # a: SFT wrong, RAFT right; b: both wrong
    domain = Answered([ASKED], BASE, runs)
    first, second = telling_questions(domain, [("recall", "acc")], ["sft", "raft"], 3)
    assert [(name, right) for name, _, right in first.answers] == [("base", True), ("sft", False), ("raft", True)]
    assert (first.task, first.question, first.answers[1][1]) == ("recall", "What is Q?", "no")
    assert [right for _, _, right in second.answers] == [True, False, False]
    chosen = item("recall", "c", True, "choice 0")
    likelihood = Answered([ASKED], [BASE[0], chosen], runs)
    assert telling_questions(likelihood, [("recall", "acc")], [], 3) == []
