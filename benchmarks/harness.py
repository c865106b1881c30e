"""Does the harness give lm-eval's own numbers, to the last digit, and what does it cost beside lm-eval by hand?

    python benchmarks/harness.py [TASK ...]                 (default: benchmark.tasks of params.yaml)

Run the pipeline up to `ingest` first. Benchmarks models.base on the first domain's held-out rows and on the tasks, by
our harness and by lm_eval.simple_evaluate with the same model and the same task files, in turn; compares every number
of every task and every answer, and prints the seconds of both, loading of model and tasks included. Ends with 1 where
a number differs.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from measuring import machine, timed_in_turn

from flows import paths
from raft_tasks.artifacts import read_rows
from raft_tasks.config import Benchmark, Model, load_config
from raft_tasks.evaluation.harness import DOMAIN_TASK, Suite, draw_items, evaluate, write_domain_task
from raft_tasks.evaluation.overlay import task_manager
from raft_tasks.gguf import model_folder
from raft_tasks.schemas import Example, ItemResult

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

REPEATS = 3
Scores = dict[str, dict[str, float]]


def ours(model: Model, rows: list[Example], settings: Benchmark) -> tuple[Scores, list[ItemResult]]:
    scores, items = evaluate(model, Suite("domain", rows, settings, paths.BENCHMARK_TASKS))
    return {task: totals["metrics"] for task, totals in scores["tasks"].items()}, items


def by_hand(model: Model, rows: list[Example], settings: Benchmark) -> tuple[Scores, dict[str, list[Any]]]:
    """Each task by itself: few-shot examples, items, template and the answers' bound are arguments of all tasks."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    scores: Scores = {}
    samples: dict[str, list[Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        suite = Suite("domain", rows, settings, paths.BENCHMARK_TASKS)
        write_domain_task(work, suite)
        names = [DOMAIN_TASK, *settings.tasks]
        manager = task_manager(names, [paths.BENCHMARK_TASKS, work], settings.data, work, settings.few_shot)
        lm = HFLM(
            pretrained=str(model_folder(model.path)),
            revision=model.revision or "main",
            dtype=model.dtype,
            softmax_dtype="float32",
            batch_size=settings.batch_size,
            device="cuda" if torch.cuda.is_available() else "cpu",
            enable_thinking=False,
        )
        for name in names:
            plain = name in settings.plain_text
            lm.add_bos_token = None if plain else False  # a chat template writes its own
            results = lm_eval.simple_evaluate(
                lm,
                tasks=[name],
                num_fewshot=settings.few_shot.get(name),
                samples=drawn(manager, name, settings.limit.get(name)),
                gen_kwargs={"max_gen_toks": settings.max_tokens[name]} if name in settings.max_tokens else None,
                task_manager=manager,
                apply_chat_template=not plain,
                fewshot_as_multiturn=not plain,
                bootstrap_iters=0,
                log_samples=True,
            )
            samples |= results["samples"]
            scores[name] = {
                metric.removesuffix(",none"): float(value)
                for metric, value in results["results"][name].items()
                if "," in metric and "_stderr" not in metric and isinstance(value, int | float)
            }
    return scores, samples


def drawn(manager: TaskManager, name: str, limit: int | None) -> dict[str, list[int]] | None:
    """The items that a limit draws, by task."""
    if limit is None:
        return None
    tasks = manager.load([name])["tasks"]
    return {task: draw_items(len(loaded.eval_docs), limit) for task, loaded in tasks.items()}


def main() -> int:
    config = load_config()
    settings = config.benchmark.model_copy(update={"tasks": sys.argv[1:] or config.benchmark.tasks})
    rows = read_rows(paths.split(config.run.domains[0], "test", config.run.rows), Example)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(machine(device))
    mine, items = ours(config.base, rows, settings)  # once each before the clock runs: imports, the page cache
    theirs, samples = by_hand(config.base, rows, settings)
    answers: dict[str, list[str]] = {}
    for row in items:
        answers.setdefault(row.task, []).append(row.answer)
    different = 0
    print("\n| task | metric | harness | lm-eval by hand | equal |\n|---|---|---:|---:|---|")
    for task, metrics in mine.items():
        for metric, value in metrics.items():
            equal = value == theirs[task].get(metric)
            different += not equal
            print(f"| {task} | {metric} | {value!r} | {theirs[task].get(metric)!r} | {'yes' if equal else 'NO'} |")
        replies = [sample["resps"][0][0] for sample in samples.get(task, [])]  # a group has samples by its tasks
        if replies and isinstance(replies[0], str):
            different += answers[task] != replies
            print(f"| {task} | {len(replies)} answers | | | {'yes' if answers[task] == replies else 'NO'} |")
    forms: dict[str, Callable[[], object]] = {
        "harness": lambda: ours(config.base, rows, settings),
        "lm-eval by hand": lambda: by_hand(config.base, rows, settings),
    }
    times = timed_in_turn(forms, REPEATS, device)
    print("\n| | seconds | CPU seconds | median / best |\n|---|---:|---:|---:|")
    for name, timing in times.items():
        print(f"| {name} | {timing.seconds:.2f} | {timing.cpu:.2f} | {timing.spread:.2f} |")
    ratio, cpu = (times["harness"][part] / times["lm-eval by hand"][part] for part in (0, 1))
    print(f"| ratio | {ratio:.3f} | {cpu:.3f} | |")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
