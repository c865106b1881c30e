"""Task of the stage `analyse`: how far a trained model is from its base, in its weights, words and answers.

The base reads its answers once a domain: the hidden states are kept in a file for the analyses of other models.
"""

from __future__ import annotations

import fcntl
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from raft_tasks import config
from raft_tasks.artifacts import atomic_file, digest
from raft_tasks.code_digest import code_digest
from raft_tasks.evaluation import drift, leakage
from raft_tasks.evaluation.harness import DOMAIN_TASK
from raft_tasks.evaluation.outcomes import is_generated
from raft_tasks.schemas import ItemResult, thinking_name

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLES = 5  # leaks that are quoted
KL_ITEMS = 40  # of each task, evenly spaced: MMLU alone has 14,000


@dataclass(frozen=True)
class Base:
    """What the analyses of a domain's models compare with."""

    model: config.Model
    identity: Mapping[str, Any]  # which weights that is
    items: Sequence[ItemResult]  # benchmark outcomes
    states: Path  # of `cached_states`


@task(cache_policy=NO_CACHE)
def analyse_model(
    trained: config.Model,
    items: Sequence[ItemResult],
    base: Base,
    references: Sequence[str],
    template: str | None,
    batch_size: int,
) -> dict[str, Any]:
    """Everything that the stage measures of one model; the form is described in docs/guides/analysis.md.

    Args:
        items: the trained model's benchmark outcomes, of the same items as the base's; of tasks that were measured in
            both modes those without thinking count.
        references: the answers of the domain's data to its held-out questions.
        template: text of the prompt in which the teacher saw the answer; None where no teacher saw any.
        batch_size: items per forward pass.
    """
    answers, base_answers = text_answers(items), text_answers(base.items)
    return {
        **compare_weights(trained, base, batch_size),
        "leak": leak_shares(answers[DOMAIN_TASK], base_answers[DOMAIN_TASK], template),
        "style": style_shift(answers, base_answers, references),
    }


def compare_weights(trained: config.Model, base: Base, batch_size: int) -> dict[str, Any]:
    """`distance` of the weights, and `kl` of the models on the base's answers."""
    import torch
    import transformers

    from raft_tasks.model_loading import load_model
    from raft_tasks.training.completion_forward import output_head
    from raft_tasks.training.divergence import (
        answer_states,
        distance_by,
        encode_answer,
        kl_of_answers,
        layer_name,
        matrix_name,
    )

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, base.model.dtype)
    original, tokenizer = load_model(base.model, dtype)
    tuned, _ = load_model(trained, dtype)
    original, tuned = original.eval().to(device), tuned.eval().to(device)
    distances = distance_by(
        tuned, original, lambda name: ("total", f"layers/{layer_name(name)}", f"matrices/{matrix_name(name)}", name)
    )
    groups: dict[str, dict[str, float]] = {"layers": {}, "matrices": {}, "parameters": {}}
    for name, distance in distances.items():
        kind, _, member = name.rpartition("/")
        if name != "total":
            groups[kind or "parameters"][member.removeprefix("layer ")] = distance
    chosen = sample_evenly([item for item in base.items if not repeats_thinking(item)])
    turns = [item.thought + item.answer if is_generated(item.answer) else "" for item in chosen]
    rows = [encode_answer(item.prompt, turn, tokenizer) for item, turn in zip(chosen, turns, strict=True)]
    # what may change last digits: the KL of states from two such runs would not be 0 where it should be
    rounding = [torch.__version__, transformers.__version__, device, torch.get_num_threads()]
    key = digest([dict(base.identity), rows, batch_size, base.model.dtype, code_digest(__name__), rounding])
    by_task: dict[str, list[float]] = defaultdict(list)
    states = cached_states(base.states, key, lambda: answer_states(original, rows, batch_size))
    for item, divergence in zip(
        chosen, kl_of_answers(states, output_head(original), tuned, rows, batch_size), strict=True
    ):
        by_task[item.task].append(divergence)
    tasks = {name: fmean(values) for name, values in by_task.items()}
    domain = tasks.pop(DOMAIN_TASK)
    return {
        "distance": {"total": distances["total"], **groups},
        "kl": {"domain": domain, "general": fmean(tasks.values()) if tasks else None, "tasks": tasks},
    }


def cached_states(file: Path, key: str, compute: Callable[[], Iterable[Tensor]]) -> Iterator[Tensor]:
    """What `compute` yields, from `file` where it holds that under `key`; else it is computed and written there.

    Who comes while another process computes waits for it. A damaged file counts as absent.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            with safe_open(file, framework="pt") as tensors:
                written = (tensors.metadata() or {}).get("key")
        except (FileNotFoundError, SafetensorError):
            written = None
        if written != key:
            batches = {str(number): states.cpu() for number, states in enumerate(compute())}
            with atomic_file(file) as partial:
                save_file(batches, partial, {"key": key})
        with safe_open(file, framework="pt") as tensors:
            fcntl.flock(lock, fcntl.LOCK_UN)  # whoever replaces the file leaves this one to its readers
            for number in range(len(tensors.keys())):
                yield tensors.get_tensor(str(number))


def sample_evenly(items: Sequence[ItemResult]) -> list[ItemResult]:
    """At most KL_ITEMS of each task's items, evenly spaced."""
    by_task: dict[str, list[ItemResult]] = defaultdict(list)
    for item in items:
        by_task[item.task].append(item)
    sampled = []
    for rows in by_task.values():
        count = min(KL_ITEMS, len(rows))
        sampled += [rows[at * len(rows) // count] for at in range(count)]
    return sampled


def leak_shares(answers: Sequence[str], base_answers: Sequence[str], template: str | None) -> dict[str, Any]:
    """Shares of answers that mention a reference, or repeat the teacher's prompt; the base's beside them."""
    result: dict[str, Any] = {
        "share": leakage.leak_rate(answers),
        "share_base": leakage.leak_rate(base_answers),
        "items": len(answers),
        "examples": [answer for answer in answers if leakage.find_leaks(answer)][:EXAMPLES],
    }
    if template is not None:
        for name, texts in (("template", answers), ("template_base", base_answers)):
            result[name] = fmean(leakage.repeats_template(text, template) for text in texts)
    return result


def style_shift(
    answers: dict[str, list[str]], base_answers: dict[str, list[str]], references: Sequence[str]
) -> dict[str, float | None]:
    """Length and style of domain and general answers against the base's."""
    of_base = [answer for texts in base_answers.values() for answer in texts]
    result: dict[str, float | None] = {"separability": drift.separability(of_base, references)}
    sides = {
        "domain": (answers[DOMAIN_TASK], base_answers[DOMAIN_TASK]),
        "general": (general_answers(answers), general_answers(base_answers)),
    }
    for side, (texts, before) in sides.items():
        if not texts:
            continue
        lengths, lengths_before = ([drift.count_words(text) for text in sample] for sample in (texts, before))
        result |= {
            f"{side}_words": fmean(lengths),
            f"{side}_words_base": fmean(lengths_before),
            f"{side}_length_distance": drift.length_distance(lengths, lengths_before),
            f"{side}_style_distance": drift.style_distance(texts, before),
            f"{side}_foreign": drift.foreign_share(texts, of_base, references),
        }
    return result | {"domain_style_distance_references": drift.style_distance(answers[DOMAIN_TASK], references)}


def text_answers(items: Sequence[ItemResult]) -> dict[str, list[str]]:
    """Answers in words, by task; of tasks that were measured in both modes those without thinking."""
    by_task: dict[str, list[str]] = defaultdict(list)
    for item in items:
        if is_generated(item.answer) and not repeats_thinking(item):
            by_task[item.task].append(item.answer)
    return by_task


def general_answers(answers: dict[str, list[str]]) -> list[str]:
    return [text for task_name, texts in answers.items() if task_name != DOMAIN_TASK for text in texts]


def repeats_thinking(item: ItemResult) -> bool:
    """Whether the item's task was measured without thinking too."""
    return item.task.endswith(thinking_name(""))
