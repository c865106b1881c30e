"""One model through lm-eval: its domain's held-out rows and the general tasks, with every item's outcome kept.

The domain's own task is generated here from the held-out rows (YAML and JSON lines in the caller's work folder) and is
scored by `scoring.process_results`; every other task is an lm-eval task, from the tasks folder or from lm-eval itself,
its data pinned by `overlay`.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from raft_tasks import chat
from raft_tasks.config import Benchmark, BenchmarkData, Model
from raft_tasks.errors import InputError
from raft_tasks.evaluation.overlay import task_manager
from raft_tasks.schemas import Example, ItemResult
from raft_tasks.thoughts import strip_thoughts

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

DOMAIN_TASK = "domain"  # the generated task's name, in every domain
NO_FILTER = "none"  # what lm-eval calls a task's answers that no filter touched
SEED = 1234  # of few-shot sampling: lm-eval's own default
PUNKT_NEEDED = frozenset({"length_constraints:number_sentences", "change_case:capital_word_frequency"})  # of IFEval

DOMAIN_YAML = """\
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {items}}}, cache_dir: {cache}}}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{until: [], do_sample: false, max_gen_toks: {max_new_tokens}}}
process_results: !function raft_tasks.evaluation.scoring.process_results
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: complete, aggregation: mean, higher_is_better: true}}
  - {{metric: token_f1, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""


def evaluate(
    model: Model,
    domain: str,
    test_rows: list[Example],
    benchmark: Benchmark,
    tasks_folder: Path,
    work: Path,
) -> tuple[dict[str, Any], list[ItemResult]]:
    """Score one model on `domain`'s held-out rows and on `benchmark.tasks`, chat template applied, thinking off.

    Args:
        model: the folder or pinned hub id, the dtype of the weights, the system prompt.
        test_rows: held-out rows; they become the task "domain", bounded by `benchmark.max_new_tokens` (other tasks
            say their own bound).
        tasks_folder: of lm-eval tasks; names that it does not hold are looked up among lm-eval's own.
        work: an empty folder of the caller's, for the generated task.

    Returns:
        scores: {task: {metric: value, ..., "n": items}, "versions": {package: version}}.
        items: one row per task and item; the items of a group of tasks (mmlu) stand under the group's name.

    Raises:
        InputError: no held-out rows, an unknown task, data or a package of a task that are not there, a model without
            chat template, a prompt that does not fit.
    """
    if not test_rows:
        raise InputError(f"domain {domain!r} has no held-out rows to benchmark on; give it rows of the split `test`")
    with _quiet():
        import lm_eval.evaluator

        write_domain_task(work, domain, test_rows, benchmark.max_new_tokens)
        names = [DOMAIN_TASK, *benchmark.tasks]
        manager = task_manager(names, [tasks_folder, work], benchmark.data, work)
        loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
        named: dict[str, str] = {}  # lm-eval's task -> the name that params.yaml gives it, alone or with others
        samples: dict[str, list[int]] = {}  # of the tasks that are limited
        for name in names:
            part = _load(manager, name)
            for kind in loaded:
                loaded[kind] |= part.get(kind, {})
            named |= dict.fromkeys(part["tasks"], name)
            for task_name, task in part["tasks"].items():
                _set_few_shot(name, task, benchmark.few_shot.get(name))
                if name in benchmark.limit:
                    samples[task_name] = list(range(min(benchmark.limit[name], len(task.eval_docs))))
        check_ifeval(loaded["tasks"].values())
        network = _load_model(model, benchmark.batch_size)
        # simple_evaluate itself would look at the machine for seconds, for every model anew
        results: Any = lm_eval.evaluator.evaluate(
            lm=network,
            task_dict=loaded,
            samples=samples,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
        )
    items = [
        row
        for task, samples in results["samples"].items()
        for row in _items(named[task], task, loaded["tasks"][task], samples)
    ]  # fmt: skip
    scores: dict[str, Any] = {
        name: _scores(results, name, [row for row in items if row.task == name]) for name in names
    }
    scores["versions"] = {package: version(package) for package in ("lm_eval", "transformers", "torch")}
    return scores, items


def item_texts(tasks: list[str], tasks_folder: Path, data: Mapping[str, BenchmarkData]) -> Iterator[tuple[str, str]]:
    """(task and number, what the model is asked) of every item of lm-eval tasks: what no training row may repeat.

    Raises:
        InputError: an unknown task, or one whose items cannot be loaded.
    """
    for name, task, doc in _tasks_items(tasks, tasks_folder, data):
        yield name, str(task.doc_to_text(doc))


def item_targets(tasks: list[str], tasks_folder: Path, data: Mapping[str, BenchmarkData]) -> Iterator[tuple[str, str]]:
    """(task and number, right answer) of every item, the text of a choice where the answer is one.

    Raises:
        InputError: as `item_texts`.
    """
    for name, task, doc in _tasks_items(tasks, tasks_folder, data):
        yield name, _target(task, doc)


def _tasks_items(
    tasks: list[str], tasks_folder: Path, data: Mapping[str, BenchmarkData]
) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(task and number, lm-eval's task, item) of every item."""
    with _quiet(), tempfile.TemporaryDirectory() as work:
        manager = task_manager(tasks, [tasks_folder], data, Path(work))
        for name in tasks:
            for task_name, task in _load(manager, name)["tasks"].items():
                for number, doc in enumerate(task.eval_docs, start=1):
                    yield f"{task_name} item {number}", task, doc


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
            "benchmark.data a mirror (docs/benchmarks.md), or take it out of benchmark.tasks"
        ) from error


def _set_few_shot(name: str, task: Any, count: int | None) -> None:
    """As lm_eval.simple_evaluate does it, which does not change a task whose own number is 0."""
    own = task.get_config("num_fewshot")
    if own == 0 and count:
        raise InputError(
            f"params.yaml: benchmark.few_shot: got {count} for {name!r}, expected 0: the task is without examples by "
            "definition; take it out of few_shot"
        )
    if own is None or count is not None:
        task.set_config(key="num_fewshot", value=count or 0)
    task.set_fewshot_seed(seed=SEED)


def check_ifeval(tasks: Iterable[Any]) -> None:
    """See, before any work, that what IFEval's checkers need is there; and give its language detector a seed.

    lm-eval fetches nltk's sentence splitter itself, where it can. Without it the checkers would stop at the first
    answer that they have to cut into words or sentences.

    Raises:
        InputError: items that need the splitter, and no splitter.
    """
    if not any(name.startswith("lm_eval.tasks.ifeval.") for name in sys.modules):
        return
    import langdetect
    import nltk

    langdetect.DetectorFactory.seed = 0  # it draws at random, and would score an answer differently from run to run
    try:
        nltk.data.find("tokenizers/punkt_tab")
        return
    except LookupError:
        pass
    kinds = {
        kind
        for task in tasks
        for doc in task.eval_docs
        for kind in doc.get("instruction_id_list", ())
        if kind in PUNKT_NEEDED
    }
    if kinds:
        raise InputError(
            f"IFEval's {sorted(kinds)} need the data package punkt_tab of nltk, which is not in {nltk.data.path[0]} or "
            "another of its folders. `python -m nltk.downloader punkt_tab` fetches it; without a network, unpack "
            "https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/tokenizers/punkt_tab.zip into "
            "~/nltk_data/tokenizers. Or take ifeval out of benchmark.tasks"
        )


def write_domain_task(work: Path, domain: str, rows: list[Example], max_new_tokens: int) -> None:
    """Write lm-eval's task of a domain's held-out rows: `work`/domain.yaml and items.jsonl."""
    items = work / "items.jsonl"
    with items.open("w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            out.write(row.model_dump_json(include={"id", "question", "answer", "source", "expected", "details"}) + "\n")
    # JSON strings are YAML strings; the dataset's cache goes where the items are, and with them
    text = DOMAIN_YAML.format(
        task=DOMAIN_TASK,
        items=json.dumps(str(items.resolve())),
        cache=json.dumps(str((work / "cache").resolve())),
        max_new_tokens=max_new_tokens,
    )
    (work / f"{DOMAIN_TASK}.yaml").write_text(f"# the held-out rows of {domain}\n{text}", encoding="utf-8")


def _load_model(settings: Model, batch_size: int) -> HFLM:
    import torch
    from lm_eval.models.huggingface import HFLM

    class Network(HFLM):
        """lm-eval's transformers backend, which shows no bars and never cuts a prompt to make it fit.

        It speaks to the model as training did; what a model thinks in spite of that is no part of its answer.
        """

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return chat.render(
                self.tokenizer, settings.system, chat_history, add_generation_prompt, not add_generation_prompt
            )

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
            return [strip_thoughts(text)[0] for text in super().generate_until(requests, disable_tqdm=True)]

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            return super().loglikelihood(requests, disable_tqdm=True)

        def tok_batch_encode(
            self,
            strings: list[str],
            padding_side: str = "left",
            left_truncate_len: int | None = None,
            truncation: bool = False,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            tokens, mask = super().tok_batch_encode(strings, padding_side, None, truncation)
            if left_truncate_len is not None and tokens.shape[1] > left_truncate_len:
                longest = strings[int(mask.sum(dim=1).argmax())]
                raise InputError(
                    f"a prompt has {tokens.shape[1]} tokens, but of the model's {self.max_length} only "
                    f"{left_truncate_len} are left beside the answer; shorten the item, lower the task's "
                    f"max_gen_toks, or take the task out of benchmark.tasks. It begins {longest[:200]!r}"
                )
            return tokens, mask

    folder = Path(settings.path)
    network = Network(
        pretrained=str(folder.resolve()) if folder.is_dir() else settings.path,
        revision=settings.revision or "main",
        dtype=settings.dtype,
        batch_size=batch_size,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    chat.check_chat(network.tokenizer, settings.system)
    generation = network.model.generation_config
    generation.eos_token_id = chat.stop_ids(network.tokenizer, generation.eos_token_id)  # not each model names its own
    return network


def _items(name: str, task: str, definition: Any, samples: list[dict[str, Any]]) -> Iterator[ItemResult]:
    """lm-eval's samples, one per item and filter, as one row per item. What is not a number per item is left out."""
    by_item: dict[int, list[dict[str, Any]]] = {}
    for sample in samples:
        by_item.setdefault(sample["doc_id"], []).append(sample)
    for number, views in by_item.items():
        metrics = {
            metric if view["filter"] == NO_FILTER else f"{metric},{view['filter']}": float(view[metric])
            for view in views
            for metric in view["metrics"]
            if isinstance(view[metric], int | float)
        }
        first = views[0]
        item = first["doc"].get("id", number)
        label = str(item) if task == name else f"{task}/{item}"
        yield ItemResult(
            task=name,
            id=label,
            source=str(first["doc"].get("source") or label),
            metrics=metrics,
            question=str(definition.doc_to_text(first["doc"])),
            reference=_target(definition, first["doc"]),
            prompt=str(first["arguments"][0][0]),
            answer=_text(first["resps"]),
        )


def _target(task: Any, doc: dict[str, Any]) -> str:
    """The right answer, the text of a choice where the answer is one; empty where rules take its place (IFEval)."""
    target = task.doc_to_target(doc)
    if not isinstance(target, int):
        return str(target)
    return str(task.doc_to_choice(doc)[target]) if task.config.doc_to_choice else ""


def _text(responses: list[list[Any]]) -> str:
    """What the model answered: its text, or the number of the choice that it found likeliest."""
    replies = [reply[0] for reply in responses]
    if isinstance(replies[0], str):
        return replies[0]
    likelihoods = [float(reply[0]) for reply in replies]  # (log likelihood, greedy)
    return f"choice {likelihoods.index(max(likelihoods))}"


def _scores(results: dict[str, Any], name: str, rows: list[ItemResult]) -> dict[str, float | int]:
    """lm-eval's own numbers of a task or group; a tag, which has none, gets the means over its items."""
    own = {
        metric.removesuffix(f",{NO_FILTER}"): float(value)
        for metric, value in results["results"].get(name, {}).items()
        if "," in metric and "_stderr" not in metric and isinstance(value, int | float)
    }
    metrics = own or {metric: sum(row.metrics[metric] for row in rows) / len(rows) for metric in rows[0].metrics}
    return {**metrics, "n": len(rows)}


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no chatter from lm-eval, datasets and transformers; warnings and errors still show."""
    import datasets
    import lm_eval.api.task
    import transformers

    def plain(rows: Any, **bar: Any) -> Any:
        return rows

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "transformers")]
    levels = [logger.level for logger in loggers]
    bars = datasets.are_progress_bars_disabled(), transformers.utils.logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    try:
        with patch.object(lm_eval.api.task, "tqdm", plain):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars[0]:
            datasets.enable_progress_bars()
        if bars[1]:
            transformers.utils.logging.enable_progress_bar()
