"""Training methods, and the settings that all of them share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, model_validator

from raft_tasks.config.base import Name, Section, Share, added_key, key, kind_or

Dtype = Literal["float32", "bfloat16"]


class Generate(Section):
    """Batches of prompts of like length, each row with its own random stream; a row that ends leaves its batch."""

    kind: Literal["generate"] = key("generate", "batches of prompts of like length")
    batch_size: PositiveInt = key(16, "rows generated together")


class ContinuousBatching(Section):
    """transformers' continuous batching: a finished row makes room for the next."""

    kind: Literal["continuous_batching"] = key(..., "transformers' continuous batching")
    batch_size: PositiveInt = key(16, "rows in flight")


class Vllm(Section):
    """vLLM in the training's process, on the same GPU."""

    kind: Literal["vllm"] = key(..., "vLLM in the training's process")
    gpu_memory: Annotated[float, Field(gt=0, lt=1)] = key(0.3, "share of GPU memory for vLLM's weights and cache")


class VllmServer(Section):
    """vLLM as a server that sees the same files."""

    kind: Literal["vllm_server"] = key(..., "a vLLM server that sees the same files")
    batch_size: PositiveInt = key(16, "requests in flight")
    url: str = key(..., "address of the server")
    folder: str = key(..., "folder through which weights or adapters are passed")


Sampler = Annotated[
    Annotated[Generate, Tag("generate")]
    | Annotated[ContinuousBatching, Tag("continuous_batching")]
    | Annotated[Vllm, Tag("vllm")]
    | Annotated[VllmServer, Tag("vllm_server")],
    Discriminator(kind_or("generate")),
]


class Distillation(Section):
    """On-policy distillation from the frozen base model (Eqs. 6-12)."""

    teacher: Literal["plain", "answer_conditioned"] = key(
        "answer_conditioned", "what the teacher sees: the question, or the answer too (Eq. 7)"
    )
    kl_weight: Literal["ema"] | PositiveFloat = key("ema", "lambda: ema balances the two losses; a number is fixed")
    kl_weight_max: PositiveFloat = key(10.0, "bound on lambda under ema")
    ema_beta: Annotated[float, Field(ge=0, lt=1)] = key(0.9, "beta of the moving averages")
    template: str = key("teacher.jinja", "prompt template of the answer-conditioned teacher")
    temperature: PositiveFloat = key(1.5, "T, of both softmaxes (Eq. 8)")
    top_k: PositiveInt = key(512, "K, the teacher's most likely tokens that are compared (Eq. 9)")
    tail_bucket: bool = key(False, "true: a further class holds the probability outside the top K")
    rollout_temperature: PositiveFloat = key(1.0, "sampling temperature of the rollouts (Eq. 6)")
    rollout_max_new_tokens: PositiveInt = key(512, "tokens of a rollout, at most")
    sampler: Sampler = key(Generate(), "what samples the rollouts")
    rollout_steps: PositiveInt = key(1, "optimiser steps per sampling; 1 is the paper, more trades freshness for speed")
    probe_steps: PositiveInt = key(25, "steps between measurements of the KL to the base and of the sampler's accuracy")
    sampling_logprob_tolerance: PositiveFloat = key(
        0.1, "mean difference in log-probability, sampler against trainer, at which training stops"
    )
    teacher_dtype: Dtype | None = key(None, "number format of the frozen copy; null: models.base.dtype")
    teacher_device: str | None = key(None, "device of the frozen copy, such as cuda:1; null: the student's")
    teacher_adapter: str | None = key(None, "folder of a LoRA adapter that stays on in the teacher")


class Lora(Section):
    """Low-rank matrices beside frozen weights."""

    rank: PositiveInt = key(16, "rank of the matrices")
    alpha: PositiveInt = key(32, "the update is scaled by alpha / rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = key(0.05, "dropout on the adapters' inputs")
    targets: Literal["all-linear", "mlp"] | list[str] = key(
        "all-linear", "layers that get an adapter: all linear ones, the MLPs' alone, or names"
    )


class Osf(Section):
    """Orthogonal subspace fine-tuning (arXiv:2504.07097, peft's `osf`): a matrix's largest directions stay."""

    preserved: Annotated[float, Field(gt=0, lt=1)] = key(0.5, "share of the singular directions that stay as they are")
    targets: Literal["all-linear"] | list[str] = key("all-linear", "names of the linear layers that are trained")


PAST_ANSWERS = "data/replay/production"  # of the models in production, a file a domain


class Replay(Section):
    """General rows learned beside the domain's, by cross-entropy."""

    files: Literal["domain", "production"] | Annotated[list[str], Field(min_length=1)] = key(
        ["data/replay/*.jsonl"],
        "JSON lines with id, question, answer in data/replay; domain: the domain's rows again; production: past "
        "questions as `raft retrain` has the models in production answer them, none before there is one",
    )
    share: Annotated[float, Field(gt=0, lt=1)] = key(0.2, "share of a step's rows, and of its cross-entropy")

    @property
    def patterns(self) -> list[str]:
        if isinstance(self.files, list):
            return self.files
        return [f"{PAST_ANSWERS}/*.jsonl"] if self.files == "production" else []


class AnchorLoss(Section):
    """Regularisation towards the base model on a set of anchors: the term w L_anchor."""

    set: Name = key("generated", "a name of `anchors`")
    loss: Literal["kl", "ce"] = key("kl", "KL to the base's distribution, or cross-entropy of the answers it sampled")
    batch: PositiveInt = key(8, "anchors per optimiser step")
    weight: Literal["ema"] | PositiveFloat = key(1.0, "w; ema balances L_anchor against L_SFT")
    weight_max: PositiveFloat = key(3.0, "bound on w under ema: L_anchor starts at 0")
    logits: Literal["stored", "teacher"] = key("stored", "the base's logits: from the set, or from the teacher")


class TargetKl(Section):
    """KL(base || student) at the tokens of the learned answer, beside the cross-entropy (ASFT, arXiv:2509.23753)."""

    weight: PositiveFloat = key(0.05, "of the KL; the paper has 0.05 for knowledge, 0.1 for mathematics")
    top_k: PositiveInt = key(64, "the base's most likely tokens that are compared, at most its vocabulary")


class Mixing(Section):
    """The base writes the targets, each token with or without the target in its prompt (MixSD, arXiv:2605.16865)."""

    naive_share: Share = key(0.3, "share of the tokens that it writes without: what it would have said by itself")
    attempts: PositiveInt = key(11, "drawn answers per row until one is right; a row without is left out")
    max_new_tokens: PositiveInt = key(512, "tokens of an answer, at most; one that is cut counts as wrong")
    batch_size: PositiveInt = key(32, "rows written together")
    template: str = key("teacher.jinja", "prompt template that shows the base the target")


class Injection(Section):
    """A training of its own before `target` is learned: the student learns to write the domain's documents
    (arXiv:2608.20281: inject, align, recover; `merge` recovers)."""

    epochs: PositiveInt = key(3, "passes over the documents")
    learning_rate_scale: PositiveFloat = key(1.0, "multiple of train.learning_rate")
    max_length: PositiveInt = key(1024, "tokens of a window of a document, prompt included, within train.max_length")
    instruction: str = key("Write down a document that you have read.", "user turn before every window", min_length=1)


class Prune(Section):
    """FAPM (arXiv:2509.08255): only the best-scored share of each tensor's change stays."""

    kind: Literal["prune"] = key(..., "prune by FAPM's score")
    keep: Annotated[float, Field(gt=0, lt=1)] = key(0.1, "share of each tensor's change that stays")


class SpectralThreshold(Section):
    """DG-Hard (arXiv:2605.20296): of each matrix's change, the singular values above the noise."""

    kind: Literal["dg_hard"] = key(..., "DG-Hard: the singular values of the change that stand out of the noise")


class CoefficientSearch(Section):
    """How much of the change stays: chosen on validation items, domain first; 1 is always among the candidates."""

    coefficients: list[Share] = key([0.2, 0.4, 0.6, 0.8, 1.0], "candidates", min_length=1)
    tasks: list[str] = key([], "lm-eval tasks of the general score; default: benchmark.validation_tasks")
    general_loss: Share = key(0.02, "accuracy that the general score may lose against the base")


class Interpolate(CoefficientSearch):
    """Between the base and the trained weights (WiSE-FT, arXiv:2109.01903)."""

    kind: Literal["interpolate"] = key("interpolate", "interpolate with the base")


class Ties(CoefficientSearch):
    """As interpolate, of each tensor's largest changes only (arXiv:2306.01708)."""

    kind: Literal["ties"] = key(..., "TIES")
    keep: Annotated[float, Field(gt=0, le=1)] = key(0.2, "share of each tensor's change that the trim leaves")


Merge = Annotated[
    Annotated[Prune, Tag("prune")]
    | Annotated[SpectralThreshold, Tag("dg_hard")]
    | Annotated[Interpolate, Tag("interpolate")]
    | Annotated[Ties, Tag("ties")],
    Discriminator(kind_or("interpolate")),
]


class Method(Section):
    """A training method. `extends: NAME` starts from another row."""

    target: Literal["reference", "rewrite", "fused"] = key("reference", "the answer that is learned")
    sft: bool = key(True, "cross-entropy on the target; false: the teacher alone teaches")
    mixing: Mixing | None = key(None, "targets written by the base itself, from `target`")
    token_weighting: Literal["none", "dft", "eaft", "talr"] = key(
        "none", "weights of the cross-entropy's tokens: arXiv:2508.05629, arXiv:2601.02151, arXiv:2509.20758"
    )
    target_kl: TargetKl | None = key(None, "KL to the base on the learned answers")
    learning_rate_scale: PositiveFloat = key(1.0, "multiple of train.learning_rate")
    distillation: Distillation | None = key(None, "on-policy distillation")
    lora: Lora | None = key(None, "adapters; null: full fine-tuning")
    osf: Osf | None = key(None, "orthogonal subspace fine-tuning, in place of `lora`")
    replay: Replay | None = key(None, "general rows of yours")
    anchors: AnchorLoss | None = key(None, "regularisation towards the base on anchors")
    injection: Injection | None = added_key(None, "first learns the texts of documents/<domain>; null: does not", None)
    merge: Merge | None = key(None, "what of the change stays after training; null: all of it")

    @property
    def adapter(self) -> Lora | Osf | None:
        """What peft trains; None for full fine-tuning."""
        return self.lora or self.osf

    @property
    def teacher(self) -> str | None:
        """What the teacher sees; None without distillation."""
        return self.distillation.teacher if self.distillation else None

    @model_validator(mode="after")
    def something_is_learned(self) -> Method:
        if not self.sft and (self.distillation is None or self.distillation.kl_weight == "ema"):
            got = "no distillation" if self.distillation is None else "distillation.kl_weight 'ema'"
            raise ValueError(
                f"sft false with {got}: expected a number as distillation.kl_weight (nothing else is learned, and ema "
                "would weigh it against a cross-entropy)"
            )
        return self

    @model_validator(mode="after")
    def terms_beside_a_cross_entropy(self) -> Method:
        if not self.sft and self.token_weighting != "none":
            raise ValueError(f"token_weighting {self.token_weighting!r} with sft false: expected none, or sft true")
        if self.mixing and self.distillation:
            raise ValueError("mixing and distillation: expected one of them: both show the base the target")
        if not self.sft and self.target_kl:
            raise ValueError("target_kl with sft false: expected sft true: it is computed in the cross-entropy's pass")
        if not self.sft and self.replay:
            raise ValueError("replay with sft false: expected sft true: replay is a share of the cross-entropy")
        if not self.sft and self.anchors and self.anchors.weight == "ema":
            raise ValueError("anchors.weight 'ema' with sft false: expected a number, or sft true")
        return self

    @model_validator(mode="after")
    def adapters_fit_the_teacher_and_the_sampler(self) -> Method:
        if self.lora and self.osf:
            raise ValueError("lora and osf: expected one of them")
        if self.osf and self.injection:
            raise ValueError("osf and injection: expected one of them: osf would preserve the injected weights")
        if self.osf and self.distillation and self.distillation.sampler.kind in ("vllm", "vllm_server"):
            raise ValueError("osf with a sampler of vLLM, which takes LoRA alone: expected another sampler")
        copied = self.distillation and (self.distillation.teacher_dtype or self.distillation.teacher_device)
        if self.adapter and copied:
            raise ValueError(
                "teacher_dtype and teacher_device place the frozen copy of full fine-tuning; with lora or osf the "
                "teacher is the student's own weights, so both must be null"
            )
        return self

    @model_validator(mode="after")
    def anchors_have_logits(self) -> Method:
        if self.anchors and self.anchors.logits == "teacher" and self.distillation is None:
            raise ValueError("anchors.logits 'teacher' without distillation: expected 'stored', or distillation")
        return self


class Launch(Section):
    """Over how many processes a training is spread, and how."""

    processes: PositiveInt = key(1, "processes, one per GPU")
    strategy: Literal["none", "ddp", "fsdp2"] = key("none", "none with one process; else ddp or fsdp2")

    @model_validator(mode="after")
    def a_strategy_is_for_several(self) -> Launch:
        if (self.processes == 1) != (self.strategy == "none"):
            raise ValueError(
                f"{self.processes} process(es) with strategy {self.strategy!r}: expected ddp or fsdp2 exactly where "
                "there is more than one process"
            )
        return self


class LossSpike(Section):
    """When training stops because its loss has run away."""

    factor: Annotated[float, Field(gt=1)] = key(10.0, "multiple of the running median, and of the loss at the start")
    steps: PositiveInt = key(5, "steps in a row above it")


class Curve(Section):
    """The forgetting curve: what a training has learned and lost, measured while it goes on. It changes no step."""

    steps: PositiveInt = key(100, "optimiser steps between measurements")
    rows: PositiveInt = key(16, "validation rows, and anchors of each set, at most")
    sets: list[Name] = key(["held_out"], "anchor sets, not learned from, for the KL to the base", min_length=1)
    answer_max_new_tokens: PositiveInt | None = key(
        None, "tokens of a greedy answer, to measure accuracy; null: only the loss of the references"
    )
    checkpoint: Literal["last", "best"] = key("last", "best: of the measured ones, domain first, within `kl_max`")
    kl_max: PositiveFloat | None = key(None, "largest KL, nats per token, of the best checkpoint; null: any")
    patience: PositiveInt | None = key(None, "measurements without a better checkpoint that end the training")

    @model_validator(mode="after")
    def the_best_checkpoint_is_chosen_by_accuracy(self) -> Curve:
        if self.checkpoint == "best" and self.answer_max_new_tokens is None:
            raise ValueError(
                "checkpoint 'best' with answer_max_new_tokens null: expected a number: the loss of references tells "
                "nothing of a method that learns other wordings"
            )
        if self.patience is not None and self.checkpoint == "last":
            raise ValueError(f"patience {self.patience} with checkpoint 'last': expected 'best', or null")
        if self.kl_max is not None and self.checkpoint == "last":
            raise ValueError(f"kl_max {self.kl_max} with checkpoint 'last': expected 'best', or null")
        return self


class Train(Section):
    """Optimisation; the defaults are the paper's."""

    epochs: PositiveInt = key(3, "passes over the rows")
    batch_size: PositiveInt = key(16, "rows per optimiser step")
    micro_batch_size: PositiveInt = key(2, "rows per forward pass")
    learning_rate: PositiveFloat = key(5e-6, "peak learning rate")
    weight_decay: Annotated[float, Field(ge=0)] = key(0.01, "AdamW's weight decay")
    warmup_ratio: Share = key(0.05, "share of the steps with rising rate, then cosine to zero")
    max_grad_norm: PositiveFloat = key(1.0, "gradient clipping")
    precision: Dtype = key("bfloat16", "float32, or bfloat16 autocast")
    max_length: PositiveInt = key(4096, "tokens of the longest sequence, the teacher's prompt included")
    too_long: Literal["refuse", "cut"] = key("refuse", "refuse: stop before training; cut: shorten the answer's tail")
    checkpoint_steps: PositiveInt = key(50, "steps between checkpoints, at most")
    checkpoint_minutes: PositiveFloat = key(10.0, "minutes between checkpoints, at most: a step can take long")
    gradient_checkpointing: bool = key(True, "recompute activations in the backward pass: less memory, more time")
    group_by_length: bool = key(False, "rows of like length share a step: less padding")
    launch: Launch = key(Launch(), "processes")
    loss_spike: LossSpike = key(LossSpike(), "when a run-away loss stops the training")
    curve: Curve | None = added_key(None, "the forgetting curve; null: none", None)

    @model_validator(mode="after")
    def the_curve_needs_whole_weights(self) -> Train:
        if self.curve and self.launch.strategy == "fsdp2":
            raise ValueError("curve with launch.strategy 'fsdp2': expected none or ddp: it reads whole weights")
        return self

    @model_validator(mode="after")
    def micro_batches_fill_the_batch(self) -> Train:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        if self.batch_size < self.launch.processes:
            raise ValueError(
                f"batch_size {self.batch_size} leaves some of {self.launch.processes} processes without a row"
            )
        return self
