"""The forgetting curve: what a training has learned of its domain and what it has lost, measured while it goes on.

Every `curve.steps` optimiser steps, and before the first and after the last one:

    domain_loss        mean over validation rows of the references' mean cross-entropy, nats per token
    domain_accuracy    share of them whose greedy answer is right (where `curve.answer_max_new_tokens` is set)
    kl_<set>           mean over answer positions of KL(base || student) on the base's top K, nats per token; of anchors
                       from which nothing is learned

No weight and no random number changes, so a training with the curve takes the same steps as one without.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback

from raft_tasks.artifacts import atomic_file, read_rows
from raft_tasks.chat import end_of_turn, stop_ids
from raft_tasks.checks import score_answer
from raft_tasks.decoding import decode, greedy
from raft_tasks.errors import InputError
from raft_tasks.sampling import longest_first
from raft_tasks.schemas import Anchor, Example, TrainingPair
from raft_tasks.training.anchor_logits import LOGITS, ROWS, AnchorLogits, encode_anchors
from raft_tasks.training.completion_forward import network_of
from raft_tasks.training.conversations import Encoded, Encoder
from raft_tasks.training.distributed import gather_objects
from raft_tasks.training.loss_terms import base_kl
from raft_tasks.training.step_metrics import write_table
from raft_tasks.training.transformers_rollouts import evaluation_mode

if TYPE_CHECKING:
    from raft_tasks.training.job import TrainingJob
    from raft_tasks.training.trainer import RaftTrainer

Point = dict[str, float]  # a row of curve.csv: step, seconds, and the measures above
BEST = "best-{}.safetensors"  # trained weights at the best step so far, beside the checkpoints


@dataclass(frozen=True)
class HeldOutAnchors:
    """Anchors of a set from which nothing is learned; `numbers` are their places in `stored`."""

    rows: list[Encoded]
    numbers: list[int]
    stored: AnchorLogits


@dataclass(frozen=True)
class CurveData:
    """What is measured, encoded."""

    tokenizer: PreTrainedTokenizerBase
    validation: list[tuple[Example, Encoded]]
    sets: dict[str, HeldOutAnchors]
    rows_left_out: int  # of validation, that cannot be encoded


def load_curve_data(job: TrainingJob, tokenizer: PreTrainedTokenizerBase, max_length: int) -> CurveData | None:
    """The data of the job's curve; None without one. Validation rows that cannot be encoded are counted.

    Raises:
        InputError: `train.curve` and the job's data do not agree, or there are no rows or anchors.
    """
    settings = job.train.curve
    if (settings is None) != (job.curve is None):
        raise InputError(f"train.curve is {settings!r}, and its data are {job.curve!r:.200}; expected both or neither")
    if settings is None or job.curve is None:
        return None
    encoder, end = Encoder(tokenizer, max_length, system=job.model.system), end_of_turn(tokenizer)
    as_drawn = replace(encoder, thinking=job.model.thinking)  # anchors; validation rows have no thoughts
    validation, chosen = [], job.curve.validation[: settings.rows]
    for row in chosen:
        pair = TrainingPair(id=row.id, question=row.question, answer=row.answer, history=row.history)
        encoded, problems = encoder.encode(pair, end)
        if not problems:
            validation.append((row, encoded))
    if not validation:
        raise InputError("train.curve: got no validation row of the domain that can be encoded; expected some")
    learned = {anchor.in_context for anchor in read_rows(job.anchors / ROWS, Anchor)} if job.anchors else set()
    sets = {}
    for name, folder in job.curve.sets.items():
        anchors = read_rows(folder / ROWS, Anchor)
        numbers = [i for i, anchor in enumerate(anchors) if anchor.in_context not in learned][: settings.rows]
        if not numbers:
            raise InputError(
                f"train.curve.sets: got {len(anchors)} anchors of {name!r}, each with the prompt of one that is "
                f"learned from; expected others: raise anchors.{name}.count"
            )
        rows = encode_anchors(anchors, as_drawn)
        stored = AnchorLogits.load(folder / LOGITS, rows)
        sets[name] = HeldOutAnchors([rows[number] for number in numbers], numbers, stored)
    return CurveData(tokenizer, validation, sets, len(chosen) - len(validation))


def forgetting(point: Mapping[str, float]) -> float:
    """The largest KL to the base among the sets."""
    return max(value for name, value in point.items() if name.startswith("kl_"))


def preference(point: Mapping[str, float], kl_max: float) -> tuple[bool, float, float]:
    """What is larger for the better of two checkpoints: domain first and then the smaller KL, where that is within the
    bound; the smaller KL where both are beyond."""
    kl, accuracy = forgetting(point), point["domain_accuracy"]
    return (True, accuracy, -kl) if kl <= kl_max else (False, -kl, accuracy)


def best_point(points: Sequence[Point], kl_max: float | None) -> Point:
    """The earliest of the best. The point before the first step is the base, which keeps every bound: no candidate."""
    trained = [point for point in points if point["step"]]
    return max(trained, key=partial(preference, kl_max=math.inf if kl_max is None else kl_max))


class ForgettingCurve(TrainerCallback):
    """Measures the curve, writes curve.csv, keeps the weights of the best checkpoint, and may end the training.

    Every process measures the same; the first one's numbers decide.
    """

    def __init__(self, trainer: RaftTrainer, job: TrainingJob, data: CurveData) -> None:
        assert job.train.curve is not None  # load_curve_data has checked both
        assert job.curve is not None
        self.trainer, self.settings, self.data = trainer, job.train.curve, data
        self.checks, self.path = job.curve.checks, job.output / "curve.csv"
        self.points: list[Point] = []

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.points = state["points"]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.points:
            self.measure(0)
        elif args.should_save:
            write_table(self.path, list(self.points[0]), self.points)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        if step % self.settings.steps and step < state.max_steps:
            return
        seconds = self.measure(step)
        self.trainer.metrics.started += seconds  # steps.csv tells the step's own time
        if self.settings.patience is not None:
            waited = sum(point["step"] > self.best["step"] for point in self.points)
            if waited >= self.settings.patience:
                # a run that resumed from a checkpoint of this step would train on
                control.should_training_stop, control.should_save = True, False
                state.max_steps = step  # this step is the last: a signal in it changes nothing

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A resumed training needs no weights but those of the best step until here."""
        if args.should_save and self.settings.checkpoint == "best" and len(self.points) > 1:  # one is the base's
            for path in self.trainer.folder.glob(BEST.format("*")):
                if path.name != BEST.format(self.best["step"]):
                    path.unlink()

    @property
    def best(self) -> Point:
        return best_point(self.points, self.settings.kl_max)

    def measure(self, step: int) -> float:
        """Add a point; returns the seconds that it took."""
        started, trainer = time.perf_counter(), self.trainer
        training = trainer.student.training
        trainer.student.eval()
        with torch.no_grad():
            measures = self.domain() | {f"kl_{name}": self.kl(anchors) for name, anchors in self.data.sets.items()}
        trainer.student.train(training)
        point = {"step": step, "seconds": time.perf_counter() - started, **measures}
        point = gather_objects([point], trainer.args.world_size)[0]
        wrong = [name for name, value in point.items() if not math.isfinite(value)]
        if wrong:
            raise InputError(f"train.curve: {', '.join(wrong)} at step {step} is not a finite number: {point}")
        self.points.append(point)
        if trainer.args.should_save:
            write_table(self.path, list(self.points[0]), self.points)
            if self.settings.checkpoint == "best" and step and self.best is point:
                self.save_weights(step)
        return time.perf_counter() - started

    def domain(self) -> dict[str, float]:
        rows = [row for _, row in self.data.validation]
        batches = [([rows[i] for i in batch], True) for batch in self.batches(rows)]
        losses = self.trainer.terms.row_losses(self.trainer.student, batches)
        measures = {"domain_loss": math.fsum(losses) / len(losses)}
        if self.settings.answer_max_new_tokens is not None:
            texts = self.answer([row.prompt_ids for row in rows], self.settings.answer_max_new_tokens)
            scores = [
                score_answer(text, row.answer, row.expected, row.details, self.checks)["acc"]
                for (row, _), text in zip(self.data.validation, texts, strict=True)
            ]
            measures["domain_accuracy"] = sum(scores) / len(scores)
        return measures

    def kl(self, anchors: HeldOutAnchors) -> float:
        terms, total = self.trainer.terms, 0.0
        count = sum(len(row.completion_ids) for row in anchors.rows)
        for batch in self.batches(anchors.rows):
            rows = [anchors.rows[i] for i in batch]
            base = anchors.stored.top_k_at([anchors.numbers[i] for i in batch], terms.device)
            total += terms.forward_completions(
                self.trainer.student,
                [row.prompt_ids for row in rows],
                [row.completion_ids for row in rows],
                partial(base_kl, base=base, count=count),
            ).item()
        return total

    def batches(self, rows: Sequence[Encoded]) -> list[list[int]]:
        return longest_first([row.length for row in rows], self.trainer.sizes.micro_batch_size)

    def answer(self, prompts: list[list[int]], max_new_tokens: int) -> list[str]:
        """Greedy answers."""
        student, tokenizer = self.trainer.student, self.data.tokenizer
        ends = stop_ids(tokenizer, network_of(student).generation_config.eos_token_id)
        with evaluation_mode(student), self.trainer.accelerator.autocast():
            answers = decode(student, prompts, greedy, ends, max_new_tokens)
        return [str(tokenizer.decode(tokens, skip_special_tokens=True)).strip() for tokens in answers]

    # --- the best checkpoint ---

    def trained(self) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in self.trainer.student.named_parameters() if tensor.requires_grad}

    def save_weights(self, step: int) -> None:
        from safetensors.torch import save_file

        weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.trained().items()}
        with atomic_file(self.trainer.folder / BEST.format(step)) as temporary:
            save_file(weights, temporary)

    def restore_best(self) -> None:
        """Give the student the weights of the best checkpoint, where the settings say so; in the first process."""
        if self.settings.checkpoint != "best" or not self.trainer.args.should_save:
            return
        from safetensors.torch import load_file

        weights = load_file(self.trainer.folder / BEST.format(int(self.best["step"])))
        with torch.no_grad():
            for name, tensor in self.trained().items():
                tensor.copy_(weights[name])

    def summary(self, seconds: float) -> dict[str, float | bool]:
        """Which checkpoint the model is, and what share of `seconds`, the steps' own, the measuring took."""
        point = self.best if self.settings.checkpoint == "best" else self.points[-1]
        return {
            "step": point["step"],
            "within_kl_max": self.settings.kl_max is None or forgetting(point) <= self.settings.kl_max,
            "rows_left_out": self.data.rows_left_out,
            "time_share": sum(point["seconds"] for point in self.points) / seconds,
        }
