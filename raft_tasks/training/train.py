"""One training from its settings to a saved model: checks, student and teacher, resumption, the summary."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from raft_tasks.artifacts import digest, digest_path
from raft_tasks.chat import stop_ids
from raft_tasks.config import Distillation, Method, Model, Train
from raft_tasks.errors import InputError
from raft_tasks.schemas import TrainingPair
from raft_tasks.training.adapters import STUDENT, with_adapter, without_deprecations
from raft_tasks.training.anchoring import AnchorBatches, load_anchors
from raft_tasks.training.checkpoints import last_complete
from raft_tasks.training.conversations import Encoded, encode_pairs, teacher_message, unknown_share
from raft_tasks.training.interruption import TrainingInterrupted
from raft_tasks.training.memory import Shape, explain, is_out_of_memory
from raft_tasks.training.model_card import model_card
from raft_tasks.training.scoring import output_head
from raft_tasks.training.teacher import Teacher, WithoutAdapter, frozen_copy
from raft_tasks.training.trackers import report_to
from raft_tasks.training.trainer import RaftTrainer
from raft_tasks.training.weights import load_model, quiet, relative_distance, weights_digest


def train_model(
    pairs: list[TrainingPair],
    model: Model,
    method: Method,
    train: Train,
    template_text: str,
    seed: int,
    output: Path,
    checkpoints: Path,
    progress: Callable[[int, int, str], None] | None = None,
    trackers: Sequence[str] = (),
    tracking: Path = Path(),
    anchors: Path | None = None,
) -> dict[str, Any] | None:
    """Train one model by one method; resume where an interrupted call with the same arguments stopped.

    Args:
        pairs: the questions and the answers that the method learns.
        model: the base model; student and teacher start as it.
        method: the row of the methods table.
        train: settings of the optimisation.
        template_text: the answer-conditioned teacher's user turn, Jinja over `question` and `answer`; other methods
            do not read it.
        seed: of batch order, rollouts and dropout.
        output: gets model/ (weights, tokenizer, model card; a LoRA adapter is merged into the weights and also lies
            in model/adapter) and steps.csv (COLUMNS). Complete only on return.
        checkpoints: folder of this training alone; the caller removes it after success.
        progress: called after every optimiser step with (steps done, steps in all, what else there is to say).
        trackers: names of `trackers.report_to`.
        tracking: the folder of TensorBoard's files, for this training alone; its last two parts name the run.
        anchors: folder of the set that the method names; None where it names none.

    Returns:
        The summary: steps, sizes, time, final losses, lambda, distance of the weights to the base. Of several
        processes only the first writes and returns something.

    Raises:
        ModelError, ChatError, ConversationError, CheckpointError, InputError: before training, each saying what to do.
        CheckpointError: in training too, if a checkpoint cannot be written.
        TrainingDiverged: naming step and rows; the batch is kept as JSON in `checkpoints`.
        OutOfMemory: naming the settings that would fit.
        StaleRollouts: if rollouts are not drawn from the student as it is.
        TrainingInterrupted: after SIGTERM or SIGINT, when a checkpoint is complete.
    """
    network, tokenizer, rows, replay, held = prepare(pairs, model, method, train, template_text, seed, anchors)
    base_digest = weights_digest(network)
    data_digest = digest([pairs])
    template = template_text if method.teacher == "answer_conditioned" else None
    anchors_digest = None if anchors is None else digest_path(anchors)
    fingerprint = digest([model, method, train, template, seed, data_digest, base_digest, anchors_digest])

    arguments = training_arguments(train, len(rows), seed, checkpoints)
    report_to(arguments, trackers, tracking)
    checkpoints.mkdir(parents=True, exist_ok=True)
    with arguments.main_process_first():  # it removes what was cut short
        resumed = last_complete(checkpoints, fingerprint)
    output.mkdir(parents=True, exist_ok=True)
    student, teacher = make_pair(network, model, method, seed, arguments)
    if train.gradient_checkpointing:
        with without_deprecations():
            network.gradient_checkpointing_enable({"use_reentrant": False})
    with quiet():
        trainer = RaftTrainer(
            student,
            teacher,
            rows,
            tokenizer,
            method,
            train,
            arguments,
            fingerprint,
            output / "steps.csv",
            progress,
            replay=replay,
            anchors=held,
        )
        if resumed is not None:
            trainer.resume(resumed[1])
        shape = Shape.of(student, model.dtype)  # before it is sharded
        try:
            trainer.train(resume_from_checkpoint=str(resumed[0]) if resumed else None)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            through = [*rows, *replay, *(held.rows if held else [])]
            raise explain(error, arguments.device, shape, through, method, train) from error
        finally:
            trainer.interruption.watch.restore()
    done, steps, signal = trainer.state.global_step, trainer.state.max_steps, trainer.interruption.received
    if signal and done < steps:
        raise TrainingInterrupted(
            f"stopped by {signal} after step {done} of {steps}; its checkpoint is complete, the next run goes on there"
        )

    weights = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None  # by all together
    if not arguments.should_save:
        return None
    base = load_model(model, torch.float32)[0]
    if weights is not None:  # the student is in shards
        student = make_pair(load_model(model, torch.float32)[0], model, method, seed, arguments)[0]
        student.load_state_dict(weights)
    trainable = sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
    with quiet():
        if method.lora is not None:
            student.save_pretrained(output / "model" / "adapter", selected_adapters=[STUDENT])
            student = student.float().merge_and_unload(adapter_names=[STUDENT])
        distance = relative_distance(student, base)
        generation = student.generation_config
        generation.eos_token_id = stop_ids(tokenizer, generation.eos_token_id)  # whoever generates with it stops there
        student.to(getattr(torch, model.dtype)).save_pretrained(output / "model")
    tokenizer.save_pretrained(output / "model")
    answer_tokens = sum(len(row.answer) for row in rows)
    card = model_card(
        model=model, method=method, train=train, seed=seed, rows=len(rows),
        answer_tokens=answer_tokens, data_digest=data_digest, base_digest=base_digest,
    )  # fmt: skip
    (output / "model" / "README.md").write_text(card, encoding="utf-8")
    return summary(
        trainer.steps(), student, trainable, rows, tokenizer, distance, answer_tokens * train.epochs, len(replay)
    )


def make_pair(
    network: PreTrainedModel, model: Model, method: Method, seed: int, arguments: TrainingArguments
) -> tuple[Any, Teacher | None]:
    """Student and teacher before the first step; `network` becomes the student."""
    if method.lora is None:
        if method.distillation is None:
            return network, None
        return network, frozen_copy(network, method.distillation, model.dtype, arguments.device)
    own_adapter = method.distillation.teacher_adapter if method.distillation else None
    torch.manual_seed(seed)  # of the adapter's first weights
    student = with_adapter(network, method.lora, own_adapter)
    return student, None if method.distillation is None else WithoutAdapter(own_adapter is not None)


def prepare(
    pairs: list[TrainingPair],
    model: Model,
    method: Method,
    train: Train,
    template_text: str,
    seed: int,
    anchors: Path | None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[Encoded], list[Encoded], AnchorBatches | None]:
    """The base model as it will be trained, its tokenizer, the encoded rows, those that are replayed, the anchors.

    Arguments are `train_model`'s.
    """
    # AdamW's steps vanish in bfloat16 weights, so what is trained is float32; train.precision says how it computes
    network, tokenizer = load_model(model, torch.float32 if method.lora is None else getattr(torch, model.dtype))
    distillation = method.distillation  # None exactly where there is no teacher
    if distillation:
        check_top_k(distillation, len(output_head(network).weight))
    limit = min(train.max_length, network.config.get_text_config().max_position_embeddings)
    replayed = [pair for pair in pairs if pair.replay]
    if (method.replay is None) != (not replayed):
        raise InputError(
            f"got {len(replayed)} row(s) to replay with replay {method.replay!r}; expected some exactly where the "
            "method replays: put rows into its files, or set `replay` to null"
        )
    replay = encode_pairs(replayed, tokenizer, limit, system=model.system, too_long=train.too_long) if replayed else []
    rows = encode_pairs(
        [pair for pair in pairs if not pair.replay],
        tokenizer,
        max_length=limit,
        teacher=teacher_turn(method, template_text),
        rollout_max_new_tokens=distillation.rollout_max_new_tokens if distillation else 0,
        system=model.system,
        too_long=train.too_long,
    )
    held = load_anchors(anchors, method.anchors, tokenizer, limit, model.system, seed) if method.anchors else None
    return network, tokenizer, rows, replay, held


def teacher_turn(method: Method, template_text: str) -> Callable[[TrainingPair], str] | None:
    """What the method's teacher sees as its user turn (Eq. 7)."""
    if method.teacher == "answer_conditioned":
        return teacher_message(template_text)
    if method.teacher == "plain":
        return lambda pair: pair.question
    return None


def check_top_k(distillation: Distillation, vocabulary: int) -> None:
    largest = vocabulary - 1 if distillation.tail_bucket else vocabulary
    if distillation.top_k > largest:
        raise InputError(
            f"distillation.top_k is {distillation.top_k}, expected at most {largest}: the model has {vocabulary} tokens"
            + (" (the tail bucket needs at least one token outside)" if distillation.tail_bucket else "")
        )


def training_arguments(train: Train, rows: int, seed: int, checkpoints: Path) -> TrainingArguments:
    """The Trainer's settings; it prints nothing, reports nowhere and loads data in this process."""
    steps = math.ceil(rows / train.batch_size) * train.epochs
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=train.epochs,
        per_device_train_batch_size=train.batch_size,  # the Trainer's batch is a step; RaftTrainer divides it
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
        log_level_replica="error",
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        ddp_backend=None if train.launch.processes == 1 or torch.cuda.is_available() else "gloo",
        ddp_find_unused_parameters=False,
        fsdp=True if train.launch.strategy == "fsdp2" else None,  # type: ignore[arg-type]  # it is so documented
        fsdp_config={"version": 2, "reshard_after_forward": True, "state_dict_type": "SHARDED_STATE_DICT"},
        use_cache=True,  # else the saved model's config would switch the cache off for its users
        seed=seed,
        data_seed=seed,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # no DataParallel: it would multiply the batch by the number of GPUs
    return arguments


def summary(
    steps: list[dict[str, Any]],
    student: PreTrainedModel,
    trainable: int,
    rows: list[Encoded],
    tokenizer: PreTrainedTokenizerBase,
    distance: dict[str, float],
    answer_tokens: int,
    replay_rows: int,
) -> dict[str, Any]:
    """What train_model returns: numbers only, JSON-ready."""
    lambdas = [row["lambda"] for row in steps if row["lambda"] is not None]
    last = steps[-1]
    return {
        "steps": len(steps),
        "seconds": sum(row["seconds"] for row in steps),
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
        "trainable_parameters": trainable,
        "rows": len(rows),
        "answer_tokens_trained": answer_tokens,
        "replay_rows": replay_rows,  # general rows to draw from
        "rows_cut": sum(row.cut > 0 for row in rows),  # answers that train.too_long shortened
        "answer_tokens_cut": sum(row.cut for row in rows),  # of one epoch
        "unknown_prompt_tokens": unknown_share(rows, tokenizer.unk_token_id),
        "final": {name: last[name] for name in ("loss", "l_sft", "nll", "l_replay", "l_anchor", "l_kl", "ce_kl_ratio")},
        "lambda": (
            {"min": min(lambdas), "mean": sum(lambdas) / len(lambdas), "max": max(lambdas), "last": lambdas[-1]}
            if lambdas
            else None
        ),
        "distance": distance,
    }
