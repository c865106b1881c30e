"""Tasks of lm-eval itself, offline: IFEval's real prompts where they are at hand, MMLU's form, and what is missing."""

import json
import shutil
from pathlib import Path

import nltk
import pytest
import yaml
from saying import save_saying

from raft_tasks.config import Benchmark, BenchmarkData
from raft_tasks.errors import InputError
from raft_tasks.evaluation.harness import Suite, draw_items, evaluate, load_items
from raft_tasks.evaluation.ifeval import PUNKT_NEEDED
from raft_tasks.evaluation.overlay import task_manager
from raft_tasks.evaluation.task_files import missing_data
from raft_tasks.schemas import Example

PROMPTS = Path(__file__).parents[3] / "shared" / "data" / "ifeval" / "input_data.jsonl"
NO_TASKS = Path(__file__).parent / "no tasks of ours"
ROW = Example(id="row", domain="d", question="my question ?", answer="my answer", source="s", split="test")
COMMIT = "966cd89545d6b6acfd7638bc708b98261ca58e84"
SUBJECTS = ("anatomy", "astronomy")


def asked(tasks, data, **settings):
    return Benchmark(
        **(
            {"tasks": tasks, "few_shot": {}, "limit": {}, "batch_size": 64, "max_new_tokens": 8, "data": data}
            | settings
        )
    )


def mirror(folder):
    return BenchmarkData(revision=None, mirror=str(folder))


def mirrored(folder, prompts):
    """IFEval's prompts as a mirror: the folder's only file, whatever its name."""
    folder.mkdir()
    (folder / "input_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    return {"google/IFEval": mirror(folder)}


def instruction(key, kind, prompt="Say it.", **settings):
    return {"key": key, "prompt": prompt, "instruction_id_list": [kind], "kwargs": [settings]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_saying(tmp_path_factory.mktemp("model"), ["my", " answer", " is", " yes", "."])


@pytest.fixture(scope="module")
def mmlu(tmp_path_factory):
    """Two of MMLU's subjects in the hub's layout; every right answer is A, B, C, D in turn."""
    folder = tmp_path_factory.mktemp("mmlu")
    for subject in SUBJECTS:
        (folder / subject).mkdir()
        for split, count in (("dev", 5), ("test", 6)):
            rows = [
                {"question": f"{subject} {split} {n} ?", "subject": subject, "choices": list("abcd"), "answer": n % 4}
                for n in range(count)
            ]
            path = folder / subject / f"{split}-00000-of-00001.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"cais/mmlu": mirror(folder)}


def test_hand_checked_scores_of_ifevals_own_checkers(model, tmp_path):
    """The model says "my answer is yes." to everything."""
    right = [
        instruction(1, "punctuation:no_comma"),
        instruction(2, "change_case:english_lowercase"),
        instruction(3, "keywords:existence", keywords=["answer"]),
        instruction(4, "startend:end_checker", end_phrase="is yes."),
        instruction(5, "length_constraints:number_words", relation="less than", num_words=5),
        instruction(6, "detectable_format:constrained_response"),
        instruction(7, "startend:quotation"),
        instruction(8, "keywords:forbidden_words", forbidden_words=["yes"]),
        instruction(9, "length_constraints:number_words", relation="at least", num_words=5),
        instruction(10, "detectable_format:json_format"),
    ]
    right[5]["kwargs"] = [{}]  # wants "My answer is yes." with its capital
    data = mirrored(tmp_path / "ifeval", right)
    scores, items = evaluate(model, Suite("d", [ROW], asked(["ifeval"], data), NO_TASKS))
    own = [row for row in items if row.task == "ifeval"]
    assert {row.answer for row in own} == {"my answer is yes."}
    assert [row.metrics["prompt_level_strict_acc"] for row in own] == [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    assert [row.question for row in own] == ["Say it."] * 10
    assert {row.reference for row in own} == {""}
    totals = scores["tasks"]["ifeval"]
    assert totals["metrics"]["prompt_level_strict_acc"] == totals["metrics"]["inst_level_strict_acc"] == 0.5
    assert totals["n"] == 10


@pytest.mark.skipif(not PROMPTS.exists(), reason="the real prompts are not at hand")
def test_the_real_prompts_run(model, tmp_path):
    """All that can be scored here; and every one of 541 where nltk's sentence splitter is."""
    from lm_eval.tasks.ifeval.utils import InputExample, test_instruction_following_strict

    prompts = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    assert len(prompts) == 541
    if not splitter_is_there():
        prompts = [row for row in prompts if not PUNKT_NEEDED & set(row["instruction_id_list"])]
        assert len(prompts) == 477
    data = mirrored(tmp_path / "ifeval", prompts)
    scores, items = evaluate(model, Suite("d", [ROW], asked(["ifeval"], data), NO_TASKS))
    own = [row for row in items if row.task == "ifeval"]
    assert [row.question for row in own] == [row["prompt"] for row in prompts]
    expected = [
        test_instruction_following_strict(InputExample(**prompt), "my answer is yes.").follow_all_instructions
        for prompt in prompts
    ]
    assert [row.metrics["prompt_level_strict_acc"] for row in own] == [float(one) for one in expected]
    assert scores["tasks"]["ifeval"]["metrics"]["prompt_level_strict_acc"] == sum(expected) / len(expected)
    assert 0 < sum(expected) < len(expected)


def test_without_the_sentence_splitter_ifeval_stops_before_any_work(tmp_path, monkeypatch):
    def nowhere(name):
        raise LookupError(name)

    monkeypatch.setattr(nltk.data, "find", nowhere)
    monkeypatch.setattr(nltk, "download", lambda name: False)
    prompts = [instruction(1, "length_constraints:number_sentences", relation="at least", num_sentences=2)]
    data = mirrored(tmp_path / "ifeval", prompts)
    nobody = save_saying(tmp_path / "model", ["x"]).model_copy(update={"path": "models/not-there"})
    with pytest.raises(InputError, match=r"punkt_tab for its constraints.*number_sentences.*NLTK_DATA"):
        evaluate(nobody, Suite("d", [ROW], asked(["ifeval"], data), NO_TASKS))


def test_a_package_that_is_missing_is_named(model, tmp_path, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.startswith("lm_eval.tasks.ifeval")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "langdetect", None)
    data = mirrored(tmp_path / "ifeval", [instruction(1, "punctuation:no_comma")])
    with pytest.raises(InputError, match=r"'ifeval' needs a package.*pip install langdetect"):
        evaluate(model, Suite("d", [ROW], asked(["ifeval"], data), NO_TASKS))


def test_few_shot_and_limit_are_per_task_and_agree_with_lm_eval_by_hand(model, mmlu, tmp_path):
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    settings = asked(
        ["mmlu_anatomy", "mmlu_astronomy"], mmlu, few_shot={"mmlu_anatomy": 2}, limit={"mmlu_astronomy": 3}
    )
    scores, items = evaluate(model, Suite("d", [ROW], settings, NO_TASKS))
    prompts = {task: [row.prompt for row in items if row.task == task] for task in settings.tasks}
    assert [prompt.count("Answer:") for prompt in prompts["mmlu_anatomy"]] == [3] * 6
    assert [prompt.count("Answer:") for prompt in prompts["mmlu_astronomy"]] == [1] * 3
    assert [row.reference for row in items if row.task == "mmlu_anatomy"] == ["A", "B", "C", "D", "A", "B"]
    lm = HFLM(pretrained=model.path, device="cpu", dtype="float32", batch_size=64, enable_thinking=False)
    manager = task_manager(settings.tasks, [NO_TASKS], mmlu, tmp_path)
    for task, few_shot, limit in (("mmlu_anatomy", 2, None), ("mmlu_astronomy", None, 3)):
        found = lm_eval.simple_evaluate(
            lm, tasks=[task], num_fewshot=few_shot, samples=limit and {task: draw_items(6, limit)},
            task_manager=manager, apply_chat_template=True, fewshot_as_multiturn=True, bootstrap_iters=0,
            log_samples=True,
        )  # fmt: skip
        assert scores["tasks"][task]["metrics"]["acc"] == found["results"][task]["acc,none"]
        assert prompts[task] == [sample["arguments"][0][0] for sample in found["samples"][task]]


def test_questions_come_without_what_lm_eval_puts_around_them(mmlu, tmp_path):
    """A row that repeats a question need not repeat "Question:", "Answer:", the choices or the passage."""
    sentence = {"sentence": "Ann taught Eve , so _ learned .", "option1": "Ann", "option2": "Eve", "answer": "2"}
    rows = {
        "winogrande": ("allenai/winogrande", "winogrande_xl", sentence),
        "piqa": ("baber/piqa", "", {"goal": "Dry a boot .", "sol1": "Heat it .", "sol2": "Wet it .", "label": 0}),
        "boolq": ("aps/super_glue", "boolq", {"passage": "Ice floats .", "question": "does ice sink", "label": 0}),
    }
    data = dict(mmlu)
    for name, (hub, part, row) in rows.items():
        (tmp_path / name / part).mkdir(parents=True)
        (tmp_path / name / part / "validation.jsonl").write_text(json.dumps(row) + "\n")
        data[hub] = mirror(tmp_path / name)
    items = [(name, text) for name, text, _ in load_items(["mmlu_anatomy", *rows], NO_TASKS, data)]
    assert items[:2] == [
        ("mmlu_anatomy item 1", "anatomy test 0 ?\nA. a\nB. b\nC. c\nD. d"),
        ("mmlu_anatomy item 1", "anatomy test 0 ?"),
    ]
    assert items[12:] == [
        ("winogrande item 1", "Ann taught Eve , so Eve"),
        ("piqa item 1", "Dry a boot ."),
        ("boolq item 1", "Ice floats .\nQuestion: does ice sink?"),
        ("boolq item 1", "does ice sink?"),
    ]


def test_a_task_s_answers_can_be_bounded(model, tmp_path):
    data = mirrored(tmp_path / "ifeval", [instruction(1, "punctuation:no_comma")])
    long = evaluate(model, Suite("d", [ROW], asked(["ifeval"], data), NO_TASKS))[1]
    short = evaluate(model, Suite("d", [ROW], asked(["ifeval"], data, max_tokens={"ifeval": 3}), NO_TASKS))[1]
    answers = [[row.answer for row in rows if row.task == "ifeval"] for rows in (long, short)]
    assert len(answers[0][0].split()) > 3 >= len(answers[1][0].split()) > 0
    assert answers[0][0].startswith(answers[1][0])


def test_a_bound_on_answers_that_are_chosen_is_refused(model, mmlu):
    settings = asked(["mmlu_anatomy"], mmlu, max_tokens={"mmlu_anatomy": 3})
    with pytest.raises(InputError, match="max_tokens: the task 'mmlu_anatomy' generates no answers"):
        evaluate(model, Suite("d", [ROW], settings, NO_TASKS))


def test_examples_for_a_task_that_has_none_by_definition_are_refused(model, tmp_path):
    data = mirrored(tmp_path / "ifeval", [instruction(1, "punctuation:no_comma")])
    with pytest.raises(InputError, match="few_shot: got 3 for 'ifeval', expected 0"):
        evaluate(model, Suite("d", [ROW], asked(["ifeval"], data, few_shot={"ifeval": 3}), NO_TASKS))


def test_from_the_hub_at_a_pinned_revision(tmp_path):
    data = {"google/IFEval": BenchmarkData(revision=COMMIT, mirror=None)}
    index = task_manager(["ifeval"], [NO_TASKS], data, tmp_path).task_index
    assert index["ifeval"].cfg["dataset_path"] == "google/IFEval"
    assert index["ifeval"].cfg["dataset_kwargs"] == {"revision": COMMIT}
    assert index["ifeval"].cfg["metric_list"]  # the rest of the task is lm-eval's


def test_a_hub_out_of_reach_stops_clearly(model, tmp_path):
    data = {"google/IFEval": BenchmarkData(revision=COMMIT, mirror=None)}  # the tests are offline
    with pytest.raises(InputError, match="'ifeval' cannot be loaded"):
        evaluate(model, Suite("d", [ROW], asked(["ifeval"], data), NO_TASKS))


def test_data_that_nobody_pins_are_refused(tmp_path):
    with pytest.raises(InputError, match="nothing pins 'google/IFEval', which the task 'ifeval' reads"):
        task_manager(["ifeval"], [NO_TASKS], {}, tmp_path)


def test_a_mirror_without_a_subject_is_refused(mmlu, tmp_path):
    with pytest.raises(InputError, match=r"'mmlu_virology'.*no file for \['test'\]"):
        task_manager(["mmlu_anatomy", "mmlu_virology"], [NO_TASKS], mmlu, tmp_path)


def test_a_split_that_gives_no_example_may_be_missing(mmlu, tmp_path):
    folder = tmp_path / "mmlu"
    shutil.copytree(mmlu["cais/mmlu"].mirror, folder)
    (folder / "anatomy" / "dev-00000-of-00001.jsonl").unlink()
    data = {"cais/mmlu": mirror(folder)}
    task = task_manager(["mmlu_anatomy"], [NO_TASKS], data, tmp_path).load(["mmlu_anatomy"])["tasks"]["mmlu_anatomy"]
    assert [doc["answer"] for doc in task.eval_docs] == [0, 1, 2, 3, 0, 1]
    few_shot = {"mmlu_anatomy": 2}
    (tmp_path / "again").mkdir()
    with pytest.raises(InputError, match=r"'mmlu_anatomy'.*no file for \['dev'\]"):
        task_manager(["mmlu_anatomy"], [NO_TASKS], data, tmp_path / "again", few_shot)


def test_an_only_file_counts_whatever_its_name_but_never_another_splits(tmp_path):
    rows = [{"query": "A man", "ctx_a": "A man", "ctx_b": "", "ctx": "A man", "activity_label": "Run",
             "endings": ["runs.", "sits.", "eats.", "naps."], "label": "0"}]  # fmt: skip
    folder = tmp_path / "hellaswag"
    folder.mkdir()
    path = folder / "hellaswag.sample500.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"Rowan/hellaswag": mirror(folder)}
    task = task_manager(["hellaswag"], [NO_TASKS], data, tmp_path).load(["hellaswag"])["tasks"]["hellaswag"]
    assert len(task.eval_docs) == 1
    path.rename(folder / "train.jsonl")
    (tmp_path / "again").mkdir()
    with pytest.raises(InputError, match=r"no file for \['validation'\]"):
        task_manager(["hellaswag"], [NO_TASKS], data, tmp_path / "again")


def test_every_missing_piece_of_data_is_named_at_once(mmlu, tmp_path):
    settings = asked(["mmlu_anatomy", "mmlu_virology", "ifeval", "no_such_task"], mmlu)
    faults = missing_data(settings, NO_TASKS)
    assert len(faults) == 3
    for fault, text in zip(faults, ("'mmlu_virology'", "nothing pins 'google/IFEval'", "'no_such_task'"), strict=True):
        assert text in fault
    assert missing_data(asked(["mmlu_anatomy"], mmlu), NO_TASKS) == []


def test_a_mirror_of_two_formats_is_refused(mmlu, tmp_path):
    folder = tmp_path / "mmlu"
    shutil.copytree(mmlu["cais/mmlu"].mirror, folder)
    place = folder / "anatomy"
    (place / "dev-00000-of-00001.jsonl").rename(place / "dev.csv")
    with pytest.raises(InputError, match="files of several formats for the task 'mmlu_anatomy'"):
        task_manager(["mmlu_anatomy"], [NO_TASKS], {"cais/mmlu": mirror(folder)}, tmp_path)


def test_a_group_is_read_with_all_that_it_names(tmp_path):
    """Members written out, a group in a group; each member gets its overlay."""
    tasks, data = tmp_path / "tasks", tmp_path / "data"
    tasks.mkdir()
    data.mkdir()
    (data / "test.jsonl").write_text('{"q": "x", "a": "y"}\n')
    form = {"test_split": "test", "output_type": "generate_until", "doc_to_text": "q", "doc_to_target": "a"}
    for name in ("first", "second"):
        (tasks / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, "dataset_path": "owner/set", **form}))
    (tasks / "inner.yaml").write_text(yaml.safe_dump({"group": "inner", "task": ["first"]}))
    (tasks / "outer.yaml").write_text(yaml.safe_dump({"group": "outer", "task": ["inner", {"task": "second"}]}))
    manager = task_manager(["outer"], [tasks], {"owner/set": mirror(data)}, tmp_path)
    loaded = manager.load(["outer"])["tasks"]
    assert {name: len(task.eval_docs) for name, task in loaded.items()} == {"first": 1, "second": 1}
    shown = sorted(path.name for path in (tmp_path / "overlay").iterdir())
    assert shown == ["first.yaml", "second.yaml"]


def splitter_is_there():
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


def test_texts_to_go_on_with_are_scored_without_the_chat_template(model, mmlu):
    asked_for = ["mmlu_anatomy", "mmlu_astronomy"]
    settings = asked(asked_for, mmlu, plain_text=["mmlu_anatomy"])
    items = evaluate(model, Suite("d", [ROW], settings, NO_TASKS))[1]
    chat = evaluate(model, Suite("d", [ROW], asked(asked_for, mmlu), NO_TASKS))[1]
    prompts = {task: [row.prompt for row in items if row.task == task] for task in asked_for}
    templated = {task: [row.prompt for row in chat if row.task == task] for task in asked_for}
    assert prompts["mmlu_astronomy"] == templated["mmlu_astronomy"]
    assert all(prompt.startswith("The following are") for prompt in prompts["mmlu_anatomy"])
    assert all(prompt.startswith("<start> system The following are") for prompt in templated["mmlu_anatomy"])
