"""Tasks of the stage `benchmark`: what is merged of a training, chosen on validation items; then one model's scores.

Scores are never cached by request: lm-eval's own response cache does not see the weights.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from raft_tasks import config
from raft_tasks.artifacts import atomic_folder, write_json
from raft_tasks.errors import InputError
from raft_tasks.evaluation.gate import DOMAIN_TASKS
from raft_tasks.evaluation.harness import DOMAIN_TASK, Suite, evaluate
from raft_tasks.evaluation.verdicts import main_metric

# What writes folders is DVC's to keep, and scores depend on weights that no key here has read: not cached by Prefect.
benchmark_model = task(cache_policy=NO_CACHE)(evaluate)


@task(cache_policy=NO_CACHE)
def merge_model(
    trained: Path,
    base: config.Model,
    merge: config.Merge | None,
    validation: Suite,
    output: Path,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Write `output`: merge.json and, where the method merges, model/; returns the content of merge.json.

    Args:
        trained: the model of the stage `distill`, with the whole change.
        validation: the domain's validation rows, asked with the benchmark's batch size and length bound.

    Raises:
        InputError: there is a coefficient to choose and no validation row to choose by.
    """
    with atomic_folder(output) as partial:
        result: dict[str, Any] = {"kind": None}
        if merge is not None:
            result = {"kind": merge.kind, **write_merged(trained, base, merge, validation, partial, progress)}
        write_json(partial / "merge.json", result)
    return result


def write_merged(
    trained: Path,
    base: config.Model,
    merge: config.Merge,
    validation: Suite,
    output: Path,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Write `output`/model; returns the coefficient, the distance to the base and every candidate's scores."""
    from raft_tasks.training.licence import copy_licence
    from raft_tasks.training.merging import Candidate, Merger, choose
    from raft_tasks.training.usage import with_usage

    result: dict[str, Any] = {}
    coefficient = 1.0
    if isinstance(merge, config.CoefficientSearch) and not validation.rows:
        raise InputError(
            f"domain {validation.domain!r} has no validation rows, expected some to choose a coefficient by: give it "
            "rows of the split `validation`, or set the `merge` of the method to null"
        )
    merged = Merger(base, [trained], merge)
    if isinstance(merge, config.CoefficientSearch):
        coefficients = [value for value in sorted({*merge.coefficients, 1.0}) if value > 0]
        suite = replace(validation, settings=validation.settings.model_copy(update={"tasks": merge.tasks}))
        base_scores = score_candidate(base, suite)
        progress(1, len(coefficients) + 1)
        candidates: list[Candidate] = []
        for value in coefficients:
            with tempfile.TemporaryDirectory(dir=output.parent) as folder:
                merged.write(value, Path(folder))
                candidates.append(Candidate(value, **score_candidate(base.at(folder), suite)))
            progress(len(candidates) + 1, len(coefficients) + 1)
        chosen, met = choose(candidates, base_scores["general"], merge.general_loss)
        coefficient = chosen.coefficient
        result = {"base": base_scores, "candidates": [vars(candidate) for candidate in candidates], "bound_met": met}
    distance = merged.write(coefficient, output / "model")
    copy_licence(base, output / "model")
    card = (trained / "README.md").read_text(encoding="utf-8")
    note = f"\n## After training\n\n`{merge.model_dump_json()}`: coefficient {coefficient:g}.\n"
    card = with_usage(card + note, output / "model", base)
    (output / "model" / "README.md").write_text(card, encoding="utf-8")
    return {"coefficient": coefficient, "distance": distance, **result}


def score_candidate(model: config.Model, suite: Suite) -> dict[str, float]:
    """Accuracy on the domain's rows, and the mean over the general tasks, in every mode, of each one's main metric."""
    scores = evaluate(model, suite)[0]["tasks"]
    metrics = [of_task["metrics"] for task, of_task in scores.items() if task not in DOMAIN_TASKS]
    general = [of_task[main_metric(of_task)] for of_task in metrics]
    return {"domain": scores[DOMAIN_TASK]["metrics"]["acc"], "general": sum(general) / len(general)}
