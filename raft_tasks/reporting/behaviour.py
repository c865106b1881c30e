"""How a model speaks, beside what it gets right: how long its answers are, and whether they tell of a reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raft_tasks.evaluation.harness import DOMAIN_TASK
from raft_tasks.evaluation.leakage import leak_rate
from raft_tasks.reporting.study import Benchmarked


def measure_behaviour(models: Sequence[Benchmarked]) -> dict[str, Any]:
    """Means over the models of one method: words per answer, and the share of domain answers that tell of a reference.

    Only the domain's questions are searched for leaks: a general task may give a reference and be right to name it.
    """
    domain = [row.answer for model in models for row in model.items if row.task == DOMAIN_TASK]
    general = [row.answer for model in models for row in model.items if row.task != DOMAIN_TASK]
    return {
        "leak_rate": leak_rate(domain),
        "words_domain": _mean_words(domain),
        "words_general": _mean_words(general) if general else None,
    }


def _mean_words(answers: list[str]) -> float:
    return sum(len(answer.split()) for answer in answers) / len(answers)
