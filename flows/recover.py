"""Stage `recover`: how much of what training changed stays, chosen on validation items, domain first."""

from prefect import flow

from flows import paths
from flows.stage import Progress, main
from raft_tasks.artifacts import read_rows
from raft_tasks.params import load_params
from raft_tasks.recover import recover_model
from raft_tasks.schemas import Example


@flow
def recover(domain: str, method: str, seed: int) -> None:
    params = load_params()
    recover_model(
        paths.run(domain, method, seed) / "model",
        params.base,
        params.methods[method].after,
        domain,
        read_rows(paths.split(domain, "validation", params.resources.rows), Example),
        params.benchmark,
        paths.BENCHMARK_TASKS,
        paths.recovered(domain, method, seed),
        Progress(f"recover@{domain}-{method}-{seed}", 0, "models"),
    )


if __name__ == "__main__":
    main(recover, str, str, int)
