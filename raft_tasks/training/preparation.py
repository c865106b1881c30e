"""Before the first step: the base model, the encoded rows, student and teacher, the Trainer's settings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from raft_tasks.adapter_folder import without_peft_warnings
from raft_tasks.artifacts import digest, digest_path
from raft_tasks.config import Distillation, resolved
from raft_tasks.errors import InputError
from raft_tasks.model_loading import load_context_length, load_model
from raft_tasks.training.adapters import with_adapter
from raft_tasks.training.anchor_logits import AnchorBatches, TargetLogits, load_anchors
from raft_tasks.training.completion_forward import output_head
from raft_tasks.training.conversations import Encoded, Encoder, teacher_turn
from raft_tasks.training.divergence import weights_digest
from raft_tasks.training.forgetting import CurveData, load_curve_data
from raft_tasks.training.injection import load_injected
from raft_tasks.training.job import TrainingJob
from raft_tasks.training.teacher import Teacher, frozen_copy, without_adapter


@dataclass(frozen=True)
class TrainingData:
    """What goes through the student, encoded."""

    tokenizer: PreTrainedTokenizerBase
    rows: list[Encoded]
    replay: Sequence[Encoded] = ()  # general rows; some of them go with every step where the method replays
    anchors: AnchorBatches | None = None  # None exactly where the method has none
    target_logits: TargetLogits | None = None  # the same
    curve: CurveData | None = None  # the same, of train.curve
    fingerprint: str = ""  # of everything that determines this training; kept with its checkpoints
    base_digest: str = ""  # of the base's weights

    @property
    def all_rows(self) -> list[Encoded]:
        return [*self.rows, *self.replay, *(self.anchors.rows if self.anchors else [])]


def prepare(job: TrainingJob) -> tuple[PreTrainedModel, TrainingData]:
    """The base model as it will be trained, and what it will learn."""
    method, settings = job.method, job.train
    if (method.mixing is not None) != job.mixed:
        raise InputError(
            f"got {'mixed' if job.mixed else 'unmixed'} pairs with mixing {method.mixing!r}; expected mixed ones "
            "exactly where the method mixes: generation.mixing.mix_answers makes them"
        )
    if (method.injection is None) != (job.injected is None):
        raise InputError(
            f"got injection {method.injection!r} with the injected weights {job.injected}; expected some exactly where "
            "the method injects: training.injection.inject makes them"
        )
    network, tokenizer = load_model(job.model, base_dtype(job))
    distillation = method.distillation
    if distillation:
        check_top_k(distillation, len(output_head(network).weight))
    limit = min(settings.max_length, load_context_length(job.model))
    replayed = [pair for pair in job.pairs if pair.replay]
    from_production = method.replay is not None and method.replay.files == "production"  # at first there is none
    if (method.replay is None) != (not replayed) and not from_production:
        raise InputError(
            f"got {len(replayed)} row(s) to replay with replay {method.replay!r}; expected some exactly where the "
            "method replays: put rows into its files, or set `replay` to null"
        )
    plain = Encoder(tokenizer, limit, system=job.model.system, thinking=job.model.thinking)
    replay = replace(plain, too_long=settings.too_long)(replayed) if replayed else []
    new_tokens = distillation.rollout_max_new_tokens if distillation else 0
    teacher = teacher_turn(method, job.template_text)
    encoder = replace(plain, teacher=teacher, rollout_max_new_tokens=new_tokens, too_long=settings.too_long)
    rows = encoder([pair for pair in job.pairs if not pair.replay])
    anchors = None
    if method.anchors:
        anchors = load_anchors(job.anchors, method.anchors, plain, job.seed)
    curve = load_curve_data(job, tokenizer, limit)
    base_digest = weights_digest(network)
    return network, TrainingData(
        tokenizer, rows, replay, anchors, None, curve, fingerprint(job, base_digest), base_digest
    )


def base_dtype(job: TrainingJob) -> torch.dtype:
    """Of the base's weights in training: AdamW's steps vanish in bfloat16, so what is trained is float32.

    `train.precision` says how it computes.
    """
    return torch.float32 if job.method.lora is None else getattr(torch, job.model.dtype)


def with_target_logits(network: Any, data: TrainingData, job: TrainingJob, device: Any) -> TrainingData:
    """The data with the base's logits at the learned answers, where the method needs them.

    One pass of all rows through `network`, the base as it is before the first step, on `device` and in each process.
    """
    settings = job.method.target_kl
    if settings is None:
        return data
    origin = network.device
    network.to(device)
    logits = TargetLogits(network, data.rows, settings, job.train.micro_batch_size)
    network.to(origin)
    return replace(data, target_logits=logits)


def fingerprint(job: TrainingJob, base_digest: str) -> str:
    """Of everything that determines the training."""
    template = job.template_text if job.method.teacher == "answer_conditioned" else None
    anchors = None if job.anchors is None else digest_path(job.anchors)
    parts = [resolved(job.model), job.method, job.train, template, job.seed, digest([job.pairs]), base_digest, anchors]
    if job.injected is not None:
        parts.append(digest_path(job.injected))
    return digest([*parts, *job.input_digests])


def check_top_k(distillation: Distillation, vocabulary: int) -> None:
    largest = vocabulary - 1 if distillation.tail_bucket else vocabulary
    if distillation.top_k > largest:
        raise InputError(
            f"distillation.top_k is {distillation.top_k}, expected at most {largest}: the model has {vocabulary} tokens"
            + (" (the tail bucket needs at least one token outside)" if distillation.tail_bucket else "")
        )


def make_pair(network: PreTrainedModel, job: TrainingJob, device: torch.device) -> tuple[Any, Teacher | None]:
    """Student and teacher before the first step; `network` becomes the student."""
    distillation = job.method.distillation
    student: Any = network
    teacher: Teacher | None = None
    if job.method.osf is not None and job.train.launch.strategy == "fsdp2":
        raise InputError(
            "osf with train.launch.strategy fsdp2: expected none or ddp: peft projects the gradients of whole "
            "matrices, and would leave those of shards as they are"
        )
    if job.method.adapter is not None:
        teacher_adapter = distillation.teacher_adapter if distillation else None
        torch.manual_seed(job.seed)  # of the adapter's first weights
        student = with_adapter(network, job.method.adapter, teacher_adapter)
        teacher = partial(without_adapter, with_adapter=teacher_adapter is not None) if distillation else None
    elif distillation is not None:
        teacher = frozen_copy(network, distillation, job.model.dtype, device)
    if job.injected is not None:  # after the teacher, which is the base
        load_injected(student, job)
    if job.train.gradient_checkpointing:
        with without_peft_warnings():
            network.gradient_checkpointing_enable({"use_reentrant": False})
    return student, teacher


def training_arguments(job: TrainingJob, rows: int) -> TrainingArguments:
    """The Trainer's settings; it prints nothing, reports nowhere and loads data in this process."""
    train, seed = job.train, job.seed
    steps = math.ceil(rows / train.batch_size) * train.epochs
    arguments = TrainingArguments(
        output_dir=str(job.checkpoints),
        num_train_epochs=train.epochs,
        per_device_train_batch_size=train.batch_size,  # the Trainer's batch is a step; RaftTrainer divides it
        learning_rate=job.method.learning_rate_scale * train.learning_rate,
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
