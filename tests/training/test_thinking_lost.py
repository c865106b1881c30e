"""A thinking model in small loses its thinking by SFT; measured in both modes, the gate refuses it.

Plain SFT learns bare answers where the model would have thought, as tools do that render rows by a template's default.
"""

import pytest
import thinking_model as world
import tiny
from task_files import exact_match, write_task

from raft_tasks.config import AnchorLoss, AnchorSet, Benchmark, Model, PromotionGate
from raft_tasks.evaluation.gate import check_candidate
from raft_tasks.evaluation.harness import Suite, evaluate
from raft_tasks.evaluation.prompting import compare_prompts
from raft_tasks.gate import measure
from raft_tasks.generation.anchors import answer_turns
from raft_tasks.generation.thinking import think_first
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.schemas import Anchor, Example, TrainingPair, UserTurn
from raft_tasks.training.anchor_logits import write_anchors
from raft_tasks.training.conversations import Encoder
from raft_tasks.training.train import train_model

PAIRS = [
    TrainingPair(id=name, question=world.fact_question("motto", name, "")[0], answer=world.MOTTO[name])
    for name in world.PLACES
]


COLUMNS = [
    ("domain", "acc"), ("steps", "exact_match"), ("domain (thinking)", "acc"), ("steps (thinking)", "exact_match"),
]  # fmt: skip


def mean(rows, metric):
    return sum(row.metrics[metric] for row in rows) / len(rows)


def suite(folder):
    questions = [world.step_question(name, steps) for name in world.PLACES for steps in (2, 3, 4)]
    items = [{"question": question, "answer": answer} for question, _, answer in questions]
    write_task(folder, "steps", items, doc_to_target="answer", **exact_match([], 4))
    rows = [
        Example(
            id=pair.id, domain="mottos", question=pair.question, answer=pair.answer, source=pair.id, split="test",
            expected=[pair.answer],
        )
        for pair in PAIRS
    ]  # fmt: skip
    return Suite("mottos", rows, Benchmark(tasks=["steps"], batch_size=128, max_new_tokens=4), folder)


def learn(base, pairs, folder, epochs, method=None, **inputs):
    train = tiny.train(
        epochs=epochs, batch_size=8, micro_batch_size=8, learning_rate=1e-3, weight_decay=0.0, max_length=64,
        checkpoint_steps=10_000,
    )  # fmt: skip
    folder.mkdir()
    job = tiny.job(base, folder, method or tiny.method(), pairs=pairs, train=train, template_text="", **inputs)
    train_model(job)
    return base.model_copy(update={"path": str(folder / "output" / "model")})


def save_anchors(base, backend, folder):
    """The base's own answers to questions that it knows, other ones than the benchmark's, in both modes."""
    questions = [world.step_question(name, steps)[0] for name in world.PLACES for steps in (1, 5, 6)]
    turns = [UserTurn(id=str(number), prompt=question) for number, question in enumerate(questions)]
    settings = AnchorSet(answer_max_new_tokens=4, answer_temperature=0.0)
    anchors = [
        Anchor(**row.model_dump(include={"id", "prompt", "answer"})) for row in answer_turns(turns, backend, settings)
    ]
    folder.mkdir()
    encoder = Encoder(backend.tokenizer, 64, thinking=base.thinking)
    write_anchors(folder, anchors, backend.model, encoder, 8, 64)
    return folder


def candidates(folder, base):
    """By name; every training has as many steps."""
    backend = TransformersBackend(base)
    anchored = tiny.method(anchors=AnchorLoss(set="some", batch=16, weight=2.0))
    return {
        "sft": learn(base.model_copy(update={"thinking": "on"}), PAIRS, folder / "sft", epochs=30),
        "off": learn(base.model_copy(update={"thinking": "off"}), PAIRS, folder / "off", epochs=30),
        "both": learn(
            base,
            think_first(PAIRS, backend, batch_size=32, seed=0),
            folder / "both",
            15,
            anchored,
            anchors=save_anchors(base, backend, folder / "anchors"),
        ),
    }


def judge(folder, base, models):
    tasks = folder / "tasks"
    tasks.mkdir()
    asked = suite(tasks)
    measured = {}
    for name, model in {"base": base, **models}.items():
        _, items = evaluate(model.model_copy(update={"thinking": "both"}), asked)
        prompts = compare_prompts(model, base) if name != "base" else None
        facts = measure(name, items)
        measured[name] = type(facts)(name, facts.items, 1, 1.0, facts.leaks, prompts)
        thoughtful = [row for task, rows in facts.items.items() if task.endswith("(thinking)") for row in rows]
        columns = [*((facts.items[task], metric) for task, metric in COLUMNS), (thoughtful, "thought")]
        print(name, *(f"{100 * mean(rows, metric):.0f}" for rows, metric in columns))  # the docs' table
    rules = PromotionGate(min_fidelity=None)
    return {
        name: check_candidate(rules, "mottos", measured[name], measured["base"], None, fidelity=None) for name in models
    }


@pytest.mark.slow
def test_both_modes_see_a_lost_thought_and_the_gate_refuses_it(tmp_path):
    folder = world.save_thinking_model(tmp_path / "base")
    base = Model(path=str(folder), dtype="float32", thinking="both", thought_tokens=24)
    verdicts = judge(tmp_path, base, candidates(tmp_path, base))
    results = {name: {check.rule: check for check in verdict.checks} for name, verdict in verdicts.items()}
    assert verdicts["sft"].harmful
    lost = results["sft"]
    assert lost["thoughts"].result == lost["general: steps (thinking)"].result == "fail"
    assert "sft 0.0%, unfinished 0.0%; base 100.0%" in lost["thoughts"].evidence
    kept = results["both"]  # the base thought before each answer was learned, and anchors keep its thoughts
    for rule in ("domain", "domain (thinking)", "general: steps (thinking)", "thoughts", "leaks", "prompting"):
        assert kept[rule].result == "pass", kept[rule]
    assert results["off"]["general: steps (thinking)"].result == "fail"
