"""One row of steps.csv per optimiser step: losses, the time of each phase; and the batch of a step that diverged."""

import csv
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from raft_tasks.artifacts import atomic_file, write_json
from raft_tasks.errors import InputError
from raft_tasks.training.conversations import Encoded
from raft_tasks.training.rollouts import Rollout
from raft_tasks.training.speed import ModelFlops

Progress = Callable[[int, int, str], None]  # after every optimiser step: steps done, steps in all, status

COLUMNS = [  # of steps.csv, one row per optimiser step; a cell is empty where a method has no such value
    "step",
    "epoch",
    "loss",  # L = L_SFT + target_kl.weight L_target + lambda L_KL + r L_replay + w L_anchor, r = share / (1 - share)
    "l_sft",  # its tokens weighted as the method says
    "nll",  # the same tokens, unweighted: what compares methods
    "l_target_kl",  # KL(base || student) at the learned answers
    "l_replay",  # of the user's general rows
    "l_anchor",  # KL(base || student) at the anchors' answers, or their cross-entropy
    "anchor_weight",  # w
    "l_kl",
    "lambda",
    "ce_kl_ratio",  # L_SFT / (lambda L_KL): near 1 under the EMA balance
    "student_mass_in_k",  # mean probability (temperature 1) of the teacher's top K, by the student
    "teacher_mass_in_k",  # ... and by the teacher itself
    "rollout_length",  # mean tokens
    "rollouts_empty",  # rollouts that ended at once
    "rollouts_truncated",  # rollouts that met the length bound
    "kl_to_base",  # mean KL(base || student) on the rollouts, temperature 1, base without the answer (probe.kl_to_base)
    "sampling_logprob_difference",  # mean |log p by sampler - by trainer| of the tokens; both at probed steps only
    "grad_norm",  # before clipping
    "loss_spike_streak",  # steps in a row with a loss above the bound of loss_spike.LossSpikeGuard
    "learning_rate",
    "tokens_per_second",  # tokens in the student's passes, prompts included, padding not
    "seconds",
    "rollout_share",  # of the seconds
    "teacher_share",
    "student_share",
    "anchor_share",
    "optimiser_share",  # all the rest: clipping, the optimiser's step, all-reduces of sums
    "model_flops_utilisation",  # speed.ModelFlops over the device's measured peak
]
SUMS = [
    "l_sft", "nll", "l_target_kl", "l_replay", "l_anchor", "anchor_weight", "l_kl", "lambda", "student_mass_in_k",
    "teacher_mass_in_k", "kl_to_base", "sampling_logprob_difference",
]  # fmt: skip


class StepMetrics:
    """What one optimiser step's row is made of. Sums are over all processes, times are this process's."""

    def __init__(self, rows: list[Encoded], device: torch.device, step: int) -> None:
        self.rows, self.device, self.step = rows, device, step
        self.rollouts: list[Rollout] = []  # one per row, where there is a teacher
        self.replayed: list[Encoded] = []  # general rows of this step
        self.anchored: list[Encoded] = []  # anchors of this step
        self.sums: dict[str, float] = defaultdict(float)
        self.clock: dict[str, float] = defaultdict(float)
        self.current: str | None = None  # the phase that is under way
        self.started = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of its body to the clock, and takes it off the phase around it."""
        started, outer = time.perf_counter(), self.current
        self.current = name
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - started
        self.clock[name] += seconds
        if outer is not None:
            self.clock[outer] -= seconds
        self.current = outer

    @property
    def loss(self) -> float:
        """L, the weighted sum of the terms that the method has."""
        terms = (
            ("lambda", "l_kl"), ("replay_weight", "l_replay"), ("anchor_weight", "l_anchor"),
            ("target_kl_weight", "l_target_kl"),
        )  # fmt: skip
        weighted = (self.sums.get(weight, 0.0) * self.sums.get(term, 0.0) for weight, term in terms)
        return sum(weighted, self.sums.get("l_sft", 0.0))

    def row(self, flops: ModelFlops, processes: int) -> dict[str, Any]:
        """The columns that the step itself knows; `flops` counts what the student needs on each of the processes."""
        seconds = time.perf_counter() - self.started
        learned = [*(self.rows if "l_sft" in self.sums else ()), *self.replayed, *self.anchored]
        tokens = sum(row.length for row in learned)
        work = flops.training(tokens, sum(len(row.completion_ids) for row in learned))
        row: dict[str, Any] = {"loss": self.loss, **{name: self.sums.get(name) for name in SUMS}}
        if self.rollouts:
            lengths = [len(rollout.tokens) for rollout in self.rollouts]
            sampled = sum(lengths)
            student = sum(len(row.prompt_ids) for row in self.rows) + sampled
            teacher = sum(len(row.teacher_prompt_ids or []) for row in self.rows) + sampled
            tokens += student
            work += flops.training(student, sampled) + flops.forward(teacher, sampled)
            work += flops.forward(student, sampled)  # the sampling
            weighted = self.sums["lambda"] * self.sums["l_kl"]
            row["ce_kl_ratio"] = self.sums["l_sft"] / weighted if weighted > 0 and "l_sft" in self.sums else None
            row["rollout_length"] = sampled / len(lengths)
            row["rollouts_empty"] = sum(rollout.empty for rollout in self.rollouts)
            row["rollouts_truncated"] = sum(rollout.truncated for rollout in self.rollouts)
        return row | {
            "tokens_per_second": tokens / seconds,
            "seconds": seconds,
            **{f"{name}_share": time_taken / seconds for name, time_taken in self.clock.items()},
            "student_share": self.clock["student"] / seconds,
            "optimiser_share": 1 - sum(self.clock.values()) / seconds,
            "model_flops_utilisation": flops.utilisation(work, seconds, processes),
        }

    def diverged(self, quantity: str, value: float, learning_rate: float, folder: Path) -> NoReturn:
        """Keep the batch in `folder` and stop: a loss or gradient is NaN, infinite, or ran away."""
        rollouts = [rollout.tokens for rollout in self.rollouts] or [[] for _ in self.rows]
        batch = folder / f"diverged-step-{self.step}.json"
        rows = [{**vars(row), "rollout": rollout} for row, rollout in zip(self.rows, rollouts, strict=True)]
        facts = {"step": self.step, "quantity": quantity, "value": str(value), "learning_rate": learning_rate}
        write_json(batch, facts | {"rows": rows})
        raise InputError(
            f"{quantity} is {value:.6g} at step {self.step}, rows {', '.join(row.id for row in self.rows)}. The batch "
            f"is kept in {batch}. Lower train.learning_rate or train.max_grad_norm, or look at these rows; earlier "
            "checkpoints are intact"
        )


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """A CSV file with a header; of no rows a header alone."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as table:
        writer = csv.DictWriter(table, columns)
        writer.writeheader()
        writer.writerows(rows)


def add_to_table(path: Path, step: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8", newline="") as table:
        csv.DictWriter(table, COLUMNS).writerow(step)
