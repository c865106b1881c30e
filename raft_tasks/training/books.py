"""The books of a training: one row per optimiser step in steps.csv, the time of each phase, batches that diverged."""

from __future__ import annotations

import csv
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from raft_tasks.artifacts import write_json
from raft_tasks.errors import InputError
from raft_tasks.training.conversations import Encoded
from raft_tasks.training.rollouts import Rollout
from raft_tasks.training.speed import ModelFlops

COLUMNS = [  # of steps.csv, one row per optimiser step; a cell is empty where a method has no such value
    "step",
    "epoch",
    "loss",  # L = L_SFT + lambda L_KL + w L_replay + u L_anchor, w = share / (1 - share)
    "l_sft",  # its tokens weighted as the method says
    "nll",  # the same tokens, unweighted: what compares methods
    "l_replay",  # of the user's general rows
    "l_anchor",  # KL(base || student) at the anchors' answers, or their cross-entropy
    "anchor_weight",  # u
    "l_kl",
    "lambda",
    "ce_kl_ratio",  # L_SFT / (lambda L_KL): near 1 under the EMA balance
    "student_mass_in_k",  # mean probability (temperature 1) of the teacher's top K, by the student
    "teacher_mass_in_k",  # ... and by the teacher itself
    "rollout_length",  # mean tokens
    "rollouts_empty",  # rollouts that ended at once
    "rollouts_truncated",  # rollouts that met the length bound
    "kl_to_base",  # mean KL(base || student) on the rollouts, temperature 1, base without the answer (probe.kl_to_base)
    "sampler_gap",  # mean |log p by the sampler - log p by the trainer| of the drawn tokens; both at probed steps only
    "grad_norm",  # before clipping
    "explosion_streak",  # steps in a row with a loss above the bound of explosion.ExplosionGuard
    "learning_rate",
    "tokens_per_second",  # tokens in the student's passes, prompts included, padding not
    "seconds",
    "rollout_share",  # of the seconds
    "teacher_share",
    "student_share",
    "anchor_share",
    "optimiser_share",  # all the rest: clipping, the optimiser's step, the exchange of sums
    "model_flops_utilisation",  # speed.ModelFlops over the device's measured peak
]


class TrainingDiverged(InputError):
    """A loss or gradient became NaN, infinite, or ran away."""


class StepBooks:
    """What one optimiser step's row is made of. Sums are over all processes, times are this process's."""

    def __init__(self, rows: list[Encoded], device: torch.device, step: int) -> None:
        self.rows, self.device, self.step = rows, device, step
        self.rollouts: list[Rollout] = []  # one per row, where there is a teacher
        self.replayed: list[Encoded] = []  # general rows of this step
        self.anchored: list[Encoded] = []  # anchors of this step
        self.sums: dict[str, float] = defaultdict(float)
        self.clock: dict[str, float] = defaultdict(float)
        self.within: str | None = None  # the phase that is under way
        self.started = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of its body to the clock, and takes it off the phase that it stands in."""
        begun, around = time.perf_counter(), self.within
        self.within = name
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        taken = time.perf_counter() - begun
        self.clock[name] += taken
        if around is not None:
            self.clock[around] -= taken
        self.within = around

    @property
    def loss(self) -> float:
        """L = L_SFT + lambda L_KL + w L_replay + u L_anchor, of the terms that the method has."""
        value = self.sums.get
        replayed = value("replay_weight", 0.0) * value("l_replay", 0.0)
        anchored = value("anchor_weight", 0.0) * value("l_anchor", 0.0)
        return value("l_sft", 0.0) + value("lambda", 0.0) * value("l_kl", 0.0) + replayed + anchored

    def row(self, flops: ModelFlops, processes: int) -> dict[str, Any]:
        """The columns that the step itself knows; `flops` counts what the student needs on each of the processes."""
        seconds = time.perf_counter() - self.started
        prompts, answers = (
            sum(map(len, side))
            for side in zip(*((r.prompt, r.answer) for r in [*self.rows, *self.replayed, *self.anchored]), strict=True)
        )
        scored = prompts + answers
        work = flops.training(scored, answers)
        row: dict[str, Any] = {
            "loss": self.loss,
            "l_sft": self.sums.get("l_sft"),
            "nll": self.sums.get("nll"),
            "l_replay": self.sums.get("l_replay"),
            "l_anchor": self.sums.get("l_anchor"),
            "anchor_weight": self.sums.get("anchor_weight"),
            "seconds": seconds,
            "student_share": self.clock["student"] / seconds,
            "anchor_share": self.clock["anchors"] / seconds if "anchors" in self.clock else None,
        }
        if self.rollouts:
            lengths = [len(rollout.tokens) for rollout in self.rollouts]
            again = sum(len(row.prompt) for row in self.rows) + sum(lengths)
            scored += again
            teacher = sum(len(row.teacher_prompt or []) for row in self.rows) + sum(lengths)
            work += flops.training(again, sum(lengths)) + flops.forward(teacher, sum(lengths))
            work += flops.forward(again, sum(lengths))  # the sampling
            weighed = self.sums["lambda"] * self.sums["l_kl"]
            row |= {
                "l_kl": self.sums["l_kl"],
                "lambda": self.sums["lambda"],
                "ce_kl_ratio": self.sums["l_sft"] / weighed if weighed > 0 and "l_sft" in self.sums else None,
                "student_mass_in_k": self.sums["student_mass_in_k"],
                "teacher_mass_in_k": self.sums["teacher_mass_in_k"],
                "rollout_length": sum(lengths) / len(lengths),
                "rollouts_empty": sum(rollout.empty for rollout in self.rollouts),
                "rollouts_truncated": sum(rollout.truncated for rollout in self.rollouts),
                "kl_to_base": self.sums.get("kl_to_base"),
                "sampler_gap": self.sums.get("sampler_gap"),
                "rollout_share": self.clock["rollout"] / seconds,
                "teacher_share": self.clock["teacher"] / seconds,
            }
        return row | {
            "tokens_per_second": scored / seconds,
            "optimiser_share": 1 - sum(self.clock.values()) / seconds,
            "model_flops_utilisation": flops.utilisation(work, seconds, processes),
        }

    def diverged(self, what: str, value: float, learning_rate: float, folder: Path) -> NoReturn:
        """Keep the batch in `folder` and stop: a loss or gradient is NaN, infinite, or ran away."""
        rollouts = [rollout.tokens for rollout in self.rollouts] or [[] for _ in self.rows]
        kept = folder / f"diverged-step-{self.step}.json"
        write_json(
            kept,
            {
                "step": self.step,
                "what": what,
                "value": str(value),
                "learning_rate": learning_rate,
                "rows": [{**vars(row), "rollout": rollout} for row, rollout in zip(self.rows, rollouts, strict=True)],
            },
        )
        raise TrainingDiverged(
            f"{what} is {value:.6g} at step {self.step}, rows {', '.join(row.id for row in self.rows)}. The batch is "
            f"kept in {kept}. Lower train.learning_rate or train.max_grad_norm, or look at these rows; earlier "
            "checkpoints are intact"
        )


def start_table(path: Path, steps: list[dict[str, Any]]) -> None:
    """steps.csv with the rows of a resumed training."""
    with path.open("w", encoding="utf-8", newline="") as table:
        writer = csv.DictWriter(table, COLUMNS)
        writer.writeheader()
        writer.writerows(steps)


def add_to_table(path: Path, step: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8", newline="") as table:
        csv.DictWriter(table, COLUMNS).writerow(step)
