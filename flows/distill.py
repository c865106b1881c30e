"""Stage `distill` (Eqs. 5-12): one method, one seed: the base model learns the domain."""

from pathlib import Path

from prefect import flow

from flows import paths
from flows.stage import Progress, main
from raft_tasks.artifacts import read_json, read_rows, write_json
from raft_tasks.config import load_config
from raft_tasks.distill import train
from raft_tasks.generation.templates import template_text
from raft_tasks.schemas import TrainingPair


@flow
def distill(domain: str, method: str, seed: int) -> None:
    config = load_config()
    row = config.methods[method]
    pairs = read_rows(paths.training(domain) / f"{method}.{config.run.rows}", TrainingPair)
    folder = paths.run(domain, method, seed)
    summary = train(
        pairs,
        config.base,
        read_json(paths.model_identity("base")),
        row,
        config.train,
        template_text(row.distillation.template) if row.distillation else "",
        seed,
        folder,
        paths.CHECKPOINTS,
        list(config.resources.trackers),
        paths.TRACKING / domain / f"{method}-{seed}",
        paths.anchor_set(row.anchors.set) if row.anchors else None,
        Progress(f"distill@{domain}-{method}-{seed}", 0, "steps"),
    )
    write_json(folder / "summary.json", summary)


def dry_run(domain: str, method: str, seed: int) -> None:
    """Print what the training would be: sizes, tokens, memory, time."""
    from tempfile import TemporaryDirectory

    from raft_tasks.training.plan import plan, report

    config = load_config()
    row = config.methods[method]
    pairs = read_rows(paths.training(domain) / f"{method}.{config.run.rows}", TrainingPair)
    template = template_text(row.distillation.template) if row.distillation else ""
    anchors = paths.anchor_set(row.anchors.set) if row.anchors else None
    with TemporaryDirectory() as folder:
        print(report(plan(pairs, config.base, row, config.train, template, seed, Path(folder), anchors)))


if __name__ == "__main__":
    main(distill, str, str, int, dry_run=dry_run)
