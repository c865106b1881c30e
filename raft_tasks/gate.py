"""Tasks of the gate: what is measured of the models, and a candidate's release."""

import shutil
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from dvc.repo import Repo
from prefect import task
from prefect.cache_policies import NO_CACHE

from raft_tasks import config
from raft_tasks.adapter_folder import is_adapter
from raft_tasks.artifacts import atomic_folder
from raft_tasks.checks import Checks
from raft_tasks.evaluation.evidence import NAME, Evidence, check_files, digest_model, write_evidence
from raft_tasks.evaluation.gate import DOMAIN_TASKS, Measured, Verdict
from raft_tasks.evaluation.harness import Suite
from raft_tasks.evaluation.leakage import leak_rate
from raft_tasks.generation.fidelity import lost_from
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.merged_folder import write_whole
from raft_tasks.sampling import SamplingParams
from raft_tasks.schemas import Fused, ItemResult, Prompt
from raft_tasks.training.usage import with_usage

REPEAT = "repeated"  # the candidate's second measurement
ROUND = 8  # questions that one model answers before it is the next one's turn


def measure(name: str, items: list[ItemResult]) -> Measured:
    """A model's benchmark outcomes by task."""
    by_task: dict[str, list[ItemResult]] = {}
    for row in items:
        by_task.setdefault(row.task, []).append(row)
    texts = [row.thought + row.answer for task in DOMAIN_TASKS for row in by_task.get(task, [])]
    return Measured(name, by_task, leaks=leak_rate(texts))


def repeat_settings(noise: config.SecondMeasurement, model: config.Model, suite: Suite) -> tuple[config.Model, Suite]:
    """The same weights and items, to be measured in a way that should not matter."""
    batch_size = noise.batch_size or suite.settings.batch_size // 2 or 2
    settings = suite.settings.model_copy(update={"batch_size": batch_size})
    model = model.model_copy(update={"dtype": noise.dtype or model.dtype})
    return model, replace(suite, settings=settings, seed=noise.seed)


def fidelity_rate(rows: Iterable[Fused], checks: Checks) -> float | None:
    """Share of the answers that lose nothing of their reference, by the domain's checks or by the rules on facts."""
    faithful = [row.fused == row.answer or not lost_from(row, row.fused, checks) for row in rows]
    return sum(faithful) / len(faithful) if faithful else None


def size_and_latency(
    models: dict[str, config.Model], questions: list[Prompt], max_new_tokens: int
) -> dict[str, tuple[int, float]]:
    """Bytes of the weights and seconds an answer, by name: greedy answers, the models in turn, one round to warm up.

    A model that is served thinking, perhaps among others, thinks here.
    """
    backends = {name: TransformersBackend(model) for name, model in models.items()}
    spent = dict.fromkeys(backends, 0.0)
    thought_tokens = max(0 if model.thinking == "off" else model.thought_tokens for model in models.values())
    greedy = SamplingParams(temperature=0.0, max_tokens=max_new_tokens + thought_tokens, batch_size=ROUND)
    rounds = [questions[start : start + ROUND] for start in range(0, len(questions), ROUND)]
    for number, batch in enumerate([rounds[0], *rounds]):
        for name, backend in backends.items():
            began = time.perf_counter()
            backend.call("thinking" if thought_tokens else "chat", batch, greedy, [0] * len(batch))
            spent[name] += (time.perf_counter() - began) if number else 0.0
    return {
        name: (
            sum(parameter.numel() * parameter.element_size() for parameter in backend.model.parameters()),
            spent[name] / len(questions),
        )
        for name, backend in backends.items()
    }


@task(cache_policy=NO_CACHE)
def release(
    model: config.Model, card: str, evidence: Evidence, verdict: Verdict, target: Path, form: str = "whole"
) -> None:
    """Put the model with its card and what it was judged by at `target` and under DVC.

    Args:
        form: whole, or adapter: an adapter is not merged into its base.

    Raises:
        InputError: the model is not the one that was judged, or its merged weights are not base + adapter.
    """
    with atomic_folder(target) as partial:
        folder = Path(model.path)
        if is_adapter(folder) and form == "whole":
            check_files(evidence, folder)
            write_whole(model, partial)
            judged, released = evidence.inputs["candidate"], digest_model(model.at(partial))
            evidence = replace(evidence, inputs={**evidence.inputs, "candidate": released, "adapter": judged})
            card += "\nThe adapter of the training is merged into the weights here; the gate measured these weights.\n"
        else:
            shutil.copytree(folder, partial, dirs_exist_ok=True)
            check_files(evidence, partial)
        (partial / "README.md").write_text(with_usage(card, partial, model), encoding="utf-8")
        write_evidence(partial / NAME, evidence, verdict)
    with Repo() as repo:
        repo.add(str(target))
