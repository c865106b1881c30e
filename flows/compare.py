"""Compare any models outside the pipeline: one command, the report's statistics and tables.

    raft compare base=models/pocket-base mine=path/to/model theirs=owner/name@revision
    raft compare base=models/pocket-base sft=git:HEAD:sft-0 sft=git:HEAD:sft-1 \\
        raft=git:clear-mole:raft-0 raft=git:clear-mole:raft-1 --domain registry --tasks pocket_recall

One model is called base: the others are held against it. A name that comes again is another training seed of the same;
every name but base comes equally often. A model called sft is plain fine-tuning: changes are counted against it too,
and what the others recover of its loss. raft_tasks/compare.py says what may stand for a model. Domains are those whose
held-out questions `dvc repro` or `dvc pull` has put under artifacts/; settings come from params.yaml. In the domains of
run.judged the panel of `judge` votes on the answers.

Writes report.html, report.md, metrics.json, every answer (items/) and every vote (votes/) into the output folder.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows import paths
from flows.judge import judge_more
from raft_tasks.artifacts import read_rows, write_json, write_rows
from raft_tasks.compare import REVISION, located
from raft_tasks.config import Config, Model, load_config
from raft_tasks.errors import InputError
from raft_tasks.evaluation.harness import DOMAIN_TASK, evaluate
from raft_tasks.evaluation.verdicts import with_verdicts
from raft_tasks.report import data_versions, git_revision
from raft_tasks.reporting.report import Origin
from raft_tasks.reporting.side_by_side import Answers, measure_side_by_side, write_side_by_side
from raft_tasks.reporting.study import BASE, Benchmarked, Run
from raft_tasks.schemas import Example, ItemResult, Judged

NO_TASKS = "none"  # only the domain's questions


def compare(models: dict[str, list[str]], domains: list[str], tasks: list[str], output: Path, again: str) -> None:
    """Ask every model, one after the other, and write the comparison into `output`.

    Args:
        models: by name what they are, one entry per seed.

    Raises:
        InputError: a model or the questions are not there, or a name is missing.
    """
    config = load_config()
    questions = {domain: _questions(domain, config) for domain in domains}
    asked: dict[str, dict[str, list[Benchmarked]]] = {domain: {} for domain in domains}
    for name, whats in models.items():
        for seed, what in enumerate(whats):
            label = _label(name, seed, whats)
            general: list[ItemResult] = []
            for place, (domain, rows) in enumerate(questions.items()):
                print(f"{label} ({what}): {domain}", flush=True)
                folders = [
                    str(paths.ARTIFACTS / domain / "runs" / "{}" / part) for part in ("recovered/model", "model")
                ]
                # a revision's run is another model in every domain; any other model is asked the general items once
                ask = tasks if place == 0 or what.startswith(REVISION) else []
                try:
                    with located(what, folders, config.base) as model:
                        scores, items = _answers(model, domain, rows, ask, config)
                except OSError as error:
                    raise InputError(
                        f"{label}={what} cannot be loaded: {str(error)[:500]}; check the folder, or hub id and network"
                    ) from error
                general = [row for row in items if row.task != DOMAIN_TASK] or general
                items = [row for row in items if row.task == DOMAIN_TASK] + general
                write_rows(output / "items" / domain / f"{label}.jsonl", items)
                asked[domain].setdefault(name, []).append(Benchmarked(scores, items))
    asked = {
        domain: _with_panel(domain, own, config, output) if domain in config.run.judged else own
        for domain, own in asked.items()
    }
    answers = {
        domain: Answers(
            questions[domain],
            own[BASE][0],
            {
                name: [Run(one.scores, one.items, seed) for seed, one in enumerate(each)]
                for name, each in own.items()
                if name != BASE
            },
        )
        for domain, own in asked.items()
    }
    metrics = measure_side_by_side(answers, tasks, models, config.report)
    origin = Origin(git_revision(), data_versions(paths.LOCK))
    write_side_by_side(answers, metrics, config.report, origin, again, output)
    write_json(output / "metrics.json", metrics)


def _label(name: str, seed: int, all_seeds: Sequence[Any]) -> str:
    return name if len(all_seeds) == 1 else f"{name}-{seed}"


def _with_panel(
    domain: str, asked: dict[str, list[Benchmarked]], config: Config, output: Path
) -> dict[str, list[Benchmarked]]:
    """The answers with the verdicts of the panel of `judge`; what it has said of equal answers is not asked again."""
    models = {_label(name, seed, each): one for name, each in asked.items() for seed, one in enumerate(each)}
    votes: list[Judged] = []
    for label, one in models.items():
        print(f"{label}: {domain}, the panel of judges", flush=True)
        votes = judge_more(f"{label}, {domain}", label, one.items, votes, config)
    write_rows(output / "votes" / f"{domain}.jsonl", votes)
    return {
        name: [
            Benchmarked(one.scores, with_verdicts(one.items, _label(name, seed, each), votes))
            for seed, one in enumerate(each)
        ]
        for name, each in asked.items()
    }


def _questions(domain: str, config: Config) -> list[Example]:
    path = paths.split(domain, "test", config.run.rows)
    if not path.exists():
        raise InputError(f"--domain {domain}: {path} is not there; `dvc repro ingest@{domain}` or `dvc pull` makes it")
    return read_rows(path, Example)


def _answers(
    model: Model, domain: str, rows: list[Example], tasks: list[str], config: Config
) -> tuple[dict[str, Any], list[ItemResult]]:
    settings = config.benchmark.model_copy(update={"tasks": tasks})
    with tempfile.TemporaryDirectory() as work:
        return evaluate(model, domain, rows, settings, paths.BENCHMARK_TASKS, Path(work))


def named(arguments: Sequence[str]) -> dict[str, list[str]]:
    """{name: what it is, one entry per seed} of NAME=WHAT.

    Raises:
        InputError: what is not so, no base or more than one, or names that come unequally often.
    """
    models: dict[str, list[str]] = {}
    for argument in arguments:
        name, _, what = argument.partition("=")
        if not what or not name.isidentifier():
            raise InputError(f"got {argument!r}, expected NAME=WHAT with a name of letters, digits and _")
        models.setdefault(name, []).append(what)
    if len(models.get(BASE, [])) != 1 or len(models) < 2:
        raise InputError(f"got the names {list(models)}, expected base=WHAT once, and one more model at least")
    counts = {name: len(whats) for name, whats in models.items() if name != BASE}
    if len(set(counts.values())) > 1:
        raise InputError(f"got {counts} models, expected every name but base equally often: once per training seed")
    return {BASE: models.pop(BASE), **models}


def compare_models(models: list[str], domains: list[str] | None, tasks: str | None, output: Path) -> None:
    """`raft compare`: compare NAME=MODEL... and print the report.

    Raises:
        InputError: as `compare` and `named`.
    """
    config = load_config()
    options = [("--domain", domain) for domain in domains or []]
    options += [("--tasks", tasks)] if tasks is not None else []
    options.append(("--output", str(output)))
    again = shlex.join(["raft", "compare", *models, *(part for option in options for part in option)])
    asked = config.benchmark.tasks if tasks is None else [] if tasks == NO_TASKS else tasks.split(",")
    compare(named(models), domains or config.run.domains, asked, output, again)
    print((output / "report.md").read_text(encoding="utf-8"))
