"""What a suite of benchmarks refuses before any model is loaded."""

import json

import pytest
from chat_models import save_chat_model
from task_files import multiple_choice, write_task

from raft_tasks.config import Benchmark, Model
from raft_tasks.errors import InputError
from raft_tasks.evaluation.harness import Suite, evaluate
from raft_tasks.evaluation.verdicts import main_metric
from raft_tasks.schemas import Example

ROW = Example(id="a", domain="d", question="eight nine", answer="five", source="s", split="test")
NOBODY = Model(path="nobody", dtype="float32")  # there is none of this name


def asked(tasks):
    return Benchmark(tasks=tasks, max_new_tokens=4)


def metric_list(*metrics):
    return {"metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": up} for name, up in metrics]}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Tasks with metrics of every kind, and groups of them."""
    folder = tmp_path_factory.mktemp("measured")
    rows = [{"question": f"two three {n}", "right": 0, "page": "six seven"} for n in (12, 75)]
    choice = multiple_choice(["four", "five"])
    write_task(folder, "plain", rows, **choice)
    write_task(folder, "normed", rows, **choice | metric_list(("acc", True), ("acc_norm", True)))
    write_task(folder, "unlike", rows, **choice | metric_list(("likelihood_diff", False)))
    page = {"doc_to_target": "page", "doc_to_text": ""}
    bits = metric_list(("bits_per_byte", False))
    write_task(folder, "wiki", rows, output_type="loglikelihood_rolling", **page, **bits)
    lambada = [{"metric": "perplexity"}, {"metric": "acc"}]
    write_task(folder, "lambada", rows, output_type="loglikelihood", **page, metric_list=lambada)
    for name, members in {"mixed": ["plain", "normed"], "whole": ["plain", "lambada"]}.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"group": name, "task": members, "metadata": {"version": 1}}))
    return folder


@pytest.mark.parametrize(
    ("task", "metrics"),
    [("mixed", ["acc", "acc_norm"]), ("unlike", ["likelihood_diff"]), ("wiki", ["bits_per_byte"])],
)
def test_one_metric_decides_a_task_the_higher_the_better(measured, task, metrics):
    with pytest.raises(InputError) as raised:
        evaluate(NOBODY, Suite("d", [ROW], asked([task]), measured))
    assert str(raised.value).startswith(f"benchmark.tasks: {task!r} is measured by {metrics}; expected one metric")


def test_accuracy_decides_beside_a_perplexity(measured, tmp_path):
    model = Model(path=str(save_chat_model("qwen3", tmp_path / "model")), dtype="float32")
    _, items = evaluate(model, Suite("d", [ROW], asked(["whole"]), measured))
    assert [main_metric(row.metrics) for row in items if row.task == "whole"] == ["acc"] * 4


@pytest.mark.parametrize("names", [["whole", "plain"], ["plain", "whole"], ["plain", "plain"], ["plain", "domain"]])
def test_every_task_stands_once_in_the_suite(measured, names):
    with pytest.raises(InputError, match=r"benchmark\.tasks: '\w+' and '\w+' both hold \['(plain|domain)'\]"):
        evaluate(NOBODY, Suite("d", [ROW], asked(names), measured))
