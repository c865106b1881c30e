"""Stages `benchmark`, `benchmark_base` and `benchmark_champion`: what a model can do in its domain and in general."""

from prefect import flow

from flows import paths
from flows.stage import main
from raft_tasks.artifacts import read_rows, write_json, write_rows
from raft_tasks.benchmark import benchmark_model
from raft_tasks.params import load_params
from raft_tasks.schemas import Example

CHAMPION = "champion"  # in a method's place


@flow
def benchmark(domain: str, method: str | None = None, seed: int | None = None) -> None:
    params = load_params()
    model = params.base
    if method == CHAMPION:
        model = model.model_copy(update={"path": str(paths.champion(domain)), "revision": None})
    elif method is not None and seed is not None:
        model = model.model_copy(update={"path": str(paths.trained(domain, method, seed)), "revision": None})
    test_rows = read_rows(paths.split(domain, "test", params.resources.rows), Example)
    scores, items = benchmark_model(model, domain, test_rows, params.benchmark, paths.BENCHMARK_TASKS)
    folder = paths.benchmark(domain, method, seed)
    write_rows(folder / "items.jsonl", items)
    write_json(folder / "scores.json", scores)


if __name__ == "__main__":
    main(benchmark, str, str, int)
