"""One training loop for every row of the methods table, on transformers.Trainer.

An optimiser step of RAFT (Eqs. 6-12):
1. the student, as it is now, samples an answer z to every question of the step;
2. the frozen teacher keeps its top-K logits at the positions of z, the student is held to them: L_KL, backward;
3. the student learns the answers: L_SFT; lambda is settled from both losses; the gradient of L_KL, already there, is
   multiplied by lambda, and the backward pass of L_SFT adds to it.
That is the gradient of L_SFT + lambda L_KL, with the activations of only one of the two losses in memory at a time.
Methods without a teacher have step 3 alone.
"""

from __future__ import annotations

import csv
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from raft_tasks.artifacts import digest, write_json
from raft_tasks.errors import InputError
from raft_tasks.params import Distill, Method, Model, Train
from raft_tasks.schemas import TrainingPair
from raft_tasks.training.balance import make_balance
from raft_tasks.training.checkpoints import last_complete, mark_complete
from raft_tasks.training.conversations import Encoded, encode_pairs, end_of_turn, teacher_message, unknown_share
from raft_tasks.training.losses import (
    lean_cross_entropy,
    lean_logits_at,
    lean_top_k,
    masked_mean,
    top_k_forward_kl,
    trajectory_loss,
)
from raft_tasks.training.model_card import model_card
from raft_tasks.training.rollouts import GenerateSampler, Rollout, Sampler, step_seed
from raft_tasks.training.scoring import completion_mask, completion_states, output_head
from raft_tasks.training.weights import load_model, quiet, relative_distance, weights_digest

COLUMNS = [  # of steps.csv, one row per optimiser step; a cell is empty where a method has no such value
    "step",
    "epoch",
    "loss",  # L = L_SFT + lambda L_KL
    "l_sft",
    "l_kl",
    "lambda",
    "ce_kl_ratio",  # L_SFT / (lambda L_KL): near 1 under the EMA balance
    "student_mass_in_k",  # mean probability (temperature 1) of the teacher's top K, by the student
    "teacher_mass_in_k",  # ... and by the teacher itself
    "rollout_length",  # mean tokens
    "rollouts_empty",  # rollouts that ended at once
    "rollouts_truncated",  # rollouts that met the length bound
    "grad_norm",  # before clipping
    "learning_rate",
    "tokens_per_second",  # tokens in the student's passes, prompts included, padding not
    "seconds",
    "rollout_share",  # of the seconds; what is left of 1 is the optimiser
    "teacher_share",
    "student_share",
]


class TrainingDiverged(InputError):
    """A loss or gradient became NaN or infinite."""


def train_model(
    pairs: list[TrainingPair],
    model: Model,
    method: Method,
    train: Train,
    template_text: str,
    seed: int,
    output: Path,
    checkpoints: Path,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Train one model by one method; resume where an interrupted call with the same arguments stopped.

    Args:
        pairs: the questions and the answers that the method learns.
        model: the base model; student and teacher start as it.
        method: the row of the methods table.
        train: settings of the optimisation.
        template_text: the answer-conditioned teacher's user turn, Jinja over `question` and `answer`; other methods
            do not read it.
        seed: of batch order, rollouts and dropout.
        output: gets model/ (weights, tokenizer, model card) and steps.csv (COLUMNS). Complete only on return.
        checkpoints: folder of this training alone; the caller removes it after success.
        progress: called after every optimiser step with (steps done, steps in all).

    Returns:
        The summary: steps, sizes, time, final losses, lambda, distance of the weights to the base.

    Raises:
        ModelError, ConversationError, CheckpointError, InputError: before training, each saying what to do.
        TrainingDiverged: naming step and rows; the batch is kept as JSON in `checkpoints`.
    """
    # AdamW's steps vanish in bfloat16 weights, so the student is float32; train.precision says how it computes
    student, tokenizer = load_model(model, torch.float32)
    base_digest = weights_digest(student)
    data_digest = digest([pairs])
    distill = method.distill  # None exactly where there is no teacher
    if distill:
        check_top_k(distill, len(output_head(student).weight))
    rows = encode_pairs(
        pairs,
        tokenizer,
        max_length=min(train.max_length, student.config.get_text_config().max_position_embeddings),
        teacher=teacher_turn(method, template_text),
        rollout_max_new_tokens=distill.rollout_max_new_tokens if distill else 0,
    )
    template = template_text if method.teacher == "answer_conditioned" else None
    fingerprint = digest([model, method, train, template, seed, data_digest, base_digest])

    checkpoints.mkdir(parents=True, exist_ok=True)
    resumed = last_complete(checkpoints, fingerprint)
    output.mkdir(parents=True, exist_ok=True)
    arguments = training_arguments(train, len(rows), seed, checkpoints)
    teacher = deepcopy(student).to(getattr(torch, model.dtype)).to(arguments.device) if distill else None
    with quiet():
        trainer = RaftTrainer(
            student, teacher, rows, tokenizer, method, arguments, fingerprint, output / "steps.csv", progress
        )
        if resumed is not None and trainer.balance is not None:
            trainer.balance.load_state_dict(resumed[1]["balance"])
        trainer.train(resume_from_checkpoint=str(resumed[0]) if resumed else None)

    base = teacher if teacher is not None else load_model(model, torch.float32)[0]
    distance = relative_distance(student, base)
    answer_tokens = sum(len(row.answer) for row in rows)
    with quiet():
        student.to(getattr(torch, model.dtype)).save_pretrained(output / "model")
    tokenizer.save_pretrained(output / "model")
    card = model_card(
        model=model, method=method, train=train, seed=seed, rows=len(rows),
        answer_tokens=answer_tokens, data_digest=data_digest, base_digest=base_digest,
    )  # fmt: skip
    (output / "model" / "README.md").write_text(card, encoding="utf-8")
    return summary(trainer.steps(), student, rows, tokenizer, distance, answer_tokens * train.epochs)


def teacher_turn(method: Method, template_text: str) -> Callable[[TrainingPair], str] | None:
    """What the method's teacher sees as its user turn (Eq. 7)."""
    if method.teacher == "answer_conditioned":
        return teacher_message(template_text)
    if method.teacher == "plain":
        return lambda pair: pair.question
    return None


def check_top_k(distill: Distill, vocabulary: int) -> None:
    largest = vocabulary - 1 if distill.tail_bucket else vocabulary
    if distill.top_k > largest:
        raise InputError(
            f"distill.top_k is {distill.top_k}, expected at most {largest}: the model has {vocabulary} tokens"
            + (" (the tail bucket needs at least one token outside)" if distill.tail_bucket else "")
        )


def training_arguments(train: Train, rows: int, seed: int, checkpoints: Path) -> TrainingArguments:
    """The Trainer's settings; it prints nothing, reports nowhere and loads data in this process."""
    steps = math.ceil(rows / train.batch_size) * train.epochs
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=train.epochs,
        per_device_train_batch_size=train.micro_batch_size,
        gradient_accumulation_steps=train.batch_size // train.micro_batch_size,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(train.warmup_ratio * steps),
        max_grad_norm=train.max_grad_norm,
        bf16=train.precision == "bfloat16",
        save_strategy="steps",
        save_steps=train.checkpoint_steps,
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        log_level="error",
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        use_cache=True,  # else the saved model's config would switch the cache off for its users
        seed=seed,
        data_seed=seed,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # no DataParallel: it would multiply the batch by the number of GPUs
    return arguments


class RaftTrainer(Trainer):
    """The Trainer with the losses of one method. Batches are lists of `Encoded`, tensors are made where they are used.

    Args:
        student: is trained in place.
        teacher: frozen, in evaluation mode; None exactly where the method has none.
        rows: what is learned.
        tokenizer: names the tokens that end a turn.
        method: the row of the methods table.
        arguments: from `training_arguments`.
        fingerprint: of everything that determines this training; kept with its checkpoints.
        steps_csv: where to write one row per optimiser step.
        progress: called after every optimiser step with (steps done, steps in all).
        sampler: of the rollouts; by default transformers' `generate`.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        rows: list[Encoded],
        tokenizer: PreTrainedTokenizerBase,
        method: Method,
        arguments: TrainingArguments,
        fingerprint: str,
        steps_csv: Path,
        progress: Callable[[int, int], None] | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        super().__init__(
            model=student,
            args=arguments,
            train_dataset=rows,
            data_collator=list,  # type: ignore[arg-type]  # a batch stays a list of rows
            callbacks=[Bookkeeping(self)],
        )
        self.remove_callback(PrinterCallback)
        self.distill, self.fingerprint, self.steps_csv, self.progress = method.distill, fingerprint, steps_csv, progress
        self.compute_dtype = torch.bfloat16 if arguments.bf16 else None
        self.balance = make_balance(method)
        self.student = student
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        self.head = output_head(student)
        self.teacher_head = None if teacher is None else output_head(teacher)
        student.train()
        self.sampler = sampler
        if sampler is None and method.distill is not None:
            self.sampler = GenerateSampler(
                student,
                stop_ids(student, tokenizer),
                method.distill.rollout_temperature,
                method.distill.rollout_max_new_tokens,
                precision=self.accelerator.autocast,
            )
        self.batches: list[list[Encoded]] = []  # the micro-batches of the current optimiser step
        self.micro = 0  # index of the next one
        self.rollouts: list[Rollout] = []
        self.sums: dict[str, float] = {}  # what the current step's columns are made of
        self.clock: dict[str, float] = {}  # seconds by phase, of the current step
        self.started = 0.0

    # --- one optimiser step ---

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[list[Encoded]], None]:
        """The micro-batches of the next optimiser step: what the losses are averaged over."""
        self.batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.micro, self.rollouts = 0, []
        self.sums, self.clock = defaultdict(float), defaultdict(float)
        self.started = time.perf_counter()
        return self.batches, None

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Gradient of one micro-batch; the step's first call also does all of L_KL. Returns this part of L."""
        self.student.train()
        first, self.micro = self.micro == 0, self.micro + 1
        total = torch.zeros((), device=self.args.device)
        if first and self.teacher is not None:
            self.kl_backward()
        with self.phase("student"):
            loss = self.sft_loss(inputs)
            if first and self.balance is not None:
                if len(self.batches) == 1:
                    l_sft = loss.item()
                else:  # lambda needs L_SFT of the whole step before its first backward pass
                    with torch.no_grad():
                        l_sft = sum(self.sft_loss(batch).item() for batch in self.batches)
                self.check_finite("L_SFT", l_sft)
                self.sums["lambda"] = self.balance.update(l_sft, self.sums["l_kl"])
                gradients = [p.grad for p in self.student.parameters() if p.grad is not None]
                torch._foreach_mul_(gradients, self.sums["lambda"])
                total += self.sums["lambda"] * self.sums["l_kl"]
            self.sums["l_sft"] += loss.item()
            self.check_finite("L_SFT", self.sums["l_sft"])
            self.accelerator.backward(loss)
        return total + loss.detach()

    def kl_backward(self) -> None:
        """Steps 1 and 2: sample, score by teacher and student, leave the gradient of L_KL (without lambda)."""
        assert self.sampler is not None
        rows = self.step_rows()
        with self.phase("rollout"):
            self.rollouts = self.sampler(
                [row.prompt for row in rows], step_seed(self.args.seed, self.state.global_step)
            )
        rollouts = iter(self.rollouts)
        for batch in self.batches:
            loss = self.kl_loss(batch, [next(rollouts).tokens for _ in batch])
            with self.phase("student"):
                self.sums["l_kl"] += loss.item()
                self.check_finite("L_KL", self.sums["l_kl"])
                self.accelerator.backward(loss)

    def sft_loss(self, batch: list[Encoded]) -> Tensor:
        """This micro-batch's part of L_SFT: the mean over all answer tokens of the optimiser step."""
        answers = [row.answer for row in batch]
        labels = torch.tensor([token for answer in answers for token in answer], device=self.args.device)
        hidden = self.states(self.student, [row.prompt for row in batch], answers)
        per_token = lean_cross_entropy(hidden, self.head, labels)
        count = sum(len(row.answer) for row in self.step_rows())
        return masked_mean(per_token, torch.ones_like(per_token, dtype=torch.bool), count=count)

    def kl_loss(self, batch: list[Encoded], rollouts: list[list[int]]) -> Tensor:
        """This micro-batch's part of L_KL (Eqs. 7-10)."""
        assert self.teacher and self.teacher_head and self.distill  # noqa: PT018  # there is a teacher
        tail_temperature = self.distill.temperature if self.distill.tail_bucket else None
        with self.phase("teacher"), torch.no_grad():
            hidden = self.states(self.teacher, [row.teacher_prompt or [] for row in batch], rollouts)
            taught = lean_top_k(hidden, self.teacher_head, self.distill.top_k, tail_temperature)
        with self.phase("student"):
            hidden = self.states(self.student, [row.prompt for row in batch], rollouts)
            own = lean_logits_at(hidden, self.head, taught.ids, tail_temperature)
            tail = None if own.tail is None or taught.tail is None else (own.tail, taught.tail)
            flat = top_k_forward_kl(own.logits, taught.logits, self.distill.temperature, tail)
            mask = completion_mask(rollouts).to(flat.device)
            per_token = torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)
            loss = trajectory_loss(per_token, mask, self.distill.temperature, samples=len(self.rollouts))
            positions = sum(len(rollout.tokens) for rollout in self.rollouts)
            for name, side in (("student_mass_in_k", own), ("teacher_mass_in_k", taught)):
                everywhere = torch.ones_like(side.log_mass, dtype=torch.bool)
                self.sums[name] += masked_mean(side.log_mass.exp(), everywhere, count=positions).item()
        return loss

    def step_rows(self) -> list[Encoded]:
        """All rows of the current optimiser step."""
        return [row for batch in self.batches for row in batch]

    def states(self, model: PreTrainedModel, prompts: list[list[int]], completions: list[list[int]]) -> Tensor:
        """Hidden states [T, H] at the completions, in the training's precision."""
        with self.accelerator.autocast():
            hidden = completion_states(model, prompts, completions)
        return hidden if self.compute_dtype is None else hidden.to(self.compute_dtype)

    # --- books ---

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of its body to the clock."""
        begun = time.perf_counter()
        yield
        if self.args.device.type == "cuda":
            torch.cuda.synchronize(self.args.device)
        self.clock[name] += time.perf_counter() - begun

    def check_finite(self, what: str, value: float) -> None:
        """Stop, and keep the batch, if a loss is NaN or infinite."""
        if math.isfinite(value):
            return
        step = self.state.global_step + 1
        rows = self.step_rows()
        rollouts = [rollout.tokens for rollout in self.rollouts] or [[] for _ in rows]
        kept = Path(str(self.args.output_dir)) / f"diverged-step-{step}.json"
        write_json(
            kept,
            {
                "step": step,
                "what": what,
                "value": str(value),
                "learning_rate": self._get_learning_rate(),
                "rows": [{**vars(row), "rollout": rollout} for row, rollout in zip(rows, rollouts, strict=True)],
            },
        )
        raise TrainingDiverged(
            f"{what} is {value} at step {step}, rows {', '.join(row.id for row in rows)}. The batch is kept in {kept}. "
            "Lower train.learning_rate or train.max_grad_norm, or look at these rows; earlier checkpoints are intact"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Called by the Trainer after every optimiser step: complete the row, write it, tell the progress."""
        if "loss" not in logs:
            return  # the Trainer's closing remarks
        self.check_finite("the gradient's norm", logs["grad_norm"])
        seconds = time.perf_counter() - self.started
        rows = self.step_rows()
        scored = sum(len(row.prompt) + len(row.answer) for row in rows)
        row: dict[str, Any] = {
            "loss": self.sums["l_sft"],
            "l_sft": self.sums["l_sft"],
            "grad_norm": logs["grad_norm"],
            "learning_rate": logs["learning_rate"],
            "seconds": seconds,
            "student_share": self.clock["student"] / seconds,
        }
        if self.teacher is not None:
            lengths = [len(rollout.tokens) for rollout in self.rollouts]
            scored += sum(len(row.prompt) for row in rows) + sum(lengths)
            weighed = self.sums["lambda"] * self.sums["l_kl"]
            row |= {
                "loss": self.sums["l_sft"] + weighed,
                "l_kl": self.sums["l_kl"],
                "lambda": self.sums["lambda"],
                "ce_kl_ratio": self.sums["l_sft"] / weighed if weighed > 0 else None,
                "student_mass_in_k": self.sums["student_mass_in_k"],
                "teacher_mass_in_k": self.sums["teacher_mass_in_k"],
                "rollout_length": sum(lengths) / len(lengths),
                "rollouts_empty": sum(rollout.empty for rollout in self.rollouts),
                "rollouts_truncated": sum(rollout.truncated for rollout in self.rollouts),
                "rollout_share": self.clock["rollout"] / seconds,
                "teacher_share": self.clock["teacher"] / seconds,
            }
        row["tokens_per_second"] = scored / seconds
        super().log(row, start_time)  # to the history that checkpoints keep, and to the Trainer's integrations
        with self.steps_csv.open("a", encoding="utf-8", newline="") as table:
            csv.DictWriter(table, COLUMNS).writerow(self.steps()[-1])
        if self.progress is not None:
            self.progress(self.state.global_step, self.state.max_steps)

    def steps(self) -> list[dict[str, Any]]:
        """One dictionary of COLUMNS per optimiser step so far, those before a resumption included."""
        return [{name: row.get(name) for name in COLUMNS} for row in self.state.log_history]

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the Trainer's estimate wants padded tensors


class Bookkeeping(TrainerCallback):
    """Starts steps.csv with the rows of a resumed training; marks checkpoints complete."""

    def __init__(self, trainer: RaftTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with self.trainer.steps_csv.open("w", encoding="utf-8", newline="") as table:
            writer = csv.DictWriter(table, COLUMNS)
            writer.writeheader()
            writer.writerows(self.trainer.steps())

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        balance = self.trainer.balance
        mark_complete(
            Path(args.output_dir) / f"checkpoint-{state.global_step}",
            self.trainer.fingerprint,
            {"balance": None if balance is None else balance.state_dict()},
        )


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a rollout: the template's end of turn and whatever model and tokenizer call the end."""
    ends = {end_of_turn(tokenizer), tokenizer.eos_token_id}
    configured = model.generation_config.eos_token_id
    ends |= set(configured) if isinstance(configured, list) else {configured}
    return sorted(token for token in ends if token is not None)


def summary(
    steps: list[dict[str, Any]],
    student: PreTrainedModel,
    rows: list[Encoded],
    tokenizer: PreTrainedTokenizerBase,
    distance: dict[str, float],
    answer_tokens: int,
) -> dict[str, Any]:
    """What train_model returns: numbers only, JSON-ready."""
    lambdas = [row["lambda"] for row in steps if row["lambda"] is not None]
    last = steps[-1]
    return {
        "steps": len(steps),
        "seconds": sum(row["seconds"] for row in steps),
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
        "rows": len(rows),
        "answer_tokens_trained": answer_tokens,
        "unknown_prompt_tokens": unknown_share(rows, tokenizer.unk_token_id),
        "final": {name: last[name] for name in ("loss", "l_sft", "l_kl", "ce_kl_ratio")},
        "lambda": (
            {"min": min(lambdas), "mean": sum(lambdas) / len(lambdas), "max": max(lambdas), "last": lambdas[-1]}
            if lambdas
            else None
        ),
        "distance": distance,
    }
