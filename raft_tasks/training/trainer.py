"""One training loop for every row of the methods table, on transformers.Trainer.

An optimiser step of RAFT (Eqs. 6-12):
1. the student, as it is now, samples an answer z to every question of the step;
2. the frozen teacher keeps its top-K logits at the positions of z, the student is held to them: L_KL, backward;
3. the student learns the answers: L_SFT; lambda is settled from both losses; the gradient of L_KL, already there, is
   multiplied by lambda, and the backward pass of L_SFT adds to it.
That is the gradient of L_SFT + lambda L_KL, with the activations of only one of the two losses in memory at a time.
Methods without a teacher have step 3 alone, a method without a cross-entropy has no step 3.

The Trainer's batch is a whole optimiser step. Every process knows all its rows and passes its share through the model
in micro-batches; means are over the rows and tokens of the whole step, so that neither the size of a micro-batch nor
the number of processes changes what is learned. Gradients are exchanged in the step's last backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from raft_tasks.chat import stop_ids
from raft_tasks.config import Method, Train
from raft_tasks.errors import InputError
from raft_tasks.training.anchoring import AnchorBatches
from raft_tasks.training.balance import AnchorWeight, make_balance
from raft_tasks.training.batches import MicroBatch, StepSampler, micro_batches, replayed_rows
from raft_tasks.training.books import COLUMNS, StepBooks, add_to_table, start_table
from raft_tasks.training.checkpoints import mark_complete, not_written
from raft_tasks.training.conversations import Encoded
from raft_tasks.training.explosion import ExplosionGuard
from raft_tasks.training.interruption import Interruption
from raft_tasks.training.losses import (
    Head,
    TopK,
    lean_logits_at,
    lean_mean_cross_entropy,
    lean_top_k,
    top_k_forward_kl,
    trajectory_loss,
)
from raft_tasks.training.probe import StaleRollouts, base_top_k, drawn_log_probs, kl_to_base
from raft_tasks.training.rollouts import Rollout, Sampler, make_sampler, rollout_seed
from raft_tasks.training.scoring import Scoring, completion_mask, enable_scoring, network_of
from raft_tasks.training.speed import ModelFlops
from raft_tasks.training.teacher import Teacher
from raft_tasks.training.token_weights import WEIGHTS, Weigh

MASS_EVERY = 7  # where the student's mass in the top K costs a product with the head: a prime, so all phases are met


class RaftTrainer(Trainer):
    """The Trainer with the losses of one method. Batches are lists of `Encoded`, tensors are made where they are used.

    Args:
        student: is trained in place; a causal language model, with an adapter or not.
        teacher: None exactly where the method has none.
        rows: what is learned.
        tokenizer: names the tokens that end a turn.
        method: the row of the methods table.
        train: the sizes of batches.
        arguments: from `training_arguments`.
        fingerprint: of everything that determines this training; kept with its checkpoints.
        steps_csv: where to write one row per optimiser step.
        progress: called after every optimiser step with (steps done, steps in all, what else there is to say).
        sampler: of the rollouts; by default the one that the method names.
        replay: general rows; some of them go with every step where the method replays.
        anchors: None exactly where the method is held to none.
    """

    def __init__(
        self,
        student: Any,
        teacher: Teacher | None,
        rows: list[Encoded],
        tokenizer: PreTrainedTokenizerBase,
        method: Method,
        train: Train,
        arguments: TrainingArguments,
        fingerprint: str,
        steps_csv: Path,
        progress: Callable[[int, int, str], None] | None = None,
        sampler: Sampler | None = None,
        replay: Sequence[Encoded] = (),
        anchors: AnchorBatches | None = None,
    ) -> None:
        self.interruption = Interruption()
        enable_scoring(student)
        super().__init__(
            model=student,
            args=arguments,
            train_dataset=rows,
            data_collator=list,  # type: ignore[arg-type]  # a batch stays a list of rows
            callbacks=[Bookkeeping(self), self.interruption],
        )
        self.remove_callback(PrinterCallback)
        if self.is_deepspeed_enabled and (
            teacher is not None
            or replay
            or anchors is not None
            or train.micro_batch_size * arguments.world_size < train.batch_size
        ):
            raise InputError(
                "under DeepSpeed a step has one backward pass: expected a method without teacher, replay and anchors, "
                f"and train.batch_size {train.batch_size} within one micro-batch ({train.micro_batch_size}) of each of "
                f"{arguments.world_size} processes. train.launch.strategy fsdp2 trains everything"
            )
        self.sharding_is_set_up = False
        self.rows, self.distillation, self.sizes = rows, method.distillation, train
        self.fingerprint, self.steps_csv, self.progress = fingerprint, steps_csv, progress
        self.compute_dtype = torch.bfloat16 if arguments.bf16 else None
        self.balance = make_balance(method)
        self.learns_answers = method.sft
        self.weigh = WEIGHTS[method.token_weighting] if self.learns_answers else None
        self.replay, self.replay_share = replay, method.replay.share if method.replay else 0.0
        self.hold, self.anchors = method.anchors, anchors
        self.anchor_weight = AnchorWeight(method.anchors) if method.anchors else None
        self.student, self.teacher = student, teacher
        student.train()
        self.sampler = sampler
        if sampler is None and method.distillation is not None:
            network = network_of(student)
            self.sampler = make_sampler(
                method.distillation,
                student,
                stop_ids(tokenizer, network.generation_config.eos_token_id),
                self.accelerator.autocast,
                max(len(row.prompt) for row in rows) + method.distillation.rollout_max_new_tokens,
                arguments.process_index,
                Path(str(arguments.output_dir)) / "vllm",
            )
        self.ahead: dict[int, list[Rollout]] = {}  # rollouts of the current and coming steps, by step
        self.guard = ExplosionGuard(train.loss_spike)
        self.flops = ModelFlops(student, arguments.device, self.compute_dtype or torch.float32)
        self.own: list[MicroBatch] = []  # this process's share of the current optimiser step
        self.books = StepBooks([], arguments.device, 0)  # of the current optimiser step

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.fsdp_plugin_args is None:
            return
        from accelerate.state import PartialState
        from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

        state = self.accelerator.state
        if self.args.device.type == "cpu":  # accelerate shards on GPUs alone, but what it calls works here as well
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.is_fsdp_enabled = True
        if self.args.bf16:  # accelerate's own policy would round gradients and losses to bfloat16 too
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            state.fsdp_plugin.mixed_precision_policy = policy

    def get_train_dataloader(self) -> DataLoader:
        """One batch per optimiser step, the same in every process."""
        return StepLoader(self.rows, batch_sampler=self.order(), collate_fn=list)  # type: ignore[arg-type]  # lists will do

    def order(self) -> StepSampler:
        """Which rows each step learns."""
        lengths = [len(row.prompt) + len(row.answer) for row in self.rows]
        return StepSampler(lengths, self.sizes.batch_size, self.args.seed, self.sizes.group_by_length)

    # --- one optimiser step ---

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Leaves the gradient of the whole step's L; returns L."""
        rows: list[Encoded] = inputs
        self.books = StepBooks(rows, self.args.device, self.state.global_step + 1)
        lengths = [len(row.prompt) + len(row.answer) for row in rows]
        self.own = micro_batches(lengths, self.sizes.micro_batch_size, self.args.process_index, self.args.world_size)
        self.student.train()
        if self.teacher is not None:
            with self.books.phase("rollout"):
                fresh = self.state.global_step not in self.ahead
                if fresh:
                    self.sample(model)
                self.books.rollouts = self.ahead.pop(self.state.global_step)
            # of fresh rollouts alone: those of older weights are not the student's, as `rollout_steps` allows
            if (
                self.distillation
                and fresh
                and self.state.global_step % self.distillation.probe_steps < self.distillation.rollout_steps
            ):
                self.probe(model)
            if not self.learns_answers:  # else only after lambda has multiplied what is there
                self.anchor_backward(model)
            self.kl_backward(model)
        if self.learns_answers:
            with self.books.phase("student"):
                self.sft_backward(model)
        if self.anchor_weight is not None:
            self.anchor_weight.update(self.books.sums["l_sft"], self.books.sums["l_anchor"])
        return torch.tensor(self.books.loss, device=self.args.device)

    def sample(self, model: Any) -> None:
        """Step 1: one rollout for every row of this step and of the `rollout_steps` - 1 after it, within the epoch.

        Each process samples its share. A row's seed names the step that it is for, however early it is drawn.
        """
        assert self.sampler is not None and self.distillation is not None  # noqa: PT018  # there is a teacher
        now = self.state.global_step
        coming = self.order().after(now, self.distillation.rollout_steps - 1)
        steps = [self.books.rows, *([self.rows[row] for row in step] for step in coming)]
        wanted = [(now + number, row) for number, rows in enumerate(steps) for row in rows]
        order = sorted(range(len(wanted)), key=lambda i: -len(wanted[i][1].prompt))
        own = order[self.args.process_index :: self.args.world_size]
        seeds = [rollout_seed(self.args.seed, wanted[i][0], wanted[i][1].id) for i in own]
        with self.whole(model):
            drawn = self.sampler([wanted[i][1].prompt for i in own], seeds) if own else []
        rollouts = dict(self.gathered(list(zip(own, drawn, strict=True))))
        self.ahead = {now + number: [] for number in range(len(steps))}
        for i, (step, _) in enumerate(wanted):
            self.ahead[step].append(rollouts[i])

    def probe(self, model: Any) -> None:
        """KL to the base, and the sampler's log-probabilities against the trainer's; one micro-batch of each process.

        Raises:
            StaleRollouts: if the latter are further apart than `distillation.sampling_logprob_tolerance`.
        """
        assert self.distillation and self.teacher  # noqa: PT018  # there is a teacher
        settings, batch = self.distillation, self.own[0]
        prompts = [self.books.rows[row].prompt for row in batch.rows]
        drawn = self.drawn(batch)
        tokens = torch.tensor([token for row in drawn for token in row], device=self.args.device)
        sampled = [chance for row in batch.rows for chance in self.books.rollouts[row].log_probs]
        self.student.eval()  # as it was sampled: without dropout
        with torch.no_grad():
            with self.books.phase("teacher"):
                base = self.on_device(
                    self.scored(
                        partial(self.teacher, model),
                        prompts,
                        drawn,
                        lambda hidden, head: base_top_k(hidden, head, settings.top_k),
                    )
                )
            with self.books.phase("student"):
                kl, scored = self.scored(
                    model,
                    prompts,
                    drawn,
                    lambda hidden, head: (
                        kl_to_base(hidden, head, base),
                        drawn_log_probs(hidden, head, tokens, settings.rollout_temperature),
                    ),
                )
        self.student.train()
        gap = (scored - torch.tensor(sampled, device=scored.device)).abs().sum().item()
        self.add(batch, kl_to_base=kl.sum().item(), sampler_gap=gap, probed=float(len(tokens)))
        self.settle("kl_to_base", "sampler_gap", "probed")
        sums = self.books.sums
        sums["kl_to_base"] /= sums["probed"]
        sums["sampler_gap"] /= sums["probed"]
        if not sums["sampler_gap"] <= settings.sampling_logprob_tolerance:
            raise StaleRollouts(
                f"step {self.state.global_step + 1}: the log-probabilities that the sampler ({settings.sampler.kind}) "
                f"gave its tokens differ from the trainer's by {sums['sampler_gap']:.3g} on average, expected at most "
                f"distillation.sampling_logprob_tolerance {settings.sampling_logprob_tolerance}. The rollouts were not "
                "drawn from the student as it is now: stale weights in the sampler (a vLLM server that did not "
                "read them again), another temperature, or a much coarser precision; docs/guides/long-runs.md says more"
            )

    def kl_backward(self, model: Any) -> None:
        """Step 2: leave the gradient of L_KL (without lambda), not yet exchanged.

        Where it is all that is learned: the gradient of lambda L_KL, exchanged.
        """
        factor = 1.0
        if not self.learns_answers:
            assert self.balance is not None
            factor = self.books.sums["lambda"] = self.balance.update(0.0, 0.0)  # a number: config.Method checks
        for batch in self.own:
            with self.books.phase("teacher"):
                taught = self.taught(model, batch)
            last = not self.learns_answers and batch is self.own[-1]
            with self.books.phase("student"), nullcontext() if last else self.without_exchange(model):
                loss, student_mass, teacher_mass = self.kl_loss(model, batch, taught)
                self.add(
                    batch,
                    l_kl=loss.item(),
                    student_mass_in_k=student_mass.item(),
                    teacher_mass_in_k=teacher_mass.item(),
                )
                self.backward(batch, factor * loss)
        self.settle("l_kl", "student_mass_in_k", "teacher_mass_in_k")
        self.check_finite("L_KL", self.books.sums["l_kl"])

    def sft_backward(self, model: Any) -> None:
        """Step 3: settle lambda and leave the gradient of L_SFT + lambda L_KL, exchanged."""
        loss = None
        if self.balance is not None:  # lambda needs L_SFT of the whole step before its first backward pass
            alone = self.anchors is None and not self.replay_share
            if len(self.own) == 1 and alone:  # else whose backward pass DDP would take for this one's
                loss = self.sft_loss(model, self.own[0])
            else:
                with torch.no_grad():
                    for batch in self.own:
                        self.sft_loss(model, batch)
            self.settle("l_sft", "nll")
            self.check_finite("L_SFT", self.books.sums["l_sft"])
            self.books.sums["lambda"] = self.balance.update(self.books.sums["l_sft"], self.books.sums["l_kl"])
            gradients = [p.grad for p in self.student.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, self.books.sums["lambda"])
        if self.replay_share:
            self.replay_backward(model)
        self.anchor_backward(model)
        for batch in self.own:
            with nullcontext() if batch is self.own[-1] else self.without_exchange(model):
                known = self.balance is not None  # its part of the sums
                loss = self.sft_loss(model, batch, known) if loss is None else loss
                self.backward(batch, loss)
                loss = None
        if self.balance is None:
            self.settle("l_sft", "nll")
            self.check_finite("L_SFT", self.books.sums["l_sft"])

    def replay_backward(self, model: Any) -> None:
        """Leave the gradient of w L_replay, the general rows' plain cross-entropy, not yet exchanged.

        w = share / (1 - share): of the step's rows, and of L_SFT and L_replay together, `share` is replayed.
        """
        weight = self.replay_share / (1 - self.replay_share)
        number = max(1, round(self.sizes.batch_size * weight))
        chosen = replayed_rows(len(self.replay), number, self.args.seed, self.state.global_step)
        rows = self.books.replayed = [self.replay[row] for row in chosen]
        lengths = [len(row.prompt) + len(row.answer) for row in rows]
        process, processes = self.args.process_index, self.args.world_size
        for batch in micro_batches(lengths, self.sizes.micro_batch_size, process, processes):
            with self.without_exchange(model):
                loss, _ = self.answers_loss(model, batch, rows, None)
                self.add(batch, l_replay=loss.item())
                self.backward(batch, weight * loss)
        self.settle("l_replay")
        self.books.sums["replay_weight"] = weight
        self.check_finite("L_replay", self.books.sums["l_replay"])

    def anchor_backward(self, model: Any) -> None:
        """Leave the gradient of u L_anchor, not yet exchanged."""
        if self.anchors is None or self.anchor_weight is None:
            return
        weight = self.books.sums["anchor_weight"] = self.anchor_weight.value
        chosen = self.anchors.at(self.state.global_step)
        rows = self.books.anchored = [self.anchors.rows[anchor] for anchor in chosen]
        lengths = [len(row.prompt) + len(row.answer) for row in rows]
        positions = sum(len(row.answer) for row in rows)
        process, processes = self.args.process_index, self.args.world_size
        with self.books.phase("anchors"):
            for batch in micro_batches(lengths, self.sizes.micro_batch_size, process, processes):
                with self.without_exchange(model):
                    loss = self.anchor_loss(model, [chosen[row] for row in batch.rows], positions)
                    self.add(batch, l_anchor=loss.item())
                    self.backward(batch, weight * loss)
        self.settle("l_anchor")
        self.check_finite("L_anchor", self.books.sums["l_anchor"])

    def anchor_loss(self, model: Any, chosen: list[int], positions: int) -> Tensor:
        """These anchors' part of L_anchor, the mean over all `positions` of the optimiser step's."""
        assert self.anchors and self.hold  # noqa: PT018  # the caller has checked
        rows = [self.anchors.rows[anchor] for anchor in chosen]
        prompts, answers = [row.prompt for row in rows], [row.answer for row in rows]
        labels = torch.tensor([token for answer in answers for token in answer], device=self.args.device)
        known = self.anchors.taught(chosen, self.args.device) if self.hold.loss == "kl" else None
        if self.hold.loss == "kl" and known is None:
            known = self.taught_at(model, prompts, answers, None)

        def at_head(hidden: Tensor, head: Head) -> Tensor:
            if known is None:
                return lean_mean_cross_entropy(hidden, head, labels, positions)[0]
            own = lean_logits_at(hidden, head, known.ids, mass_every=len(hidden))
            return top_k_forward_kl(own.logits, known.logits, temperature=1.0).sum() / positions

        loss: Tensor = self.scored(model, prompts, answers, at_head)
        return loss

    def sft_loss(self, model: Any, batch: MicroBatch, known: bool = False) -> Tensor:
        """This micro-batch's part of L_SFT. It goes into the step's sums, unless it is `known` to them."""
        loss, nll = self.answers_loss(model, batch, self.books.rows, self.weigh)
        if not known:
            self.add(batch, l_sft=loss.item(), nll=nll.item())
        return loss

    def answers_loss(
        self, model: Any, batch: MicroBatch, rows: list[Encoded], weigh: Weigh | None
    ) -> tuple[Tensor, Tensor]:
        """This micro-batch's part of the mean over all answer tokens of `rows`, weighted and (no gradient) not."""
        own = [rows[row] for row in batch.rows]
        answers = [row.answer for row in own]
        labels = torch.tensor([token for answer in answers for token in answer], device=self.args.device)
        count = sum(len(row.answer) for row in rows)

        def at_head(hidden: Tensor, head: Head) -> tuple[Tensor, Tensor]:
            loss, per_token = lean_mean_cross_entropy(hidden, head, labels, count, weigh)
            return loss, per_token.sum() / count

        result: tuple[Tensor, Tensor] = self.scored(model, [row.prompt for row in own], answers, at_head)
        return result

    def taught(self, model: Any, batch: MicroBatch) -> TopK:
        """The teacher's top K at the positions of the rollouts (Eqs. 7-9), on the student's device."""
        prompts = [self.books.rows[row].teacher_prompt or [] for row in batch.rows]
        return self.taught_at(model, prompts, self.drawn(batch), self.tail_temperature)

    def taught_at(self, model: Any, prompts: list[list[int]], completions: list[list[int]], tail: float | None) -> TopK:
        """The teacher's top K at the positions of `completions`, on the student's device."""
        assert self.distillation and self.teacher  # noqa: PT018  # there is a teacher
        top_k = self.distillation.top_k
        return self.on_device(
            self.scored(
                partial(self.teacher, model),
                prompts,
                completions,
                lambda hidden, head: lean_top_k(hidden, head, top_k, tail),
            )
        )

    def on_device(self, taught: TopK) -> TopK:
        """The teacher's results where the student is."""
        ids, logits, log_mass, outside = (None if kept is None else kept.to(self.args.device) for kept in taught)
        assert ids is not None and logits is not None and log_mass is not None  # noqa: PT018
        return TopK(ids, logits, log_mass, outside)

    def kl_loss(self, model: Any, batch: MicroBatch, taught: TopK) -> tuple[Tensor, Tensor, Tensor]:
        """This micro-batch's part of L_KL (Eqs. 8-10) and of student's and teacher's mean mass in the top K."""
        assert self.distillation is not None
        temperature, drawn = self.distillation.temperature, self.drawn(batch)
        positions = sum(len(rollout.tokens) for rollout in self.books.rollouts)

        def at_head(hidden: Tensor, head: Head) -> tuple[Tensor, Tensor, Tensor]:
            own = lean_logits_at(hidden, head, taught.ids, self.tail_temperature, MASS_EVERY)
            tail = None if own.tail is None or taught.tail is None else (own.tail, taught.tail)
            flat = top_k_forward_kl(own.logits, taught.logits, temperature, tail)
            mask = completion_mask(drawn).to(flat.device)
            per_token = torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)
            loss = trajectory_loss(per_token, mask, temperature, samples=len(self.books.rows))
            student, teacher = (side.log_mass.exp().mean() * (len(flat) / positions) for side in (own, taught))
            return loss, student, teacher

        result: tuple[Tensor, Tensor, Tensor] = self.scored(
            model, [self.books.rows[row].prompt for row in batch.rows], drawn, at_head
        )
        return result

    @property
    def tail_temperature(self) -> float | None:
        assert self.distillation is not None
        return self.distillation.temperature if self.distillation.tail_bucket else None

    def drawn(self, batch: MicroBatch) -> list[list[int]]:
        return [self.books.rollouts[row].tokens for row in batch.rows]

    def scored(
        self, model: Any, prompts: list[list[int]], completions: list[list[int]], at_head: Callable[..., Any]
    ) -> Any:
        """One forward pass of student or teacher in the training's precision."""
        with self.accelerator.autocast():
            return model(scoring=Scoring(prompts, completions, at_head, self.compute_dtype))

    def backward(self, batch: MicroBatch, loss: Tensor) -> None:
        """Adds the gradient of a part of a loss. DDP and FSDP2 average over processes; parts are to be added."""
        self.accelerator.backward(loss * (self.args.world_size if batch.counts else 0.0))

    # --- several processes ---

    def without_exchange(self, model: Any) -> AbstractContextManager:
        """Passes within leave their gradients to a later one's exchange.

        FSDP2 does exchange: what it would have to keep until then is what sharding saves, a whole gradient.
        """
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    @contextmanager
    def whole(self, model: Any) -> Iterator[None]:
        """Sharded weights are whole within: gathered once for all tokens of a rollout, not for each."""
        shards = [layer for layer in model.modules() if isinstance(layer, FSDPModule)]
        if shards and not self.sharding_is_set_up:  # FSDP2 does that in a first pass through the outermost module
            row = self.books.rows[0]
            with torch.no_grad():
                self.scored(model, [row.prompt], [row.answer[:1]], lambda hidden, head: hidden.sum())
            self.sharding_is_set_up = True
        for shard in shards:
            shard.set_reshard_after_forward(False, recurse=False)
            shard.unshard()
        yield
        for shard in shards:
            shard.reshard()
            shard.set_reshard_after_forward(shard is not model, recurse=False)

    def gathered(self, items: list[Any]) -> list[Any]:
        """The items of all processes."""
        if self.args.world_size == 1:
            return items
        from accelerate.utils import gather_object

        return list(gather_object(items))

    def add(self, batch: MicroBatch, **values: float) -> None:
        """Parts of the step's sums, still of this process alone."""
        for name, value in values.items():
            self.books.sums[name] += value if batch.counts else 0.0

    def settle(self, *names: str) -> None:
        """Make these sums those of all processes."""
        if self.args.world_size > 1:
            sums = torch.tensor([self.books.sums[name] for name in names], device=self.args.device)
            torch.distributed.all_reduce(sums)
            self.books.sums |= dict(zip(names, sums.tolist(), strict=True))

    # --- books ---

    def check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            self.diverged(what, value)

    def diverged(self, what: str, value: float) -> NoReturn:
        with self.args.main_process_first(local=False):  # all come here at once, and keep the same file
            self.books.diverged(what, value, self._get_learning_rate(), Path(str(self.args.output_dir)))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise not_written(Path(str(self.args.output_dir)), error) from error

    def to_resume(self) -> dict[str, Any]:
        """What a checkpoint must hold beside what the Trainer keeps; JSON-ready."""
        return {
            "balance": None if self.balance is None else self.balance.state_dict(),
            "anchor_weight": None if self.anchor_weight is None else self.anchor_weight.state_dict(),
            "guard": self.guard.state_dict(),
            "ahead": {step: [vars(rollout) for rollout in rollouts] for step, rollouts in self.ahead.items()},
        }

    def resume(self, kept: dict[str, Any]) -> None:
        """Take up what `to_resume` gave."""
        if self.balance is not None:
            self.balance.load_state_dict(kept["balance"])
        if self.anchor_weight is not None:
            self.anchor_weight.load_state_dict(kept["anchor_weight"])
        self.guard.load_state_dict(kept["guard"])
        self.ahead = {
            int(step): [Rollout(**rollout) for rollout in rollouts] for step, rollouts in kept["ahead"].items()
        }

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Called by the Trainer after every optimiser step: complete the row, write it, tell the progress."""
        if "loss" not in logs:
            return  # the Trainer's closing remarks
        self.check_finite("the gradient's norm", logs["grad_norm"])
        row = self.books.row(self.flops, self.args.world_size)
        row |= {name: logs[name] for name in ("grad_norm", "learning_rate")}
        if self.guard.update(row["loss"]):
            self.diverged(f"the loss has been above its bound for {self.guard.streak} steps: it", row["loss"])
        row["explosion_streak"] = self.guard.streak
        # to the history that checkpoints keep, and to the Trainer's integrations
        super().log({name: value for name, value in row.items() if value is not None}, start_time)
        if not self.args.should_save:
            return  # one process keeps the books
        add_to_table(self.steps_csv, self.steps()[-1])
        if self.progress is not None:
            shown = f"loss {row['loss']:.4g}, {row['tokens_per_second']:.0f} tokens/s"
            self.progress(self.state.global_step, self.state.max_steps, shown)

    def steps(self) -> list[dict[str, Any]]:
        """One dictionary of COLUMNS per optimiser step so far, those before a resumption included."""
        return [{name: row.get(name) for name in COLUMNS} for row in self.state.log_history]

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the Trainer's estimate wants padded tensors


class StepLoader(DataLoader):
    """Passes the epoch on, from the Trainer to the sampler."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class Bookkeeping(TrainerCallback):
    """Starts steps.csv with the rows of a resumed training; marks checkpoints complete."""

    def __init__(self, trainer: RaftTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.should_save:
            start_table(self.trainer.steps_csv, self.trainer.steps())

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.accelerator.wait_for_everyone()  # every process has written its part
        if args.should_save:
            mark_complete(
                Path(args.output_dir) / f"checkpoint-{state.global_step}",
                self.trainer.fingerprint,
                self.trainer.to_resume(),
            )
