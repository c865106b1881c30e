"""Compare any models outside the pipeline: one command, the report's statistics and tables.

    raft compare base=models/pocket-base mine=path/to/model theirs=owner/name@revision
    raft compare base=models/pocket-base sft=git:HEAD:sft-0 sft=git:HEAD:sft-1 \\
        raft=git:clear-mole:raft-0 raft=git:clear-mole:raft-1 --domain archive --tasks pocket_recall

`raft compare --help` says how models are named, raft_tasks/compare.py what they may be. Domains are those whose
held-out questions `dvc repro` or `dvc pull` has put under artifacts/; settings come from params.yaml. In the domains of
run.judged the panel of `judge` votes on the answers.

Writes report.html, report.md, metrics.json, every answer (items/) and every vote (votes/) into the output folder.
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from flows import paths
from flows.benchmark import suite_of
from flows.judge import add_panel_verdicts
from flows.stage import Progress
from raft_tasks.artifacts import write_json, write_rows
from raft_tasks.compare import REVISION, locate_model
from raft_tasks.config import Config, load_config
from raft_tasks.errors import InputError
from raft_tasks.evaluation.gate import DOMAIN_TASKS
from raft_tasks.evaluation.harness import Suite, evaluate
from raft_tasks.reporting.origin import read_origin
from raft_tasks.reporting.side_by_side import measure_side_by_side, write_side_by_side
from raft_tasks.reporting.study import BASE, Answered, Run
from raft_tasks.schemas import ItemResult

Models = dict[str, list[str]]  # by name what each is, one entry per seed
Outcomes = dict[str, list[Run]]  # of one domain, by name, one per seed

NO_TASKS = "none"  # only the domain's questions


def compare(arguments: list[str], domains: list[str] | None, tasks: str | None, output: Path) -> None:
    """Benchmark every model of the arguments NAME=MODEL, one after the other; write the comparison and print it.

    Raises:
        InputError: a model or the questions are missing, or as `parse_models`.
    """
    config, models = load_config(), parse_models(arguments)
    general_tasks = config.benchmark.tasks if tasks is None else [] if tasks == NO_TASKS else tasks.split(",")
    suites = {domain: domain_suite(config, domain, general_tasks) for domain in domains or config.run.domains}
    outcomes: dict[str, Outcomes] = {domain: {} for domain in suites}
    for name, seed, label in _labels(models):
        general: list[ItemResult] = []
        for domain, suite in suites.items():
            # a revision's run is another model in every domain; any other model has its general items once
            if general and not models[name][seed].startswith(REVISION):
                suite = replace(suite, settings=suite.settings.model_copy(update={"tasks": []}))
            measured = _benchmark(models[name][seed], label, suite, config)
            general = [row for row in measured if row.task not in DOMAIN_TASKS] or general
            items = [row for row in measured if row.task in DOMAIN_TASKS] + general
            write_rows(output / "items" / domain / f"{label}.jsonl", items)
            outcomes[domain].setdefault(name, []).append(Run(items, seed))
    for domain in suites.keys() & set(config.run.judged):
        outcomes[domain] = _with_panel(domain, outcomes[domain], models, config, output)
    answers = {
        domain: Answered(
            suites[domain].rows,
            of_domain[BASE][0].items,
            {name: runs for name, runs in of_domain.items() if name != BASE},
        )
        for domain, of_domain in outcomes.items()
    }
    metrics = measure_side_by_side(answers, general_tasks, models, config.report)
    options = [f"--domain={domain}" for domain in domains or []]
    options += [f"--tasks={tasks}"] if tasks is not None else []
    command = shlex.join(["raft", "compare", *arguments, *options, f"--output={output}"])
    write_side_by_side(answers, metrics, config.report, read_origin(paths.LOCK), command, output)
    write_json(output / "metrics.json", metrics)
    print((output / "report.md").read_text(encoding="utf-8"))


def _labels(models: Models) -> Iterator[tuple[str, int, str]]:
    """(name, seed, label) of every model."""
    for name, seeds in models.items():
        for seed in range(len(seeds)):
            yield name, seed, name if len(seeds) == 1 else f"{name}-{seed}"


def domain_suite(config: Config, domain: str, tasks: list[str]) -> Suite:
    """The held-out questions of a domain, and general tasks. InputError where the questions are not there."""
    path = paths.split(domain, "test", config.run.rows)
    if not path.exists():
        raise InputError(f"--domain {domain}: {path} is not there; `dvc repro ingest@{domain}` or `dvc pull` makes it")
    suite = suite_of(config, domain, "test")
    return replace(suite, settings=suite.settings.model_copy(update={"tasks": tasks}))


def _benchmark(source: str, label: str, suite: Suite, config: Config) -> list[ItemResult]:
    print(f"{label} ({source}): {suite.domain}", flush=True)
    try:
        with locate_model(source, run_folders(suite.domain), config.base) as model:
            return evaluate(model, suite, Progress(f"{label}, {suite.domain}", 0, "items"))[1]
    except OSError as error:
        raise InputError(
            f"{label}={source} cannot be loaded: {str(error)[:500]}; check the folder, or hub id and network"
        ) from error


def run_folders(domain: str) -> list[str]:
    """Where a revision keeps the models of its runs; "{}" stands for method and seed."""
    return [str(paths.ARTIFACTS / domain / "runs" / "{}" / part) for part in ("merged/model", "model")]


def _with_panel(domain: str, outcomes: Outcomes, models: Models, config: Config, output: Path) -> Outcomes:
    """The answers with the verdicts of the panel of `judge`; equal answers are judged once."""
    asked = {label: outcomes[name][seed].items for name, seed, label in _labels(models)}
    items, votes = add_panel_verdicts(domain, asked, [], config)
    write_rows(output / "votes" / f"{domain}.jsonl", votes)
    judged: Outcomes = {name: [] for name in models}
    for name, seed, label in _labels(models):
        judged[name].append(Run(items[label], seed))
    return judged


def parse_models(arguments: Sequence[str]) -> Models:
    """The models of arguments NAME=WHAT.

    Raises:
        InputError: another form, no base or more than one, or names that come unequally often.
    """
    models: Models = {}
    for argument in arguments:
        name, _, source = argument.partition("=")
        if not source or not name.isidentifier():
            raise InputError(f"got {argument!r}, expected NAME=WHAT with a name of letters, digits and _")
        models.setdefault(name, []).append(source)
    if len(models.get(BASE, [])) != 1 or len(models) < 2:
        raise InputError(f"got the names {list(models)}, expected base=WHAT once, and one more model at least")
    counts = {name: len(whats) for name, whats in models.items() if name != BASE}
    if len(set(counts.values())) > 1:
        raise InputError(f"got {counts} models, expected every name but base equally often: once per training seed")
    return {BASE: models.pop(BASE), **models}
