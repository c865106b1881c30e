"""Stage `distill` (Eqs. 5-12): one method, one seed: the base model learns the domain."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect import flow

from flows import paths
from flows.stage import Progress
from raft_tasks.artifacts import read_json, read_rows, write_json
from raft_tasks.config import Config, load_config
from raft_tasks.distill import train
from raft_tasks.errors import InputError, check_name
from raft_tasks.generation.templates import template_text
from raft_tasks.schemas import Example, TrainingPair
from raft_tasks.training.job import CurveInputs, TrainingJob


@flow
def distill(domain: str, method: str, seed: int) -> None:
    job = training_job(domain, method, seed)
    label = f"distill@{domain}-{method}-{seed}"
    progress = Progress(label, 0, "steps"), Progress(label, 0, "mixed answers at most")
    write_json(job.output / "summary.json", train(job, read_json(paths.model_identity("base")), *progress))


def training_job(domain: str, method: str, seed: int) -> TrainingJob:
    config = load_config()
    row = config.methods[method]
    learned = read_rows(paths.training(domain) / f"{method}.{config.run.rows}", TrainingPair)
    return TrainingJob(
        pairs=[pair for pair in learned if not pair.document],
        documents=[pair for pair in learned if pair.document],
        model=config.base,
        method=row,
        train=config.train,
        template_text=template_text(shown.template) if (shown := row.distillation or row.mixing) else "",
        seed=seed,
        output=paths.run(domain, method, seed),
        checkpoints=paths.CHECKPOINTS,
        anchors=paths.anchor_set(row.anchors.set) if row.anchors else None,
        curve=curve_inputs(config, domain),
        trackers=tuple(config.resources.trackers),
        tracking=paths.TRACKING / domain / f"{method}-{seed}",
    )


def curve_inputs(config: Config, domain: str) -> CurveInputs | None:
    if config.train.curve is None:
        return None
    sets = {name: paths.anchor_set(name) for name in config.train.curve.sets}
    return CurveInputs(read_rows(paths.curve_rows(domain), Example), sets, config.domains[domain].checks)


def print_plans(domain: str | None, method: str | None, seed: int) -> None:
    """Print what each training of `run` would be: sizes, tokens, memory, time; of one domain or method, if given.

    Raises:
        InputError: an unknown name, or none of the rows are there yet.
    """
    config = load_config()
    for key, name, names in (("domain", domain, config.run.domains), ("method", method, config.run.methods)):
        if name is not None:
            check_name(key, name, names, f"run.{key}s")
    domains, methods = [domain] if domain else config.run.domains, [method] if method else config.run.methods
    files = {pair: paths.training(pair[0]) / f"{pair[1]}.{config.run.rows}" for pair in product(domains, methods)}
    if not any(path.exists() for path in files.values()):
        raise InputError(
            f"{next(iter(files.values()))} is not there: a plan counts its rows; `dvc repro fuse` makes them"
        )
    for (domain, method), path in files.items():
        print(f"{domain} {method}, each of {len(config.run.seeds)} seed(s)")
        text = _plan(training_job(domain, method, seed)) if path.exists() else f"{path} is not there yet"
        print(text, end="\n\n", flush=True)


def _plan(job: TrainingJob) -> str:
    from raft_tasks.training.injection import injection_job
    from raft_tasks.training.plan import plan, report

    if job.method.injection:
        alone = replace(job, method=job.method.model_copy(update={"injection": None}))
        return f"injection\n{_plan(injection_job(job, job.output))}\nthen\n{_plan(alone)}"
    job = replace(job, mixed=job.method.mixing is not None)  # as long as the targets that they are made from
    with TemporaryDirectory() as folder:
        return report(plan(job, Path(folder)))
