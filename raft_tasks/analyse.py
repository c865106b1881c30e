"""Task of the stage `analyse`: how far training took a model from its base, in its weights, words and answers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from raft_tasks import config
from raft_tasks.evaluation import drift, leakage
from raft_tasks.evaluation.harness import DOMAIN_TASK
from raft_tasks.schemas import ItemResult

EXAMPLES = 5  # leaks that are quoted
KL_ITEMS = 100  # of each task, evenly spaced: MMLU alone has 14,000
CHOICE = re.compile(r"choice \d+")  # what the harness keeps of an item that nobody answers in words


@task(cache_policy=NO_CACHE)
def analyse_model(
    trained: config.Model,
    base: config.Model,
    items: Sequence[ItemResult],
    base_items: Sequence[ItemResult],
    references: Sequence[str],
    template: str | None,
    batch_size: int,
) -> dict[str, Any]:
    """Everything that the stage measures of one model; the form is described in docs/analysis.md.

    Args:
        items: the trained model's benchmark outcomes.
        base_items: the base's, of the same items.
        references: the answers of the domain's data to its held-out questions.
        template: text of the prompt in which the teacher saw the answer; None where no teacher saw any.
        batch_size: items per forward pass.
    """
    answers, base_answers = spoken(items), spoken(base_items)
    return {
        **compared(trained, base, base_items, batch_size),
        "leak": leak(answers[DOMAIN_TASK], base_answers[DOMAIN_TASK], template),
        "style": style(answers, base_answers, references),
    }


def compared(
    trained: config.Model, base: config.Model, base_items: Sequence[ItemResult], batch_size: int
) -> dict[str, Any]:
    """What the weights themselves say: `distance` and `kl`."""
    import torch

    from raft_tasks.training.divergence import as_said, kl_of_answers
    from raft_tasks.training.weights import distance_by, layer_name, load_model, matrix_name

    device = "cuda" if torch.cuda.is_available() else "cpu"
    original, tokenizer = load_model(base, getattr(torch, base.dtype))
    tuned, _ = load_model(trained, getattr(torch, base.dtype))
    original, tuned = original.eval().to(device), tuned.eval().to(device)
    moved = distance_by(
        tuned, original, lambda name: ("total", f"layers/{layer_name(name)}", f"matrices/{matrix_name(name)}", name)
    )
    groups: dict[str, dict[str, float]] = {"layers": {}, "matrices": {}, "parameters": {}}
    for name, distance in moved.items():
        kind, _, member = name.rpartition("/")
        if name != "total":
            groups[kind or "parameters"][member.removeprefix("layer ")] = distance
    chosen = spaced(base_items)
    rows = [as_said(item.prompt, "" if is_choice(item) else item.answer, tokenizer) for item in chosen]
    of_task: dict[str, list[float]] = defaultdict(list)
    for item, divergence in zip(chosen, kl_of_answers(original, tuned, rows, batch_size), strict=True):
        of_task[item.task].append(divergence)
    tasks = {name: fmean(each) for name, each in of_task.items()}
    domain = tasks.pop(DOMAIN_TASK)
    return {
        "distance": {"total": moved["total"], **groups},
        "kl": {"domain": domain, "general": fmean(tasks.values()) if tasks else None, "tasks": tasks},
    }


def spaced(items: Sequence[ItemResult]) -> list[ItemResult]:
    """At most KL_ITEMS of each task's items, evenly spaced."""
    of_task: dict[str, list[ItemResult]] = defaultdict(list)
    for item in items:
        of_task[item.task].append(item)
    return [
        each[at * len(each) // count]
        for each in of_task.values()
        for count in [min(KL_ITEMS, len(each))]
        for at in range(count)
    ]


def leak(answers: Sequence[str], base_answers: Sequence[str], template: str | None) -> dict[str, Any]:
    """Shares of answers that speak of a reference, or in the words of the teacher's prompt; the base's beside them."""
    result: dict[str, Any] = {
        "share": leakage.leak_rate(answers),
        "share_base": leakage.leak_rate(base_answers),
        "items": len(answers),
        "examples": [answer for answer in answers if leakage.leaks(answer)][:EXAMPLES],
    }
    if template is not None:
        for name, said in (("template", answers), ("template_base", base_answers)):
            result[name] = fmean(leakage.repeats_template(answer, template) for answer in said)
    return result


def style(
    answers: dict[str, list[str]], base_answers: dict[str, list[str]], references: Sequence[str]
) -> dict[str, float | None]:
    """Length and style of domain and general answers against the base's."""
    own = [answer for said in base_answers.values() for answer in said]
    result: dict[str, float | None] = {"told_apart": drift.told_apart(own, references)}
    sides = {
        "domain": (answers[DOMAIN_TASK], base_answers[DOMAIN_TASK]),
        "general": (general(answers), general(base_answers)),
    }
    for side, (said, before) in sides.items():
        if not said:
            continue
        lengths, lengths_before = ([drift.words(answer) for answer in sample] for sample in (said, before))
        result |= {
            f"{side}_words": fmean(lengths),
            f"{side}_words_base": fmean(lengths_before),
            f"{side}_length_distance": drift.length_distance(lengths, lengths_before),
            f"{side}_style_distance": drift.style_distance(said, before),
            f"{side}_foreign": drift.foreign_share(said, own, references),
        }
    return result | {"domain_style_distance_references": drift.style_distance(answers[DOMAIN_TASK], references)}


def spoken(items: Sequence[ItemResult]) -> dict[str, list[str]]:
    """Answers in words, by task."""
    found: dict[str, list[str]] = defaultdict(list)
    for item in items:
        if not is_choice(item):
            found[item.task].append(item.answer)
    return found


def general(answers: dict[str, list[str]]) -> list[str]:
    return [answer for task_name, said in answers.items() if task_name != DOMAIN_TASK for answer in said]


def is_choice(item: ItemResult) -> bool:
    return CHOICE.fullmatch(item.answer) is not None
