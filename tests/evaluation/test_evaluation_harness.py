import json
import logging
import shutil
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from task_files import exact_match, multiple_choice, write_task

from raft_tasks.config import Benchmark, Model
from raft_tasks.errors import InputError
from raft_tasks.evaluation.harness import (
    Suite,
    draw_items,
    evaluate,
    load_items,
    write_domain_task,
)
from raft_tasks.evaluation.outcomes import is_generated, item_results, number_of
from raft_tasks.evaluation.overlay import task_manager
from raft_tasks.schemas import Example

WORDS = ["what", "is", "the", "crest", "of", "figin", "botor", "rope", "corn", "lamp", "log", "12", "75", "?", "[", "]"]
TEMPLATE = (
    "{% for m in messages %}<start> {{ m.role }} {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<start> assistant {% endif %}"
)
ROWS = [
    Example(
        id=f"row-{number}", domain="crests", question=f"what is the crest of {name} ?", answer=answer, source=name,
        split="test", expected=expected, details=details,
    )
    for number, (name, answer, expected, details) in enumerate(
        [
            ("figin", "figin crest rope log 12", ["rope"], ["12"]),
            ("botor", "[ botor corn ]", [], []),  # brackets would be evaluated by a task that renders its target
            ("figin", "{{ figin }} lamp", ["lamp"], []),
        ]
    )
]  # fmt: skip
SAID_YAML = """\
task: crest_said
dataset_path: json
dataset_kwargs: {{data_files: {{test: {items}}}, cache_dir: {cache}}}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: word
generation_kwargs: {{until: [], do_sample: false, max_gen_toks: 4}}
process_results: !function hooks.process_results
metric_list:
  - {{metric: said, aggregation: mean, higher_is_better: true}}
  - {{metric: words, aggregation: !function hooks.longest, higher_is_better: false}}
metadata: {{version: 1.0}}
"""
HOOKS = """\
import numpy as np


def process_results(doc, results):
    return {"said": np.float32(doc["word"] in results[0].split()), "words": results[0].split()}


def longest(answers):
    return max(len(words) for words in answers)
"""


def asked(tasks, **settings):
    others = {"few_shot": {}, "limit": {}, "data": {}, "batch_size": 2, "max_new_tokens": 6}
    return Benchmark(tasks=tasks, **(others | settings))


def as_params(folder, system=None):
    return Model(path=str(folder), revision=None, dtype="float32", system=system)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny random Llama with a word tokenizer and a chat template, saved."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    vocabulary = {word: n for n, word in enumerate(["<unk>", "<pad>", "<start>", "<end>", "user", "assistant", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="<end>", model_max_length=64
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64, eos_token_id=3, pad_token_id=1, bos_token_id=None, initializer_range=0.5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "hooks.py").write_text(HOOKS)
    rows = [{"question": f"the crest of {name} ?", "right": 0, "source": name} for name in ("figin", "botor")]
    write_task(folder, "crest_choice", rows, **multiple_choice(["rope", "corn"]))
    items = folder / "said.jsonl"
    items.write_text("".join(json.dumps({"question": f"log {n} ?", "word": "rope"}) + "\n" for n in (12, 75, 12)))
    paths = {"items": json.dumps(str(items)), "cache": json.dumps(str(folder / "cache"))}
    (folder / "said.yaml").write_text(SAID_YAML.format(**paths))
    return folder


@pytest.fixture(scope="module")
def benchmarked(model, tasks):
    return evaluate(as_params(model), Suite("crests", ROWS, asked(["crest_said", "crest_choice"]), tasks))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with the generated task of the domain."""
    folder = tmp_path_factory.mktemp("work")
    write_domain_task(folder, Suite("crests", ROWS, asked([]), tmp_path_factory.mktemp("tasks")))
    return folder


def test_every_item_of_every_task_is_kept(benchmarked):
    _, items = benchmarked
    assert [(row.task, row.id, row.source) for row in items] == [
        ("domain", "row-0", "figin"),
        ("domain", "row-1", "botor"),
        ("domain", "row-2", "figin"),
        ("crest_said", "0", "0"),
        ("crest_said", "1", "1"),
        ("crest_said", "2", "2"),
        ("crest_choice", "0", "figin"),
        ("crest_choice", "1", "botor"),
    ]
    assert set(items[0].metrics) == {"acc", "complete", "token_f1"}
    assert set(items[3].metrics) == {"said"}  # a list per item is not a number per item
    assert items[-1].answer in ("choice 0", "choice 1")
    assert items[-1].metrics["acc"] == float(items[-1].answer == "choice 0")


def test_the_chat_template_is_applied_once_and_whole(benchmarked):
    _, items = benchmarked
    assert items[0].prompt == "<start> user what is the crest of figin ? <end> <start> assistant "
    assert items[3].prompt == "<start> user log 12 ? <end> <start> assistant "
    assert items[-1].prompt.startswith("<start> user the crest of botor ?")


def test_right_answers_of_items_are_texts_also_where_they_are_choices(tasks):
    items = list(load_items(["crest_said", "crest_choice"], tasks, {}))
    assert {answer for name, _, answer in items if name.startswith("crest_choice")} <= {"rope", "corn"}


def test_the_system_prompt_stands_before_every_question(model, tasks):
    settings = asked(["crest_choice"])
    _, items = evaluate(as_params(model, "rope is corn"), Suite("crests", ROWS, settings, tasks))
    assert items[0].prompt == (
        "<start> system rope is corn <end> <start> user what is the crest of figin ? <end> <start> assistant "
    )
    assert items[-1].prompt.startswith("<start> system rope is corn <end> <start> user the crest of botor ?")


def test_scores_are_the_means_of_the_items(benchmarked):
    scores, items = benchmarked
    for task in ("domain", "crest_said", "crest_choice"):
        rows = [row for row in items if row.task == task]
        assert scores["tasks"][task]["n"] == len(rows)
        for metric in rows[0].metrics:
            assert scores["tasks"][task]["metrics"][metric] == pytest.approx(
                sum(row.metrics[metric] for row in rows) / len(rows)
            )
    assert set(scores["versions"]) == {"lm_eval", "transformers", "torch"}
    assert (
        scores["tasks"]["crest_said"]["metrics"]["words"] <= 4
    )  # lm-eval's own aggregate of what is not a number per item
    json.dumps(scores, allow_nan=False)


def test_answers_are_greedy_bounded_and_the_same_again(benchmarked, model, tasks):
    _, items = benchmarked
    assert max(len(row.answer.split()) for row in items if row.task == "domain") <= 6
    assert items[3].answer == items[5].answer  # the same question
    one = asked(["crest_said", "crest_choice"], batch_size=8)
    again = evaluate(as_params(model), Suite("crests", ROWS, one, tasks))[1]
    assert again == items


def test_agrees_with_lm_eval_by_hand(benchmarked, model, tasks, work):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    scores, items = benchmarked
    lm = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=2, enable_thinking=False)
    manager = TaskManager(include_defaults=False, include_path=[tasks, work])
    names = ["domain", "crest_said", "crest_choice"]
    found = lm_eval.simple_evaluate(
        lm, tasks=names, task_manager=manager, apply_chat_template=True, bootstrap_iters=0, log_samples=True
    )
    for name in names:
        metrics = {k.removesuffix(",none"): v for k, v in found["results"][name].items() if k.endswith(",none")}
        assert scores["tasks"][name]["metrics"] == {
            metric: value for metric, value in metrics.items() if "_stderr" not in metric
        }
        answers = [sample["resps"][0][0] for sample in found["samples"][name]]
        if name != "crest_choice":
            assert [row.answer for row in items if row.task == name] == answers


def test_numbers_of_numpy_and_torch_are_numbers():
    import torch

    numbers = [True, 2, 0.5, np.bool_(True), np.int64(2), np.float32(0.5), np.array(0.5), torch.tensor(2), Decimal(3)]
    assert [number_of(value) for value in numbers] == [1.0, 2.0, 0.5, 1.0, 2.0, 0.5, 0.5, 2.0, 3.0]
    assert all(number_of(value) is None for value in ("1", None, [1.0], np.array([1.0]), {"a": 1}))


def test_a_metric_without_a_number_is_named():
    sample = {"doc_id": 3, "doc": {}, "filter": "none", "metrics": ["acc"], "acc": np.float64("nan")}
    with pytest.raises(InputError, match=r"arc, item 3: \{'acc': nan\}; expected finite numbers"):
        list(item_results("arc", "arc", None, [sample], False))


def test_items_that_share_an_id_stay_apart_and_are_of_one_source(model, tmp_path):
    rows = [
        {"id": name, "question": f"the crest of figin {n} ?", "right": n % 2}
        for n, name in enumerate(("same", "same", "other"))
    ]
    write_task(tmp_path, "dup", rows, **multiple_choice(["rope", "corn"]))
    items = evaluate(as_params(model), Suite("crests", ROWS, asked(["dup"]), tmp_path))[1][len(ROWS) :]
    assert [(row.id, row.source) for row in items] == [("same/0", "same"), ("same/1", "same"), ("other", "other")]


@pytest.mark.parametrize(
    ("metrics", "responses", "answer"),
    [
        ({"acc": 0.0}, [(-3.0, False), (-9.0, False)], "choice 0"),
        ({"acc": 0.0, "acc_norm": 1.0}, [(-3.0, False), (-9.0, False)], "choice 1"),  # by length, as acc_norm decides
        ({"acc": 0.0, "acc_norm": 1.0}, [(-3.0, False), (-9.0, False), (-1.0, False), (-1.0, False)], "choice 1"),
        ({"acc": 1.0}, [(-3.0, True)], "target is greedy"),
        ({"acc": 0.0}, [(-3.0, False)], "target is not greedy"),
        ({"acc": 0.0}, ["choose"], "choose"),
    ],
)
def test_an_answer_is_what_the_deciding_metric_scores(metrics, responses, answer):
    task = SimpleNamespace(
        doc_to_text=lambda _: "q", doc_to_target=lambda _: 1, config=SimpleNamespace(doc_to_choice=True),
        doc_to_choice=lambda _: ["no", "a long right choice"],
    )  # fmt: skip
    sample = {"doc_id": 0, "filter": "none", "metrics": list(metrics), **metrics, "doc": {}, "arguments": [("p", "")]}
    (row,) = item_results("t", "t", task, [{**sample, "resps": [[reply] for reply in responses]}], False)
    assert row.answer == answer
    assert is_generated(row.answer) == isinstance(responses[0], str)


def test_a_limit_draws_its_items():
    assert draw_items(10042, 200) == sorted(set(draw_items(10042, 200)))
    assert set(draw_items(10042, 200)) < set(draw_items(10042, 500))
    assert sum(place < 3243 for place in draw_items(10042, 500)) == pytest.approx(157, abs=25)
    assert draw_items(3, 3) == [0, 1, 2]


def test_another_seed_draws_other_examples_for_the_same_items(model, tmp_path):
    rows = [{"question": f"the crest of {name} ?", "answer": "rope"} for name in ("figin", "botor", "lamp", "log")]
    examples = tmp_path / "examples.jsonl"
    examples.write_text("\n".join(json.dumps({"question": f"{word} ?", "answer": word}) for word in WORDS[:12]))
    files = {"train": str(examples), "test": str(tmp_path / "shown.jsonl")}
    shown = {"dataset_kwargs": {"data_files": files}, "training_split": "train", "doc_to_target": "answer"}
    write_task(tmp_path, "shown", rows, **exact_match([], 4), **shown)
    suite = Suite("crests", ROWS, asked(["shown"], few_shot={"shown": 2}, limit={"shown": 2}), tmp_path)
    first, again, other = (
        evaluate(as_params(model), replace(suite, seed=seed))[1] for seed in (suite.seed, suite.seed, 0)
    )
    assert first == again
    prompts = [[row.prompt for row in items] for items in (first, other)]
    assert prompts[0][: len(ROWS)] == prompts[1][: len(ROWS)]  # the domain has no examples
    assert prompts[0][len(ROWS) :] != prompts[1][len(ROWS) :]
    assert [(row.id, row.question) for row in first] == [(row.id, row.question) for row in other]


def test_progress_goes_by_items(model, tasks):
    seen = []
    suite = Suite("crests", ROWS, asked(["crest_said", "crest_choice"], limit={"crest_said": 2}), tasks)
    evaluate(as_params(model), suite, lambda done, total: seen.append((done, total)))
    assert {total for _, total in seen} == {7}  # 3 of the domain, 2 and 2
    done = [count for count, _ in seen]
    assert done == sorted(done)
    assert done[-1] == 7
    assert len(set(done)) >= 5


def test_the_domain_task_is_generated_and_cached_in_the_work_folder(work):
    assert [json.loads(line)["id"] for line in (work / "items.jsonl").read_text().splitlines()] == [
        "row-0",
        "row-1",
        "row-2",
    ]
    assert "crests" in (work / "domain.yaml").read_text()
    list(load_items(["domain"], work, {}))
    assert any((work / "cache").rglob("*.arrow"))


def test_odd_folders_are_quoted(tmp_path):
    import yaml

    work = tmp_path / "it's {a}: #folder"
    work.mkdir()
    write_domain_task(work, Suite("crests", ROWS, asked([]), tmp_path))
    text = (work / "domain.yaml").read_text().replace("!function ", "")
    assert yaml.safe_load(text)["dataset_kwargs"]["data_files"]["test"] == str(work / "items.jsonl")


def test_lm_evals_chatter_is_off_and_its_settings_come_back(benchmarked, model, tasks, capfd):
    level = logging.getLogger("lm_eval").level
    settings = asked(["crest_said"])
    evaluate(as_params(model), Suite("crests", ROWS, settings, tasks))
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("lm_eval").level == level


def test_unknown_tasks_are_named_and_lm_evals_own_are_found(tasks, tmp_path, tmp_path_factory, monkeypatch):
    """With a part of lm-eval's own tasks: to read them all takes ten seconds."""
    import lm_eval.tasks

    part = tmp_path_factory.mktemp("lm-eval")
    for name in ("arc", "piqa"):
        shutil.copytree(Path(lm_eval.tasks.__file__).parent / name, part / name)
    monkeypatch.setattr(lm_eval.tasks, "__file__", str(part / "__init__.py"))
    write_domain_task(tmp_path, Suite("crests", ROWS, asked([]), tmp_path))
    with pytest.raises(InputError) as raised:
        task_manager(["crest_said", "arc_easy", "no_such_task"], [tasks, tmp_path], {}, tmp_path)
    assert "got ['no_such_task'], expected tasks of" in str(raised.value)
    assert "['crest_choice', 'crest_said']" in str(raised.value)


def test_a_prompt_that_does_not_fit_is_refused_not_cut(model, tasks):
    long = [ROWS[0].model_copy(update={"question": "what is " * 40})]
    with pytest.raises(InputError, match="a prompt has 85 tokens, but of the model's 64 only 58"):
        evaluate(as_params(model), Suite("crests", long, asked([]), tasks))


def test_no_likelihood_is_read_of_a_prompt_that_was_cut(model, tmp_path):
    """The question and 5 tokens of the template and 2 of a choice, whose last one the model need not read."""
    for name, words in {"fits": 58, "long": 59}.items():
        row = {"question": "log " * words, "right": 0}
        write_task(tmp_path, name, [row], **multiple_choice(["rope corn", "corn lamp"]))
    evaluate(as_params(model), Suite("crests", ROWS, asked(["fits"]), tmp_path))
    with pytest.raises(
        InputError, match=r"64 tokens and its answer 2, but the model reads 64; .* '<start> user log log"
    ):
        evaluate(as_params(model), Suite("crests", ROWS, asked(["long"]), tmp_path))


def test_a_model_without_chat_template_is_refused(model, tasks, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="no chat template"):
        evaluate(as_params(bare), Suite("crests", ROWS, asked([]), tasks))


def test_a_domain_without_held_out_rows_is_refused(tmp_path):
    with pytest.raises(InputError, match="'crests' has no held-out rows"):
        evaluate(as_params("x"), Suite("crests", [], asked([]), tmp_path))


def test_the_shipped_tasks_have_items_and_an_accuracy(tmp_path):
    folder = Path(__file__).parents[2] / "raft_tasks" / "evaluation" / "tasks"
    names = sorted(path.name for path in folder.glob("pocket_*"))
    assert len(names) == 4
    manager = task_manager(names, [folder], {}, tmp_path)
    for name, task in manager.load(names)["tasks"].items():
        docs = list(task.test_docs())
        assert len(docs) >= 100
        target = task.process_results(docs[0], [docs[0]["answer"]])
        assert target["acc"] == 1.0, name
