"""Models that think, measured in the modes that production uses, and what the gate makes of a lost thought."""

from dataclasses import replace
from pathlib import Path

import pytest
from saying import thinking_model
from task_files import exact_match, multiple_choice, write_task

from raft_tasks.config import Benchmark, load_config
from raft_tasks.evaluation.gate import Measured, check_candidate
from raft_tasks.evaluation.harness import Suite, evaluate
from raft_tasks.evaluation.prompting import compare_prompts
from raft_tasks.gate import measure
from raft_tasks.reporting.measures import measures_of
from raft_tasks.schemas import Example, ItemResult, thinking_name

ROW = Example(id="a", domain="d", question="what", answer="rope", source="s", split="test", expected=["rope"])


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": "what", "right": 0, "word": "rope"}]
    write_task(folder, "choice", rows, **multiple_choice(["rope", "corn"]))
    write_task(folder, "written", rows, doc_to_target="word", **exact_match(["hm", "lamp"], 3))
    return folder


def measured(model, tasks, **settings):
    settings = Benchmark(tasks=["choice", "written"], batch_size=1, max_new_tokens=3, **settings)
    done = []
    scores, items = evaluate(model, Suite("d", [ROW], settings, tasks), lambda *numbers: done.append(numbers))
    return {name: of_task["metrics"] for name, of_task in scores["tasks"].items()}, items, done


def test_both_modes_are_measured_and_thoughts_are_not_scored(tmp_path, tasks):
    model = thinking_model(tmp_path, ["<think>", "hm", "</think>"], "both")
    scores, items, done = measured(model, tasks)
    assert {item.task: (item.thought, item.answer) for item in items} == {
        "domain": ("", "rope lamp"),
        "choice": ("", "choice 0"),
        "written": ("", "rope "),
        "domain (thinking)": ("<think>hm</think>", "rope lamp"),
        "written (thinking)": ("<think>hm</think>", "rope "),  # "hm" would end an answer, and does not end a thought
    }
    assert all(("</think>" in item.prompt) != item.task.endswith(thinking_name("")) for item in items)
    assert scores["domain (thinking)"]["acc"] == scores["domain"]["acc"] == 1.0
    assert (scores["written (thinking)"]["thought"], scores["written (thinking)"]["unfinished_thought"]) == (1.0, 0.0)
    assert "thought" not in scores["domain"]
    assert done[-1] == (5, 5)


@pytest.mark.parametrize("thinking", ["off", "on"])
def test_one_mode_has_the_names_of_the_tasks_and_likelihoods_are_read_without_a_thought(tmp_path, tasks, thinking):
    model = thinking_model(tmp_path, ["<think>", "hm", "</think>"], thinking)
    scores, items, _ = measured(model, tasks)
    assert set(scores) == {"domain", "choice", "written"}
    by_task = {item.task: item for item in items}
    assert ("</think>" in by_task["domain"].prompt) == (thinking == "off")
    assert "</think>" in by_task["choice"].prompt
    assert ("thought" in scores["domain"], bool(by_task["domain"].thought)) == (thinking == "on", thinking == "on")


def test_an_unfinished_thought_is_counted_and_no_answer(tmp_path, tasks):
    """Three tokens of thought with three beside them for the answer: the eighth word, which ends it, never comes."""
    model = thinking_model(tmp_path, ["<think>", *["hm"] * 6, "</think>"], "on", thought_tokens=3)
    scores, items, _ = measured(model, tasks)
    domain = next(item for item in items if item.task == "domain")
    assert (domain.answer, domain.thought) == ("", f"<think>{5 * 'hm'}")
    assert scores["domain"] | {"acc": 0.0, "thought": 0.0, "unfinished_thought": 1.0} == scores["domain"]
    finished = measured(model.model_copy(update={"thought_tokens": 6}), tasks)[0]["domain"]
    assert (finished["acc"], finished["unfinished_thought"]) == (1.0, 0.0)


def test_an_empty_thought_is_none(tmp_path, tasks):
    model = thinking_model(tmp_path, ["<think>", "</think>"], "on")
    scores, _, _ = measured(model, tasks)
    assert (scores["domain"]["acc"], scores["domain"]["thought"]) == (1.0, 0.0)


def test_a_folder_is_asked_in_the_modes_of_its_training(tmp_path):
    base = thinking_model(tmp_path, ["<think>", "hm", "</think>"], "both")
    assert set(compare_prompts(base, base)) > {"one turn", "one turn (thinking)"}
    assert set(compare_prompts(base, base).values()) == {None}
    differences = compare_prompts(base, base.model_copy(update={"thinking": "off"}))  # by itself it would think
    assert differences["one turn"] is not None
    assert set(compare_prompts(base, base.model_copy(update={"thinking": "on"})).values()) == {None}


RULES = load_config(Path(__file__).parents[2] / "params.yaml").gate
OFF, ON = "domain", thinking_name("domain")
GENERAL, GENERAL_ON = "recall", thinking_name("recall")


def outcomes(task, right, thoughts, unfinished=0, count=200):
    """The first `right` of `count` items are right; where a task was thought about, the first ones have thoughts."""
    on = task.endswith(thinking_name(""))
    return [
        ItemResult(
            task=task, id=str(n), source=f"fact-{n // 2}", prompt="?", answer="It is rope.",
            metrics={"acc": float(n < right)}
            | ({"thought": float(n < thoughts), "unfinished_thought": float(n >= count - unfinished)} if on else {}),
        )
        for n in range(count)
    ]  # fmt: skip


def model(name, domain, domain_on, recall_on=190, thoughts=200, unfinished=0, **facts):
    rights = {OFF: domain, GENERAL: 190, ON: domain_on, GENERAL_ON: recall_on}
    items = {task: outcomes(task, right, thoughts, unfinished) for task, right in rights.items()}
    facts = {"bytes": 1000, "seconds": 0.1, "leaks": 0.0, "prompting": {"one turn": None}, **facts}
    return Measured(name, items, **facts)


BASE = model("base", domain=4, domain_on=20)


def checks(candidate, champion=None):
    verdict = check_candidate(RULES, "archive", candidate, BASE, champion, fidelity=0.99)
    return verdict, {check.rule: check for check in verdict.checks}


def test_a_candidate_that_is_good_in_both_modes_passes():
    verdict, rules = checks(model("sft-0", domain=180, domain_on=180))
    assert verdict.promoted
    assert list(rules) == [
        "domain", "domain (thinking)", "general: recall", "general: recall (thinking)", "general average", "thoughts",
        "fidelity", "leaks", "prompting", "size", "latency",
    ]  # fmt: skip
    evidence = "answers with a finished thought: sft-0 100.0%, unfinished 0.0%; base 100.0%, unfinished 0.0%"
    assert rules["thoughts"].evidence == evidence


@pytest.mark.parametrize(
    ("lost", "rule"),
    [
        ({"recall_on": 120}, "general: recall (thinking)"),
        ({"thoughts": 100}, "thoughts"),
        ({"thoughts": 150, "unfinished": 50}, "thoughts"),
    ],
)
def test_what_is_lost_in_the_thinking_mode_alone_is_refused(lost, rule):
    verdict, rules = checks(model("sft-0", domain=180, domain_on=180, **lost))
    assert not verdict.promoted
    assert verdict.harmful
    assert rules[rule].result == "fail"
    assert rules["domain"].result == rules["general: recall"].result == "pass"


def test_the_thoughts_of_a_small_task_weigh_as_much_as_a_large_ones():
    of = {GENERAL_ON: (500, {"base": 430, "sft-0": 450}), ON: (20, {"base": 18, "sft-0": 10})}
    candidate, base = (
        Measured(name, {task: outcomes(task, 0, thoughts[name], count=count) for task, (count, thoughts) in of.items()})
        for name in ("sft-0", "base")
    )
    verdict = check_candidate(RULES, "archive", candidate, base, None, fidelity=0.99)
    (thoughts,) = (check for check in verdict.checks if check.rule == "thoughts")
    assert thoughts.candidate.startswith("-18.0 points")
    assert "sft-0 70.0%, unfinished 0.0%; base 88.0%" in thoughts.evidence


def test_the_thinking_mode_may_not_know_less_of_the_domain_and_need_not_know_more():
    """... than the base, where nothing is in production."""
    assert checks(model("sft-0", domain=180, domain_on=20))[0].promoted
    _, rules = checks(model("sft-0", domain=180, domain_on=0))
    assert rules["domain (thinking)"].result == "fail"
    champion = model("v1", domain=180, domain_on=180)
    _, rules = checks(model("sft-0", domain=180, domain_on=100), champion)
    assert (rules["domain"].result, rules["domain (thinking)"].result) == ("pass", "fail")


def test_a_model_without_thinking_has_the_rules_that_it_had():
    only_off = [replace(one, items={OFF: one.items[OFF], GENERAL: one.items[GENERAL]})
                for one in (model("sft-0", 180, 0), BASE)]  # fmt: skip
    verdict = check_candidate(RULES, "archive", only_off[0], only_off[1], None, fidelity=0.99)
    assert [check.rule for check in verdict.checks][:3] == ["domain", "general: recall", "fidelity"]


def test_a_reference_in_a_thought_is_a_leak():
    rows = outcomes(OFF, 1, 0, count=4) + outcomes(ON, 1, 4, count=4)
    thought = "<think> as the reference says </think> "
    leaking = [row.model_copy(update={"thought": thought}) if row.task == ON else row for row in rows]
    assert (measure("a", rows).leaks, measure("a", leaking).leaks) == (0.0, 0.5)


def test_the_report_has_a_column_for_each_mode_and_for_thoughts():
    base = [row for rows in BASE.items.values() for row in rows]
    measures = measures_of(base, [GENERAL])
    assert measures == {
        "domain_acc": [(OFF, "acc")],
        "domain_complete": [(OFF, "complete")],
        "general": [(GENERAL, "acc")],
        GENERAL: [(GENERAL, "acc")],
        "domain_acc (thinking)": [(ON, "acc")],
        "domain_thought (thinking)": [(ON, "thought")],
        "domain_unfinished_thought (thinking)": [(ON, "unfinished_thought")],
        GENERAL_ON: [(GENERAL_ON, "acc")],
        "general_thought (thinking)": [(GENERAL_ON, "thought")],
        "general_unfinished_thought (thinking)": [(GENERAL_ON, "unfinished_thought")],
    }
    only_on = [row.model_copy(update={"task": off}) for off, on in ((OFF, ON), (GENERAL, GENERAL_ON))
               for row in BASE.items[on]]  # fmt: skip
    assert set(measures_of(only_on, [GENERAL])) == {
        "domain_acc", "domain_complete", "domain_thought", "domain_unfinished_thought", "general", GENERAL,
        "general_thought", "general_unfinished_thought",
    }  # fmt: skip
    assert measures_of(only_on, [GENERAL])["general_unfinished_thought"] == [(GENERAL, "unfinished_thought")]
