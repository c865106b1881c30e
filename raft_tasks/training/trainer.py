"""One training loop for every row of the methods table, on transformers.Trainer.

An optimiser step of RAFT (Eqs. 6-12):
1. the current student samples an answer z to every question of the step;
2. the frozen teacher's top-K logits at the positions of z give L_KL of the student; backward;
3. L_SFT of the answers; lambda follows from both losses; the gradient of L_KL, already there, is multiplied by lambda,
   and the backward pass of L_SFT adds to it.
That is the gradient of L_SFT + lambda L_KL, with the activations of only one of the two losses in memory at a time.
Methods without a teacher have step 3 alone, a method without a cross-entropy has no step 3.

The Trainer's batch is a whole optimiser step. Every process knows all its rows and passes its share through the model
in micro-batches; means are over the rows and tokens of the whole step, so that neither the size of a micro-batch nor
the number of processes changes what is learned. Gradients are all-reduced in the step's last backward pass.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments

from raft_tasks.chat import rollout_ends
from raft_tasks.errors import InputError
from raft_tasks.training.balance import AnchorWeight, make_balance
from raft_tasks.training.batches import MicroBatch, StepLoader, StepSampler, micro_batches, replayed_rows
from raft_tasks.training.checkpoints import CheckpointCallback, write_error
from raft_tasks.training.completion_forward import enable_completion_forward, network_of
from raft_tasks.training.conversations import Encoded
from raft_tasks.training.distributed import gather_objects, is_sharded, no_sync, set_up_fsdp2, unsharded
from raft_tasks.training.forgetting import ForgettingCurve
from raft_tasks.training.interruption import Interruption
from raft_tasks.training.job import TrainingJob
from raft_tasks.training.loss_spike import LossSpikeGuard
from raft_tasks.training.loss_terms import LossTerms, Sampled
from raft_tasks.training.preparation import TrainingData
from raft_tasks.training.rollout_buffer import RolloutBuffer, make_sampler
from raft_tasks.training.speed import ModelFlops
from raft_tasks.training.step_metrics import COLUMNS, Progress, StepMetrics, add_to_table
from raft_tasks.training.teacher import Teacher
from raft_tasks.training.token_weights import TOKEN_WEIGHTS, adaptive


class RaftTrainer(Trainer):
    """The Trainer with the losses of one method. Batches are lists of `Encoded`, tensors are made where they are used.

    `student` (a causal language model, with an adapter or not) is trained in place.
    """

    def __init__(
        self,
        job: TrainingJob,
        student: Any,
        teacher: Teacher | None,
        data: TrainingData,
        arguments: TrainingArguments,
        progress: Progress | None = None,
    ) -> None:
        self.interruption = Interruption()
        self.curve = ForgettingCurve(self, job, data.curve) if data.curve else None
        callbacks = CheckpointCallback(self, job.train.checkpoint_minutes), self.interruption, self.curve
        enable_completion_forward(student)
        super().__init__(
            model=student,
            args=arguments,
            train_dataset=data.rows,
            data_collator=list,  # type: ignore[arg-type]  # a batch stays a list of rows
            callbacks=[*filter(None, callbacks)],
        )
        self.remove_callback(PrinterCallback)
        method, self.sizes = job.method, job.train
        self.student, self.teacher = student, teacher
        self.target_logits = data.target_logits
        self.rows, self.replay, self.anchors = data.rows, data.replay, data.anchors
        if self.is_deepspeed_enabled:
            self.check_deepspeed()
        self.folder, self.fingerprint = Path(str(arguments.output_dir)), data.fingerprint
        self.steps_csv, self.progress = job.output / "steps.csv", progress
        self.distillation, self.balance = method.distillation, make_balance(method)
        self.learns_answers, self.weighting = method.sft, method.token_weighting
        self.token_weights = TOKEN_WEIGHTS.get(self.weighting)
        self.replay_share = method.replay.share if method.replay else 0.0
        self.anchor_weight = AnchorWeight(method.anchors) if method.anchors else None
        student.train()
        dtype = torch.bfloat16 if arguments.bf16 else None
        self.terms = LossTerms(method.distillation, teacher, arguments.device, dtype, self.accelerator.autocast)
        if method.distillation is not None:
            sampler = make_sampler(
                method.distillation,
                student,
                rollout_ends(data.tokenizer, network_of(student).generation_config.eos_token_id),
                self.accelerator.autocast,
                max(len(row.prompt_ids) for row in data.rows) + method.distillation.rollout_max_new_tokens,
                arguments.process_index,
                self.folder / "vllm",
            )
            self.rollout_buffer = RolloutBuffer(sampler, arguments.seed, arguments.process_index, arguments.world_size)
        self.sharding_is_set_up, self.guard = False, LossSpikeGuard(job.train.loss_spike)
        self.flops = ModelFlops(student, arguments.device, dtype or torch.float32)
        self.local_micro_batches: list[MicroBatch] = []  # this process's share of the current optimiser step
        self.metrics = StepMetrics([], arguments.device, 0)  # of the current optimiser step

    def check_deepspeed(self) -> None:
        sizes, processes = self.sizes, self.args.world_size
        one_pass = self.teacher is None and not self.replay and self.anchors is None
        if not one_pass or sizes.micro_batch_size * processes < sizes.batch_size:
            raise InputError(
                "under DeepSpeed a step has one backward pass: expected a method without teacher, replay and anchors, "
                f"and train.batch_size {sizes.batch_size} within one micro-batch ({sizes.micro_batch_size}) of each of "
                f"{processes} processes. train.launch.strategy fsdp2 trains everything"
            )

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.fsdp_plugin_args is not None:
            set_up_fsdp2(self)

    def get_train_dataloader(self) -> DataLoader:
        """One batch per optimiser step, the same in every process."""
        return StepLoader(self.rows, batch_sampler=self.batch_sampler(), collate_fn=list)  # type: ignore[arg-type]

    def batch_sampler(self) -> StepSampler:
        lengths = [row.length for row in self.rows]
        return StepSampler(lengths, self.sizes.batch_size, self.args.seed, self.sizes.group_by_length)

    # --- one optimiser step ---

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Leaves the gradient of the whole step's L; returns L."""
        rows: list[Encoded] = inputs
        step = self.state.global_step
        self.metrics = StepMetrics(rows, self.args.device, step + 1)
        self.local_micro_batches = self.split(rows)
        self.student.train()
        if self.distillation is not None:
            fresh = step not in self.rollout_buffer
            with self.metrics.phase("rollout"):
                if fresh:
                    self.fill_rollout_buffer(model)
                self.metrics.rollouts = self.rollout_buffer.take(step)
            # fresh rollouts only: those of older weights are not the student's, as `rollout_steps` allows
            if fresh and step % self.distillation.probe_steps < self.distillation.rollout_steps:
                self.probe(model)
            if not self.learns_answers:  # else only after lambda has multiplied the gradient of L_KL
                self.anchor_backward(model)
            self.kl_backward(model)
        if self.learns_answers:
            with self.metrics.phase("student"):
                self.sft_backward(model)
        if self.anchor_weight is not None:
            self.anchor_weight.update(self.metrics.sums.get("l_sft", 0.0), self.metrics.sums.get("l_anchor", 0.0))
        return torch.tensor(self.metrics.loss, device=self.args.device)

    def fill_rollout_buffer(self, model: Any) -> None:
        """Rollouts for this step and for the `rollout_steps` - 1 after it, within the epoch."""
        assert self.distillation is not None  # the caller has checked
        upcoming = self.batch_sampler().after(self.state.global_step, self.distillation.rollout_steps - 1)
        if is_sharded(model) and not self.sharding_is_set_up:  # FSDP2 does that in a pass through the outermost module
            row = self.metrics.rows[0]
            with torch.no_grad():
                self.terms.forward_completions(
                    model, [row.prompt_ids], [row.completion_ids[:1]], lambda hidden, head: hidden.sum()
                )
            self.sharding_is_set_up = True
        with unsharded(model):
            steps = [self.metrics.rows, *([self.rows[row] for row in step] for step in upcoming)]
            self.rollout_buffer.fill(self.state.global_step, steps)

    def probe(self, model: Any) -> None:
        """KL to the base, and the sampler's log-probabilities against the trainer's; one micro-batch of each process.

        Raises:
            InputError: if the latter are further apart than `distillation.sampling_logprob_tolerance`.
        """
        assert self.distillation is not None  # the caller has checked
        names = ("kl_to_base", "sampling_logprob_difference", "probed")
        batch = self.local_micro_batches[0]
        self.student.eval()  # as it was sampled: without dropout
        sums = self.terms.probe(model, self.sampled(batch), self.metrics.phase)
        self.student.train()
        self.accumulate(batch, **dict(zip(names, sums, strict=True)))
        self.all_reduce(*names)
        for name in names[:2]:
            self.metrics.sums[name] /= self.metrics.sums["probed"]
        difference, tolerance = self.metrics.sums[names[1]], self.distillation.sampling_logprob_tolerance
        if not difference <= tolerance:
            raise InputError(
                f"step {self.state.global_step + 1}: the log-probabilities of the sampler "
                f"({self.distillation.sampler.kind}) differ from the trainer's by {difference:.3g} on average, "
                f"expected at most distillation.sampling_logprob_tolerance {tolerance}. The rollouts were not sampled "
                "from the student as it is now: stale weights in the sampler (a vLLM server that did not read them "
                "again), another temperature, or a much coarser precision; see docs/guides/training.md"
            )

    def kl_backward(self, model: Any) -> None:
        """Step 2: leave the gradient of L_KL (without lambda), not yet all-reduced.

        Where it is all that is learned: the gradient of lambda L_KL, all-reduced.
        """
        names = ("l_kl", "student_mass_in_k", "teacher_mass_in_k")
        samples, positions = len(self.metrics.rows), sum(len(rollout.tokens) for rollout in self.metrics.rollouts)
        factor = 1.0
        if not self.learns_answers:
            assert self.balance is not None
            factor = self.metrics.sums["lambda"] = self.balance.update(0.0, 0.0)  # a number: config.Method checks
        for batch in self.local_micro_batches:
            sampled = self.sampled(batch)
            with self.metrics.phase("teacher"):
                top_k = self.terms.teacher_top_k(model, sampled)
            last = not self.learns_answers and batch is self.local_micro_batches[-1]
            with self.metrics.phase("student"), nullcontext() if last else no_sync(model):
                terms = self.terms.kl(model, sampled, top_k, samples, positions)
                self.accumulate(batch, **{name: term.item() for name, term in zip(names, terms, strict=True)})
                self.backward(batch, factor * terms[0])
        self.all_reduce(*names)
        self.check_finite("L_KL", self.metrics.sums["l_kl"])

    def sft_backward(self, model: Any) -> None:
        """Step 3: update lambda and leave the gradient of L_SFT + lambda L_KL, all-reduced."""
        if self.weighting == "talr":
            batches = [(self.rows_of(batch), batch.counts) for batch in self.local_micro_batches]
            self.token_weights = adaptive(gather_objects(self.terms.row_losses(model, batches), self.args.world_size))
        first = None  # a forward pass that is there already
        if self.balance is not None:  # lambda needs L_SFT of the whole step before its first backward pass
            if len(self.local_micro_batches) == 1 and self.anchors is None and not self.replay_share:
                first = self.sft_loss(model, self.local_micro_batches[0])
            else:  # DDP would take another term's backward pass for this forward pass's
                with torch.no_grad():
                    for batch in self.local_micro_batches:
                        self.sft_loss(model, batch)
            self.reduce_sft()
            sums = self.metrics.sums
            sums["lambda"] = self.balance.update(sums["l_sft"], sums["l_kl"])
            torch._foreach_mul_([p.grad for p in self.student.parameters() if p.grad is not None], sums["lambda"])
        self.replay_backward(model)
        self.anchor_backward(model)
        for batch in self.local_micro_batches:
            with nullcontext() if batch is self.local_micro_batches[-1] else no_sync(model):
                counted = self.balance is not None  # in the step's sums
                self.backward(batch, self.sft_loss(model, batch, counted) if first is None else first)
        if self.balance is None:
            self.reduce_sft()

    def sft_loss(self, model: Any, batch: MicroBatch, counted: bool = False) -> Tensor:
        """This micro-batch's part of L_SFT; it goes into the step's sums unless it is `counted` already."""
        rows, count = self.rows_of(batch), sum(len(row.completion_ids) for row in self.metrics.rows)
        base = None if self.target_logits is None else self.target_logits.top_k_at(rows, self.args.device)
        loss, nll, kl = self.terms.answers(model, rows, count, self.token_weights, base)
        if not counted:
            self.accumulate(
                batch, l_sft=loss.item(), nll=nll.item(), **({} if kl is None else {"l_target_kl": kl.item()})
            )
        return loss if kl is None or self.target_logits is None else loss + self.target_logits.weight * kl

    def rows_of(self, batch: MicroBatch) -> list[Encoded]:
        return [self.metrics.rows[row] for row in batch.rows]

    def reduce_sft(self) -> None:
        self.all_reduce("l_sft", "nll")
        if self.target_logits is not None:
            self.metrics.sums["target_kl_weight"] = self.target_logits.weight
            self.all_reduce("l_target_kl")
        self.check_finite("L_SFT", self.metrics.sums["l_sft"])

    def replay_backward(self, model: Any) -> None:
        """Leave the gradient of r L_replay, the general rows' plain cross-entropy, not yet all-reduced.

        r = share / (1 - share): of the step's rows, and of L_SFT and L_replay together, `share` is replayed.
        """
        if not self.replay_share or not self.replay:
            return
        weight = self.metrics.sums["replay_weight"] = self.replay_share / (1 - self.replay_share)
        number = max(1, round(self.sizes.batch_size * weight))
        chosen = replayed_rows(len(self.replay), number, self.args.seed, self.state.global_step)
        rows = self.metrics.replayed = [self.replay[row] for row in chosen]
        count = sum(len(row.completion_ids) for row in rows)

        def loss_of(batch: MicroBatch) -> Tensor:
            return self.terms.answers(model, [rows[row] for row in batch.rows], count, None)[0]

        self.extra_backward(model, "l_replay", weight, rows, loss_of)

    def anchor_backward(self, model: Any) -> None:
        """Leave the gradient of w L_anchor, not yet all-reduced."""
        anchors = self.anchors
        if anchors is None or self.anchor_weight is None:
            return
        weight = self.metrics.sums["anchor_weight"] = self.anchor_weight.value
        chosen = anchors.at(self.state.global_step)
        rows = self.metrics.anchored = [anchors.rows[anchor] for anchor in chosen]
        count = sum(len(row.completion_ids) for row in rows)

        def loss_of(batch: MicroBatch) -> Tensor:
            return self.terms.anchor(model, anchors, [chosen[row] for row in batch.rows], count)

        with self.metrics.phase("anchor"):
            self.extra_backward(model, "l_anchor", weight, rows, loss_of)

    def extra_backward(
        self, model: Any, name: str, weight: float, rows: Sequence[Encoded], loss_of: Callable[[MicroBatch], Tensor]
    ) -> None:
        """Leave the gradient of weight x a loss over `rows`, not yet all-reduced; the loss goes into the sums."""
        for batch in self.split(rows):
            with no_sync(model):
                loss = loss_of(batch)
                self.accumulate(batch, **{name: loss.item()})
                self.backward(batch, weight * loss)
        self.all_reduce(name)
        self.check_finite(name.replace("l_", "L_"), self.metrics.sums[name])

    def split(self, rows: Sequence[Encoded]) -> list[MicroBatch]:
        """This process's share of a step's rows."""
        lengths = [row.length for row in rows]
        return micro_batches(lengths, self.sizes.micro_batch_size, self.args.process_index, self.args.world_size)

    def sampled(self, batch: MicroBatch) -> Sampled:
        return Sampled(self.rows_of(batch), [self.metrics.rollouts[row] for row in batch.rows])

    def backward(self, batch: MicroBatch, loss: Tensor) -> None:
        """Adds the gradient of a part of a loss. DDP and FSDP2 average over processes; parts are to be added."""
        self.accelerator.backward(loss * (self.args.world_size if batch.counts else 0.0))

    # --- sums, logs, checkpoints ---

    def accumulate(self, batch: MicroBatch, **values: float) -> None:
        """Add parts to the step's sums, still of this process alone."""
        for name, value in values.items():
            self.metrics.sums[name] += value if batch.counts else 0.0

    def all_reduce(self, *names: str) -> None:
        """Make these sums those of all processes."""
        if self.args.world_size > 1:
            sums = torch.tensor([self.metrics.sums[name] for name in names], device=self.args.device)
            torch.distributed.all_reduce(sums)
            self.metrics.sums |= dict(zip(names, sums.tolist(), strict=True))

    def check_finite(self, quantity: str, value: float) -> None:
        if not math.isfinite(value):
            self.diverged(quantity, value)

    def diverged(self, quantity: str, value: float) -> NoReturn:
        with self.args.main_process_first(local=False):  # all come here at once, and write the same file
            self.metrics.diverged(quantity, value, self._get_learning_rate(), self.folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise write_error(self.folder, error) from error

    def parts(self) -> dict[str, Any]:
        """What has a state of its own, by its name in checkpoints."""
        parts: dict[str, Any] = {"balance": self.balance, "anchor_weight": self.anchor_weight, "guard": self.guard}
        parts |= {"curve": self.curve, "rollouts": getattr(self, "rollout_buffer", None)}
        return {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold beside what the Trainer keeps; JSON-ready."""
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self.parts().items():
            part.load_state_dict(state[name])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Called by the Trainer after every optimiser step: complete the row, write it, report progress."""
        if "loss" not in logs:
            return  # the Trainer's closing remarks
        self.check_finite("the gradient's norm", logs["grad_norm"])
        row = self.metrics.row(self.flops, self.args.world_size)
        row |= {name: logs[name] for name in ("grad_norm", "learning_rate")}
        if self.guard.update(row["loss"]):
            self.diverged(f"the loss has been above its bound for {self.guard.streak} steps: it", row["loss"])
        row["loss_spike_streak"] = self.guard.streak
        # to the history that checkpoints keep, and to the Trainer's integrations
        super().log({name: value for name, value in row.items() if value is not None}, start_time)
        if not self.args.should_save:
            return  # one process writes
        add_to_table(self.steps_csv, self.steps()[-1])
        if self.progress is not None:
            status = f"loss {row['loss']:.4g}, {row['tokens_per_second']:.0f} tokens/s"
            self.progress(self.state.global_step, self.state.max_steps, status)

    def steps(self) -> list[dict[str, Any]]:
        """One dictionary of COLUMNS per optimiser step so far, those before a resumption included."""
        return [{name: row.get(name) for name in COLUMNS} for row in self.state.log_history]

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the Trainer's estimate wants padded tensors
