"""Stage `distill` (Eqs. 5-12): one method, one seed: the base model learns the domain."""

from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect import flow

from flows import paths
from flows.stage import Progress
from raft_tasks.artifacts import read_json, read_rows, write_json
from raft_tasks.config import Config, load_config
from raft_tasks.distill import train
from raft_tasks.errors import InputError
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


def print_plans(domain: str | None, method: str | None, seed: int) -> None:
    """Print what each training of `run` would be: sizes, tokens, memory, time; of one domain or method, if given.

    Raises:
        InputError: an unknown name, or none of the rows are there yet.
    """
    config = load_config()
    for key, name, names in (("domain", domain, config.run.domains), ("method", method, config.run.methods)):
        if name is not None and name not in names:
            raise InputError(f"got the {key} {name!r}, expected one of run.{key}s: {names}")
    domains, methods = [domain] if domain else config.run.domains, [method] if method else config.run.methods
    files = {pair: paths.training(pair[0]) / f"{pair[1]}.{config.run.rows}" for pair in product(domains, methods)}
    if not any(path.exists() for path in files.values()):
        raise InputError(f"{next(iter(files.values()))} is not there; `raft run` or `dvc repro fuse` makes it")
    for (domain, method), path in files.items():
        print(f"{domain} {method}, each of {len(config.run.seeds)} seed(s)")
        text = _plan(path, config, method, seed) if path.exists() else f"{path} is not there yet"
        print(text, end="\n\n", flush=True)


def _plan(path: Path, config: Config, method: str, seed: int) -> str:
    from raft_tasks.training.plan import plan, report

    row, pairs = config.methods[method], read_rows(path, TrainingPair)
    template = template_text(row.distillation.template) if row.distillation else ""
    anchors = paths.anchor_set(row.anchors.set) if row.anchors else None
    with TemporaryDirectory() as folder:
        return report(plan(pairs, config.base, row, config.train, template, seed, Path(folder), anchors))
