"""What the teacher says at the student's mistakes: does it know better, at the wrong token and after it?

    python benchmarks/teacher.py [WORLD/DOMAIN ...]        easy/archive easy/clinic hard/archive: minutes

RAFT's teacher is the base with the reference in its prompt, and it scores what the student drew, not the reference. A
student draws one rollout to every training question: before the training, and after one and four epochs of it. Their
tokens are of three kinds: right (as the reference, and so is all before), the first wrong one, and those after a wrong
one. At each the two teachers give a distribution (temperature 1): answer-conditioned (Eq. 7), and plain, which is the
base without the reference. References are the fused ones; where the filter took no rewrite they are raw, in the
domain's own style. A line for each teacher, student, reference and kind:

    tokens         of all tokens drawn, %
    knows          the teacher's likeliest token is the reference's at this place, %; after a mistake the places still
                   fit where student and reference use the same sentence
    reference      the teacher's probability of the reference's token, mean, %
    drawn          its probability of the token that the student drew, mean, %
    KL             KL(teacher || student) per token, nats
    of all KL      share of the sum over all tokens, %

And how often the answer-conditioned teacher's own answers hold the row's value.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from study import STUDIES, Cell, config_of, pairs_of, refine, train, world_folder

from raft_tasks.chat import end_of_turn
from raft_tasks.generation.templates import template_text
from raft_tasks.model_loading import load_model
from raft_tasks.seeds import derive_seed
from raft_tasks.training.conversations import Encoded, Encoder, teacher_message
from raft_tasks.training.rollouts import RolloutSampling
from raft_tasks.training.transformers_rollouts import GenerateSampler

PLACES = ("easy/archive", "easy/clinic", "hard/archive")
EPOCHS = (0, 1, 4)
RATE, SEED = 7e-4, 0
KINDS = ("right", "first wrong", "after a wrong one")
TEACHERS = ("answer-conditioned", "plain")


@dataclass
class Row:
    """A training row: its tokens, whether its reference is refined, and the values that an answer is to hold."""

    encoded: Encoded
    refined: bool
    values: list[str]


@dataclass
class Seen:
    """One token that a student drew, and what a teacher says there."""

    refined: bool  # the reference
    kind: str
    knows: bool
    reference: float | None  # None where the reference is over
    drawn: float
    kl: float


def kinds_of(drawn: list[int], reference: list[int]) -> list[str]:
    """The kind of every drawn token."""
    agreed = [mine == theirs for mine, theirs in zip(drawn, reference, strict=False)]
    if all(agreed) and len(drawn) <= len(reference):
        return ["right"] * len(drawn)
    first = next((place for place, right in enumerate(agreed) if not right), len(reference))
    return ["right"] * first + ["first wrong"] + ["after a wrong one"] * (len(drawn) - first - 1)


def log_probs(model: Any, prompt: list[int], drawn: list[int]) -> torch.Tensor:
    """The model's log probabilities before each drawn token, [tokens, V]."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + drawn])).logits[0]
    return torch.log_softmax(logits[len(prompt) - 1 : -1].float(), dim=-1)


def seen(
    teacher: torch.Tensor, student: torch.Tensor, drawn: list[int], reference: list[int], refined_: bool
) -> list[Seen]:
    """Every drawn token, by the teacher's and the student's log probabilities [tokens, V]."""
    divergences = (teacher.exp() * (teacher - student)).sum(dim=-1)
    found = []
    for place, (kind, token) in enumerate(zip(kinds_of(drawn, reference), drawn, strict=True)):
        wanted = reference[place] if place < len(reference) else None
        row = teacher[place]
        found.append(
            Seen(
                refined_,
                kind,
                wanted is not None and int(row.argmax()) == wanted,
                None if wanted is None else float(row[wanted].exp()),
                float(row[token].exp()),
                float(divergences[place]),
            )
        )
    return found


def at(base: Any, student: Any, rows: list[Row], sampler: GenerateSampler) -> dict[str, list[Seen]]:
    """What each teacher says to one rollout of every row."""
    rollouts = sampler(
        [row.encoded.prompt_ids for row in rows], [derive_seed(f"rollouts/{SEED}/0/{row.encoded.id}") for row in rows]
    )
    found: dict[str, list[Seen]] = {name: [] for name in TEACHERS}
    for row, rollout in zip(rows, rollouts, strict=True):
        encoded, drawn = row.encoded, rollout.tokens
        own = log_probs(student, encoded.prompt_ids, drawn)
        for name, prompt in zip(TEACHERS, (encoded.teacher_prompt_ids or [], encoded.prompt_ids), strict=True):
            found[name] += seen(log_probs(base, prompt, drawn), own, drawn, encoded.completion_ids, row.refined)
    return found


def lines(name: str, epochs: int, found: list[Seen]) -> list[str]:
    every = sum(token.kl for token in found)
    made = []
    for refined_, kind in ((refined_, kind) for refined_ in (True, False) for kind in KINDS):
        own = [token for token in found if token.refined == refined_ and token.kind == kind]
        placed = [token for token in own if token.reference is not None]
        if placed:
            numbers = [
                100 * len(own) / len(found),
                100 * np.mean([token.knows for token in placed]),
                100 * np.mean([token.reference for token in placed]),
                100 * np.mean([token.drawn for token in own]),
                np.mean([token.kl for token in own]),
                100 * sum(token.kl for token in own) / every,
            ]
            cells = [f"{number:.{2 if place == 4 else 1}f}" for place, number in enumerate(numbers)]
            reference = "refined" if refined_ else "raw"
            made.append(f"| {name} | {epochs} | {reference} | {kind} | " + " | ".join(cells) + " |")
    return made


def own_answers(base: Any, tokenizer: Any, rows: list[Row], sampler: GenerateSampler) -> str:
    """How often the answer-conditioned teacher's answers hold the value, by kind of reference."""
    drawn = sampler([row.encoded.teacher_prompt_ids or [] for row in rows], [SEED] * len(rows))
    said = []
    for refined_ in (True, False):
        mine = [
            any(value in tokenizer.decode(answer.tokens) for value in row.values)
            for row, answer in zip(rows, drawn, strict=True)
            if row.refined == refined_
        ]
        if mine:
            said.append(f"{100 * np.mean(mine):.1f} % of {len(mine)} {'refined' if refined_ else 'raw'} references")
    return "The answer-conditioned teacher's own answers hold the value of " + " and of ".join(said)


def main() -> None:
    study = yaml.safe_load((STUDIES / "pocket.yaml").read_text(encoding="utf-8"))
    for place in sys.argv[1:] or PLACES:
        world, domain = place.split("/")
        print(f"\n### {place}\n")
        print("| teacher | epochs | reference | token | tokens | knows | reference | drawn | KL | of all KL |")
        print("|---|---:|---|---|" + "---:|" * 6, flush=True)
        for epochs in EPOCHS:
            cell = Cell(world, domain, "raft", RATE, epochs or 1, SEED)
            config = config_of(study, cell)
            base, tokenizer = load_model(config.base, torch.float32)
            method = config.methods["raft"]
            settings = method.distillation
            assert settings is not None
            fused = refine(config, world_folder(world) / f"{domain}.jsonl", domain)
            message = teacher_message(template_text(settings.template))
            encoder = Encoder(tokenizer, config.train.max_length, message, settings.rollout_max_new_tokens)
            encoded = encoder(pairs_of(fused, method, None))
            rows = [Row(one, row.passed, row.expected) for one, row in zip(encoded, fused, strict=True)]
            with tempfile.TemporaryDirectory() as folder:
                student = base
                if epochs:
                    model, _ = train(study, cell, Path(folder))
                    student, _ = load_model(config.base.model_copy(update={"path": str(model)}), torch.float32)
                sampling = RolloutSampling([end_of_turn(tokenizer)], 1.0, settings.rollout_max_new_tokens)
                found = at(base.eval(), student.eval(), rows, GenerateSampler(student, sampling, 64))
            for name in TEACHERS[: 2 if epochs else 1]:  # before the training the student is the plain teacher
                print("\n".join(lines(name, epochs, found[name])), flush=True)
        print(f"\n{own_answers(base, tokenizer, rows, GenerateSampler(base, sampling, 64))}.", flush=True)


if __name__ == "__main__":
    main()
