"""Tasks of the gate: what is known of a candidate, recovery of a near miss, and its release."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from dvc.repo import Repo
from prefect import task
from prefect.cache_policies import NO_CACHE

from raft_tasks import config
from raft_tasks.artifacts import atomic_folder
from raft_tasks.evaluation.gate import Measured
from raft_tasks.evaluation.harness import DOMAIN_TASK
from raft_tasks.evaluation.leakage import leak_rate
from raft_tasks.generation.fidelity import lost_facts
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.recover import recovered
from raft_tasks.sampling import SamplingParams
from raft_tasks.schemas import Example, Fused, ItemResult

ROUND = 8  # questions that one model answers before it is the next one's turn


def measured(name: str, items: list[ItemResult]) -> Measured:
    """A model's benchmark outcomes by task."""
    rows: dict[str, list[ItemResult]] = {}
    for row in items:
        rows.setdefault(row.task, []).append(row)
    return Measured(name, rows, leaks=leak_rate([row.answer for row in rows[DOMAIN_TASK]]))


def fidelity_rate(rows: Iterable[Fused]) -> float | None:
    """Share of the answers that keep every number, unit, date, name and negation of their reference."""
    kept = [not lost_facts(row.answer, row.fused) for row in rows]
    return sum(kept) / len(kept) if kept else None


@task(cache_policy=NO_CACHE)
def size_and_latency(
    models: dict[str, config.Model], questions: list[str], max_new_tokens: int
) -> dict[str, tuple[int, float]]:
    """Bytes of the weights and seconds an answer, by name: greedy answers, the models in turn, one round to warm up."""
    backends = {name: TransformersBackend(model) for name, model in models.items()}
    spent = dict.fromkeys(backends, 0.0)
    greedy = SamplingParams(temperature=0.0, max_tokens=max_new_tokens, batch_size=ROUND)
    rounds = [questions[start : start + ROUND] for start in range(0, len(questions), ROUND)]
    for number, asked in enumerate([rounds[0], *rounds]):
        for name, backend in backends.items():
            began = time.perf_counter()
            backend.generate(asked, greedy, [0] * len(asked))
            spent[name] += (time.perf_counter() - began) if number else 0.0
    return {
        name: (
            sum(parameter.numel() * parameter.element_size() for parameter in backend.model.parameters()),
            spent[name] / len(questions),
        )
        for name, backend in backends.items()
    }


@task(cache_policy=NO_CACHE)
def recover_candidate(
    trained: Path,
    base: config.Model,
    after: config.Interpolate,
    domain: str,
    validation: list[Example],
    benchmark: config.Benchmark,
    tasks: Path,
    output: Path,
    progress: Callable[[int, int], None],
) -> float:
    """Write `output`/model, the candidate interpolated towards the base; returns the coefficient that was chosen."""
    with atomic_folder(output) as partial:
        chosen = recovered(trained, base, after, domain, validation, benchmark, tasks, partial, progress)
    return float(chosen["coefficient"])


@task(cache_policy=NO_CACHE)
def release(model: Path, card: str, target: Path) -> None:
    """Put the model, with its card, at `target` and under DVC."""
    with atomic_folder(target) as partial:
        shutil.copytree(model, partial, dirs_exist_ok=True)
        (partial / "README.md").write_text(card, encoding="utf-8")
    with Repo() as repo:
        repo.add(str(target))
