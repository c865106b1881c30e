"""Stages `benchmark`, `benchmark_base` and `benchmark_champion`: what a model can do in its domain and in general.

Of a training it is what the method leaves of it: first is chosen, on validation items, how much of the change stays.
"""

from prefect import flow

from flows import paths
from flows.stage import Progress
from raft_tasks.artifacts import read_rows, write_json, write_rows
from raft_tasks.benchmark import benchmark_model
from raft_tasks.config import load_config
from raft_tasks.recover import recover_model
from raft_tasks.schemas import Example

CHAMPION = "champion"  # in a method's place


@flow
def benchmark(domain: str, method: str | None = None, seed: int | None = None) -> None:
    config = load_config()
    model = config.base
    if method == CHAMPION:
        model = model.model_copy(update={"path": str(paths.champion(domain)), "revision": None})
    elif method is not None and seed is not None:
        recover_model(
            paths.run(domain, method, seed) / "model",
            config.base,
            config.methods[method].merge,
            domain,
            read_rows(paths.split(domain, "validation", config.run.rows), Example),
            config.benchmark,
            paths.BENCHMARK_TASKS,
            paths.recovered(domain, method, seed),
            Progress(f"benchmark@{domain}-{method}-{seed}", 0, "candidates of recovery"),
        )
        model = model.model_copy(update={"path": str(paths.trained(domain, method, seed)), "revision": None})
    test_rows = read_rows(paths.split(domain, "test", config.run.rows), Example)
    scores, items = benchmark_model(model, domain, test_rows, config.benchmark, paths.BENCHMARK_TASKS)
    folder = paths.benchmark(domain, method, seed)
    write_rows(folder / "items.jsonl", items)
    write_json(folder / "scores.json", scores)
