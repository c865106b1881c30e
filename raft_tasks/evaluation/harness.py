"""One model through lm-eval: its domain's held-out rows and the general tasks, with every item's outcome kept.

The domain's own task is generated here from the held-out rows (YAML and JSON lines in a temporary folder) and is scored
by `answer_metrics.process_results`; every other task is an lm-eval task, from the tasks folder or from lm-eval itself,
its data pinned by `overlay`.
"""

from __future__ import annotations

import json
import logging
import random
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from raft_tasks.chat import as_turns
from raft_tasks.checks import Checks
from raft_tasks.config import Benchmark, BenchmarkData, Model
from raft_tasks.errors import InputError
from raft_tasks.evaluation.answer_metrics import process_results
from raft_tasks.evaluation.ifeval import check_ifeval
from raft_tasks.evaluation.outcomes import item_results, question_of, target_of, task_scores
from raft_tasks.evaluation.overlay import task_manager
from raft_tasks.evaluation.verdicts import main_metric
from raft_tasks.model_loading import quiet
from raft_tasks.schemas import BenchmarkScores, Example, ItemResult, TaskScores, end_with, thinking_name
from raft_tasks.thoughts import Thinking

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

DOMAIN_TASK = "domain"  # the generated task's name, in every domain
SEED = 1234  # of few-shot sampling, as lm-eval's own default, and of the limits' draws
DOMAIN_YAML = """\
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {items}}}, cache_dir: {cache}}}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{until: [], do_sample: false, max_gen_toks: {max_new_tokens}}}
process_results: !function {process_results}
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: complete, aggregation: mean, higher_is_better: true}}
  - {{metric: token_f1, aggregation: mean, higher_is_better: true}}
{checks}metadata: {{version: 1.0}}
"""
QUESTION, ANSWER = re.compile(r"^\s*(?:Question|Q):\s*", re.MULTILINE), re.compile(r"\n\s*(?:Answer|A):\s*\Z")
CHOICES = re.compile(r"\n\s*(?:(?:Options|Choices):\s*)?\(?A[.):]\s[^\n]*\n\s*\(?B[.):]\s.*\Z", re.DOTALL)
CHECK_YAML = "  - {{metric: {name}, aggregation: mean, higher_is_better: true}}\n"


@dataclass(frozen=True)
class Suite:
    """What models are asked.

    Attributes:
        rows: the domain's held-out rows; they become the task "domain", answers bounded by `settings.max_new_tokens`
            (other tasks have their own bound).
        checks: of the domain; without any, its rows' expected strings decide.
        tasks_folder: of lm-eval tasks; names that it does not hold are looked up among lm-eval's own.
        seed: draws few-shot examples; the items that a limit leaves are the same for every seed.
    """

    domain: str
    rows: list[Example]
    settings: Benchmark
    tasks_folder: Path
    checks: Checks = field(default_factory=dict)
    seed: int = SEED


def evaluate(
    model: Model, suite: Suite, progress: Callable[[int, int], None] | None = None
) -> tuple[BenchmarkScores, list[ItemResult]]:
    """Score one model on the domain's held-out rows and on `settings.tasks`; chat template applied.

    `model.thinking` says in which modes answers are written: with `both` tasks are measured twice, the second time,
    thinking, under `thinking_name`. Thoughts are not scored; metrics `thought` and `unfinished_thought` say how many
    answers had one. Likelihoods are read where an answer begins, so without thinking in any mode, and once.

    Args:
        model: the folder or pinned hub id, the dtype of the weights, the system prompt, the modes.
        progress: called with the numbers of items done and in all.

    Returns:
        lm-eval's totals, and one row per task and item; a group of tasks (mmlu) has its items under its own name.

    Raises:
        InputError: no held-out rows, an unknown task, one that two names hold, one whose metric cannot decide, data
            or a package of a task that are missing, a model without chat template, a prompt that does not fit.
    """
    if not suite.rows:
        raise InputError(
            f"domain {suite.domain!r} has no held-out rows to benchmark on; give it rows of the split `test`"
        )
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        import lm_eval.evaluator

        from raft_tasks.evaluation.chat_model import ChatModel

        tasks = _load_suite(suite, Path(folder))
        passes = tasks.passes(model.thinking, suite.settings)
        total = sum(tasks.counts[name] for _, names in passes for name in names)
        report = (lambda done: progress(done, total)) if progress else (lambda done: None)
        lm = ChatModel(model, suite.settings.batch_size, report, tasks.plain)
        scores: dict[str, TaskScores] = {}
        items: list[ItemResult] = []
        for lm.thinking, names in passes:
            # simple_evaluate itself would look at the machine for seconds, for every model
            results: Any = lm_eval.evaluator.evaluate(
                lm=lm,
                task_dict=tasks.of(names),
                samples=tasks.samples,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=True,
                fewshot_as_multiturn=True,
            )
            rows = [
                row
                for task, samples in results["samples"].items()
                for row in item_results(tasks.named[task], task, tasks.of(names)["tasks"][task], samples, lm.thinking)
            ]
            repeated = lm.thinking and model.thinking == "both"
            for name in names:
                label = thinking_name(name) if repeated else name
                scores[label] = task_scores(results, name, [row for row in rows if row.task == name])
            items += [row.model_copy(update={"task": thinking_name(row.task)}) if repeated else row for row in rows]
    versions = {package: version(package) for package in ("lm_eval", "transformers", "torch")}
    return {"tasks": scores, "versions": versions}, items


@dataclass
class _Tasks:
    """The tasks of a suite, as lm-eval's evaluate takes them, by their names in params.yaml, which may be groups'."""

    parts: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)  # tasks, groups, group_map
    named: dict[str, str] = field(default_factory=dict)  # lm-eval's task -> its name in params.yaml
    samples: dict[str, list[int]] = field(default_factory=dict)  # of the tasks that are limited
    counts: dict[str, int] = field(default_factory=dict)  # items
    plain: set[str] = field(default_factory=set)  # lm-eval's tasks that are asked without the chat template

    def of(self, names: Sequence[str]) -> dict[str, Any]:
        parts = [self.parts[name] for name in names]
        kinds = ("tasks", "groups", "group_map")
        return {kind: {key: value for part in parts for key, value in part.get(kind, {}).items()} for kind in kinds}

    def passes(self, thinking: Thinking, settings: Benchmark) -> list[tuple[bool, list[str]]]:
        """(thinking, names of tasks) of every time that the model is asked."""
        names = list(self.parts)
        written = [
            name
            for name in names
            if name not in settings.plain_text
            and all(task.OUTPUT_TYPE == "generate_until" for task in self.parts[name]["tasks"].values())
        ]
        plain = [name for name in names if name not in written] if thinking == "on" else names
        passes = [(False, plain), (True, [] if thinking == "off" else written)]
        return [(mode, of_pass) for mode, of_pass in passes if of_pass]


def _load_suite(suite: Suite, work: Path) -> _Tasks:
    settings, names = suite.settings, [DOMAIN_TASK, *suite.settings.tasks]
    write_domain_task(work, suite)
    manager = task_manager(names, [suite.tasks_folder, work], settings.data, work, settings.few_shot)
    tasks = _Tasks()
    for name in names:
        part = tasks.parts[name] = _load(manager, name)
        _check_metric(name, part["tasks"].values())
        if twice := sorted(part["tasks"].keys() & tasks.named):
            raise InputError(
                f"benchmark.tasks: {tasks.named[twice[0]]!r} and {name!r} both hold {twice[:3]}; expected every task "
                "once: take one of the two out"
            )
        tasks.named |= dict.fromkeys(part["tasks"], name)
        tasks.counts[name] = 0
        for task_name, task in part["tasks"].items():
            _set_few_shot(name, task, settings.few_shot.get(name), suite.seed)
            if name in settings.max_tokens:
                if task.get_config("generation_kwargs") is None:
                    raise InputError(f"params.yaml: benchmark.max_tokens: the task {name!r} generates no answers")
                task.set_config("generation_kwargs", {"max_gen_toks": settings.max_tokens[name]}, update=True)
            if name in settings.plain_text:
                task.build_all_requests = partial(_build_plain, task.build_all_requests)
                tasks.plain.add(task.get_config("task"))
            if name == DOMAIN_TASK:
                task.fewshot_context = partial(_ask_in_context, task.fewshot_context)
            count = min(settings.limit.get(name, len(task.eval_docs)), len(task.eval_docs))
            if name in settings.limit:
                tasks.samples[task_name] = draw_items(len(task.eval_docs), count)
            tasks.counts[name] += count
    check_ifeval(tasks.of(names)["tasks"].values())
    return tasks


def _check_metric(name: str, tasks: Collection[Any]) -> None:
    """Raise unless one metric decides all tasks of a name, a number per item and the higher the better.

    The gate, the report and merging compare models by it without asking what it is.
    """
    better = [task.higher_is_better() for task in tasks]
    metrics = sorted({main_metric(of_task) for of_task in better})
    rolling = any(task.OUTPUT_TYPE == "loglikelihood_rolling" for task in tasks)  # its outcomes are pairs
    if rolling or len(metrics) > 1 or not all(of_task[metrics[0]] for of_task in better):
        raise InputError(
            f"benchmark.tasks: {name!r} is measured by {metrics}; expected one metric for all its tasks, a number per "
            "item and the higher the better: name tasks of a group one by one, leave out the others"
        )


def _build_plain(build: Callable[..., None], **options: Any) -> None:
    """lm-eval's requests of a task, without the chat template that its `evaluate` asks for."""
    build(**{**options, "apply_chat_template": False, "fewshot_as_multiturn": False, "chat_template": None})


def _ask_in_context(ask: Callable[..., str], doc: dict[str, Any], *positional: Any, **options: Any) -> str:
    """lm-eval's prompt of a domain's item; where the item has a history, that of the conversation."""
    turns = json.loads(doc.get("turns", "[]"))
    return options["chat_template"](turns) if turns else ask(doc, *positional, **options)


def draw_items(items: int, count: int) -> list[int]:
    """`count` places of `items` by SEED, in order; a larger draw holds a smaller one. (HellaSwag's first are alike.)"""
    places = list(range(items))
    random.Random(SEED).shuffle(places)
    return sorted(places[:count])


def load_items(
    tasks: list[str], tasks_folder: Path, data: Mapping[str, BenchmarkData]
) -> Iterator[tuple[str, str, str]]:
    """(task and number, question, right answer) of every item of lm-eval tasks; of a choice the answer is its text.

    An item whose question stands behind a passage or before its choices comes a second time, as the question alone.

    Raises:
        InputError: an unknown task, or one whose items cannot be loaded.
    """
    with _quiet(), tempfile.TemporaryDirectory() as work:
        manager = task_manager(tasks, [tasks_folder], data, Path(work))
        for name in tasks:
            for task_name, task in _load(manager, name)["tasks"].items():
                for number, doc in enumerate(task.eval_docs, start=1):
                    target = target_of(task, doc)
                    for question in _questions(question_of(task, doc)):
                        yield f"{task_name} item {number}", question, target


def _questions(prompt: str) -> list[str]:
    """An item's prompt without lm-eval's "Question: ... Answer:", and without what stands around the question."""
    whole = ANSWER.sub("", prompt)
    if begin := QUESTION.match(whole):
        whole = whole[begin.end() :]
    return list(dict.fromkeys([whole, QUESTION.split(CHOICES.sub("", whole))[-1]]))


def _load(manager: TaskManager, name: str) -> dict[str, Any]:
    """lm-eval's tasks and groups of one name, data and all.

    Raises:
        InputError: its data, or a package that it needs, are not there.
    """
    try:
        return dict(manager.load([name]))
    except ImportError as error:
        raise InputError(
            f"the benchmark {name!r} needs a package that is not installed: {error}; `pip install {error.name}`, or "
            "take it out of benchmark.tasks"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the items of the benchmark {name!r} cannot be loaded: {str(error)[:500]}; check the network, give "
            "benchmark.data a mirror (docs/guides/benchmarks.md), or take it out of benchmark.tasks"
        ) from error


def _set_few_shot(name: str, task: Any, count: int | None, seed: int) -> None:
    """As lm_eval.simple_evaluate does it, which does not change a task whose own number is 0."""
    own = task.get_config("num_fewshot")
    if own == 0 and count:
        raise InputError(
            f"params.yaml: benchmark.few_shot: got {count} for {name!r}, expected 0: the task is without examples by "
            "definition; take it out of few_shot"
        )
    if own is None or count is not None:
        task.set_config(key="num_fewshot", value=count or 0)
    task.set_fewshot_seed(seed=seed)


def write_domain_task(work: Path, suite: Suite) -> None:
    """Write lm-eval's task of a domain's held-out rows: `work`/domain.yaml and items.jsonl."""
    items = work / "items.jsonl"
    checks = json.dumps({name: rule.model_dump() for name, rule in suite.checks.items()})
    conversations = any(row.history for row in suite.rows)
    with items.open("w", encoding="utf-8", newline="\n") as out:
        for row in suite.rows:
            item = row.model_dump(include={"id", "question", "answer", "source", "expected", "details"})
            if conversations:
                turns = as_turns(end_with(row.history, row.question)) if row.history else []
                item |= {"question": row.in_context, "turns": json.dumps(turns)}
            out.write(json.dumps({**item, "checks": checks}) + "\n")
    # JSON strings are YAML strings; the dataset's cache goes where the items are, and with them
    text = DOMAIN_YAML.format(
        task=DOMAIN_TASK,
        items=json.dumps(str(items.resolve())),
        cache=json.dumps(str((work / "cache").resolve())),
        max_new_tokens=suite.settings.max_new_tokens,
        # imported, not only named: so the stage's code digest has it
        process_results=f"{process_results.__module__}.{process_results.__name__}",
        checks="".join(CHECK_YAML.format(name=name) for name in suite.checks),
    )
    (work / f"{DOMAIN_TASK}.yaml").write_text(f"# the held-out rows of {suite.domain}\n{text}", encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no chatter from lm-eval, datasets and transformers; warnings and errors still show."""
    import datasets
    import lm_eval.api.task

    def plain(rows: Any, **bar: Any) -> Any:
        return rows

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels, had_bars = [logger.level for logger in loggers], not datasets.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with quiet(), patch.object(lm_eval.api.task, "tqdm", plain):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if had_bars:
            datasets.enable_progress_bars()
