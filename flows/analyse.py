"""Stage `analyse`: how far training moved a model from its base, in which weights, and how its answers changed."""

from prefect import flow

from flows import paths
from raft_tasks.analyse import Base, analyse_model
from raft_tasks.artifacts import read_json, read_rows, write_json
from raft_tasks.config import load_config
from raft_tasks.generation.templates import template_text
from raft_tasks.schemas import Example, ItemResult


@flow
def analyse(domain: str, method: str, seed: int) -> None:
    config = load_config()
    trained = config.base.at(paths.trained(domain, method, seed))
    row = config.methods[method]
    base = Base(
        config.base,
        read_json(paths.model_identity("base")),
        read_rows(paths.benchmark(domain, None, None) / "items.jsonl", ItemResult),
        paths.base_states(domain),
    )
    result = analyse_model(
        trained,
        read_rows(paths.benchmark(domain, method, seed) / "items.jsonl", ItemResult),
        base,
        [example.answer for example in read_rows(paths.split(domain, "test", config.run.rows), Example)],
        template_text(row.distillation.template) if row.distillation and row.teacher == "answer_conditioned" else None,
        config.benchmark.batch_size,
    )
    write_json(paths.analysis(domain, method, seed), result)
