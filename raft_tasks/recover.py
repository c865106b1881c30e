"""What is taken back of a training, chosen on validation items: the first step of the stage `benchmark`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from raft_tasks import config
from raft_tasks.artifacts import atomic_folder, write_json
from raft_tasks.errors import InputError
from raft_tasks.schemas import Example

Scores = dict[str, float]


@task(cache_policy=NO_CACHE)
def recover_model(
    trained: Path,
    base: config.Model,
    after: config.Merge | None,
    domain: str,
    validation: list[Example],
    benchmark: config.Benchmark,
    tasks: Path,
    output: Path,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Write `output`: recovery.json and, where something is taken back, model/; returns what recovery.json says.

    Args:
        trained: the model of the stage `distill`, with what training changed whole.
        validation: rows of the domain's validation split.
        benchmark: its batch size and length bound hold for the validation items too.
        tasks: folder of lm-eval tasks.

    Raises:
        InputError: there is a coefficient to choose and no validation row to choose by.
    """
    with atomic_folder(output) as partial:
        result: dict[str, Any] = {"kind": None}
        if after is not None:
            result = {
                "kind": after.kind,
                **recovered(trained, base, after, domain, validation, benchmark, tasks, partial, progress),
            }
        write_json(partial / "recovery.json", result)
    return result


def recovered(
    trained: Path,
    base: config.Model,
    after: config.Merge,
    domain: str,
    validation: list[Example],
    benchmark: config.Benchmark,
    tasks: Path,
    output: Path,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Write `output`/model; returns the coefficient, the distance to the base and every candidate's scores."""
    from raft_tasks.training.recovery import Candidate, Recovery, choose

    result: dict[str, Any] = {}
    coefficient = 1.0
    if not isinstance(after, config.Prune) and not validation:
        raise InputError(
            f"domain {domain!r} has no validation rows, expected some to choose a coefficient by: give it rows of the "
            "split `validation`, or set the method's `after` to null"
        )
    recovery = Recovery(base, [trained], after)
    if not isinstance(after, config.Prune):
        wanted = [one for one in sorted({*after.coefficients, 1.0}) if one > 0]
        candidates: list[Candidate] = []
        start = scored(base, after, domain, validation, benchmark, tasks)
        progress(1, len(wanted) + 1)
        for one in wanted:
            with tempfile.TemporaryDirectory(dir=output.parent) as folder:
                recovery.write(one, Path(folder))
                model = base.model_copy(update={"path": folder, "revision": None})
                candidates.append(Candidate(one, **scored(model, after, domain, validation, benchmark, tasks)))
            progress(len(candidates) + 1, len(wanted) + 1)
        chosen, met = choose(candidates, start["general"], after.general_loss)
        coefficient = chosen.coefficient
        result = {"base": start, "candidates": [vars(one) for one in candidates], "bound_met": met}
    distance = recovery.write(coefficient, output / "model")
    card = (trained / "README.md").read_text(encoding="utf-8")
    note = f"\n## After training\n\n`{after.model_dump_json()}`: coefficient {coefficient:g}.\n"
    (output / "model" / "README.md").write_text(card + note, encoding="utf-8")
    return {"coefficient": coefficient, "distance": distance, **result}


def scored(
    model: config.Model,
    after: config.CoefficientSearch,
    domain: str,
    validation: list[Example],
    benchmark: config.Benchmark,
    tasks: Path,
) -> Scores:
    """Accuracy on the domain's validation rows; and the mean over the general tasks of each one's main metric."""
    from raft_tasks.evaluation.harness import DOMAIN_TASK, evaluate

    settings = benchmark.model_copy(update={"tasks": after.tasks})
    with tempfile.TemporaryDirectory() as work:
        scores, _ = evaluate(model, domain, validation, settings, tasks, Path(work))
    general = [
        scores[task]["acc"] if "acc" in scores[task] else next(iter(scores[task].values())) for task in after.tasks
    ]
    return {"domain": scores[DOMAIN_TASK]["acc"], "general": sum(general) / len(general)}
