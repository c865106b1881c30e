"""Stages `benchmark`, `benchmark_base` and `benchmark_champion`: what a model can do in its domain and in general.

A trained model is merged first, as its method's row says, with a coefficient chosen on validation items.
"""

from prefect import flow

from flows import paths
from flows.stage import Progress
from raft_tasks.artifacts import read_rows, write_json, write_rows
from raft_tasks.benchmark import benchmark_model, merge_model
from raft_tasks.config import Config, load_config
from raft_tasks.evaluation.harness import Suite
from raft_tasks.schemas import Example

CHAMPION = "champion"  # in a method's place


def suite_of(config: Config, domain: str, split: str) -> Suite:
    """A domain's rows of `split` and the benchmark's tasks."""
    rows = read_rows(paths.split(domain, split, config.run.rows), Example)
    return Suite(domain, rows, config.benchmark, paths.BENCHMARK_TASKS, config.domains[domain].checks)


def stage_name(domain: str, model: str, untrained: bool) -> str:
    """DVC's name of the stage: a run shows the progress lines that begin with it."""
    return f"benchmark_{model}@{domain}" if untrained else f"benchmark@{domain}-{model}"


@flow
def benchmark(domain: str, method: str | None = None, seed: int | None = None) -> None:
    config = load_config()
    folder, model = paths.benchmark(domain, method, seed), config.base
    label = stage_name(domain, folder.name, method in (None, CHAMPION))
    if method == CHAMPION:
        model = config.base.at(paths.champion(domain))
    elif method is not None and seed is not None:
        merge_model(
            paths.run(domain, method, seed) / "model",
            config.base,
            config.methods[method].merge,
            suite_of(config, domain, "validation"),
            paths.merged(domain, method, seed),
            Progress(label, 0, "candidates of the merge"),
        )
        model = config.base.at(paths.trained(domain, method, seed))
    scores, items = benchmark_model(model, suite_of(config, domain, "test"), Progress(label, 0, "items"))
    write_rows(folder / "items.jsonl", items)
    write_json(folder / "scores.json", scores)
