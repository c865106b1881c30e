"""The typed mirror of params.yaml: no defaults here, every unknown, missing or mistyped key reported at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)

from raft_tasks.artifacts import read_yaml
from raft_tasks.errors import InputError

Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]


MAY_BE_SECRET = frozenset({"api_key_env", "base_url"})  # where people put a key by mistake: not to be shown


class ParamsError(InputError):
    """params.yaml does not say what the code expects."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Run(Section):
    domains: list[Name] = Field(min_length=1)
    harvest: list[Name]  # domains whose documents come from the hub
    documents: list[Name]  # domains whose documents are made into questions
    judged: list[Name]  # domains whose answers a panel of models judges
    methods: list[Name] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)


class Chunks(Section):
    """Where the chunks of row stages run. Whatever is chosen, the results and their order are the same."""

    runner: Literal["threads", "processes", "dask"]
    workers: PositiveInt  # chunks at a time
    dask_address: str | None  # of a scheduler; None: a cluster of `workers` processes on this machine, for `dask`

    @model_validator(mode="after")
    def an_address_is_for_dask(self) -> Chunks:
        if self.dask_address is not None and self.runner != "dask":
            raise ValueError(f"dask_address {self.dask_address!r} with runner {self.runner!r}: expected runner dask")
        return self


class Resources(Section):
    processes: PositiveInt
    threads: PositiveInt
    gpus: Annotated[int, Field(ge=0)]  # that must be there
    trackers: list[Literal["tensorboard", "mlflow", "wandb"]]
    chunks: Chunks
    rows: Literal["jsonl", "parquet"]  # how artifacts of rows are kept


class Model(Section):
    """A local model: a folder or a pinned hub id."""

    path: str
    revision: str | None
    dtype: Literal["float32", "bfloat16"]
    system: str | None  # the system prompt wherever the model is spoken to; None: its template's own


class Endpoint(Section):
    """A model behind an OpenAI-compatible API; what is under `options` and above decides its outputs."""

    base_url: Annotated[str, Field(pattern=r"^https?://[^/@\s]+(/[^@\s]*)?$")]  # without credentials
    model: str
    seeds: bool  # the server draws by the request's seed: send it
    options: dict[str, Any]  # further fields of every request, e.g. reasoning_effort
    length_field: Literal["max_tokens", "max_completion_tokens"]  # what the server calls the limit of an answer
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None  # the variable's NAME
    concurrency: PositiveInt  # calls in flight at most; fewer after a 429
    timeout_s: PositiveFloat  # for the whole answer
    max_retries: Annotated[int, Field(ge=0)]
    price_per_million_input: Annotated[float, Field(ge=0)]  # tokens, in the money of `budget`
    price_per_million_output: Annotated[float, Field(ge=0)]


def _kind_of_model(value: Any) -> str:
    return "endpoint" if isinstance(value, Endpoint) or (isinstance(value, dict) and "base_url" in value) else "local"


AnyModel = Annotated[
    Annotated[Model, Tag("local")] | Annotated[Endpoint, Tag("endpoint")], Discriminator(_kind_of_model)
]


class Columns(Section):
    """Which column of the file holds what; None where the file has none."""

    id: str | None
    question: str | None
    answer: str | None
    source: str | None
    split: str | None
    expected: str | None
    details: str | None


class SplitByColumn(Section):
    """Rows say their split themselves; a source in two splits is an error unless `sources_may_straddle`."""

    by: Literal["column"]
    sources_may_straddle: bool


class SplitBySource(Section):
    """All rows of a source go to one split, drawn by a hash of source and seed."""

    by: Literal["source"]
    validation: Share
    test: Share
    seed: int


class Hub(Section):
    """A data set of the hub, or a local folder that `datasets` can load."""

    id: str  # owner/name, or a folder
    config: str | None
    data_files: list[str] | None  # glob patterns within the data set; None: as the data set says itself
    split: str
    revision: str | None  # 40 hexadecimal digits; None for a folder
    streaming: bool
    where: dict[str, list[str]]  # column -> values that a row may have there; other rows are passed over
    limit: PositiveInt | None  # rows that are taken


class Harvest(Section):
    """Documents of one data set; `hub.where` chooses them, `hub.limit` is how many."""

    hub: Hub
    text: str  # the column with the text
    max_characters: PositiveInt  # of a document; what stands beyond is left out


class Chat(Section):
    """Rows that are conversations: a list of {role, content} in one column."""

    column: str
    turns: Literal["one", "first", "every"]  # rows of one question and answer alone, or their first, or all of them


class Hygiene(Section):
    """What is removed or flagged beyond what makes a row unusable."""

    near_duplicates: Annotated[float, Field(ge=0.5, le=1)] | None  # Jaccard similarity of two rows' word triples
    contamination: Annotated[float, Field(gt=0, le=1)] | None  # share of a benchmark item's word 8-grams
    language: Annotated[str, Field(pattern="^[a-z]{2}$")] | None  # ISO 639-1
    privacy: Literal["flag", "reject"]


class Domain(Section):
    files: list[str]
    hub: Hub | None
    columns: Columns
    chat: Chat | None
    split: Annotated[SplitByColumn | SplitBySource, Field(discriminator="by")]
    hygiene: Hygiene

    @model_validator(mode="after")
    def rows_come_from_somewhere(self) -> Domain:
        if not self.files and self.hub is None:
            raise ValueError("files is empty and hub is null: expected question-answer files, a data set, or both")
        pair = [self.columns.question, self.columns.answer]
        if pair.count(None) != (0 if self.chat is None else 2):
            raise ValueError(
                f"columns.question {pair[0]!r} and columns.answer {pair[1]!r} with chat "
                f"{'null' if self.chat is None else 'set'}: expected either both columns, or chat"
            )
        return self


class Ingest(Section):
    min_characters: PositiveInt
    max_characters: PositiveInt
    max_rejected: Share


class Budget(Section):
    """What one run of a stage may spend; None is without limit."""

    tokens: PositiveInt | None  # in and out
    money: PositiveFloat | None  # in the unit of the endpoints' prices


class Sampling(Section):
    """How text is drawn from a model, and in what portions."""

    model: Name
    template: str
    temperature: Annotated[float, Field(ge=0)]  # 0 is greedy
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_new_tokens: PositiveInt
    batch_size: PositiveInt
    chunk_rows: PositiveInt
    seed: int
    budget: Budget
    max_failed: Share  # of rows without an answer; beyond it the stage stops


class Asked(Section):
    """How a model is asked for an answer by a schema."""

    model: Name
    temperature: Annotated[float, Field(ge=0)]  # 0 is greedy
    max_new_tokens: PositiveInt
    repairs: Annotated[int, Field(ge=0, le=3)]  # times it is shown what was wrong with its answer


class Asking(Asked):
    """... and by which template."""

    template: str


class Checker(Asking):
    """A model that checks question-answer pairs against the passage that they come from."""

    rounds: PositiveInt  # votes; more than one makes sense above temperature 0


class Question(Asking):
    """How question-answer pairs are made from the chunks of documents, and which are kept."""

    min_characters: PositiveInt  # of a chunk
    max_characters: PositiveInt
    pairs: PositiveInt  # asked for of a chunk in each round
    rounds: PositiveInt
    checkers: list[Checker] = Field(min_length=1)
    agreement: Annotated[float, Field(gt=0, le=1)]  # share of the votes that a pair needs
    batch_size: PositiveInt
    chunk_rows: PositiveInt  # document chunks per task
    seed: int
    budget: Budget
    max_failed: Share  # of document chunks without a usable answer; beyond it the stage stops

    @model_validator(mode="after")
    def each_checker_once(self) -> Question:
        names = [checker.model for checker in self.checkers]
        if len(set(names)) < len(names):
            raise ValueError(f"checkers {names}: expected each model once; more votes of one are its rounds")
        return self


class Rewrite(Sampling):
    pass


class SemanticFilter(Section):
    encoder: str
    revision: str | None
    tau: Annotated[float, Field(ge=-1, le=1)]
    fidelity_veto: bool
    batch_size: PositiveInt
    chunk_rows: PositiveInt


class Fuse(Sampling):
    judges: list[Literal["fidelity", "similarity", "likelihood"] | Asking] = Field(min_length=1)
    quorum: PositiveInt  # judges whose score a candidate needs
    tie_break: str | None  # template of the pairwise comparison by the panel's models; None: the earliest of equals
    fidelity_veto: bool
    calibration: Annotated[str, Field(pattern=r"^[\w.-]+\.jsonl$")] | None  # in data/calibration: scores by people
    encoder: str
    revision: str | None
    rounds: PositiveInt
    candidates: PositiveInt
    stop_at: Share

    @property
    def panel(self) -> list[str]:
        """The judges' names: of a rule its own, of a model the model's."""
        return [judge if isinstance(judge, str) else judge.model for judge in self.judges]

    @property
    def models(self) -> list[Asking]:
        """The judges that are language models."""
        return [judge for judge in self.judges if isinstance(judge, Asking)]

    @model_validator(mode="after")
    def the_panel_can_decide(self) -> Fuse:
        if len(set(self.panel)) < len(self.panel):
            raise ValueError(f"judges {self.panel}: expected each name once")
        if self.quorum > len(self.panel):
            raise ValueError(f"quorum {self.quorum} with {len(self.panel)} judge(s): expected at most as many")
        if self.tie_break is not None and not self.models:
            raise ValueError(
                f"tie_break {self.tie_break!r} with rules alone: expected a model among the judges, or null"
            )
        return self


class Measured(Section):
    """What some benchmark tasks measure: anchors that tell it are left out, the control for repeated test facts."""

    tasks: list[str] = Field(min_length=1)  # of lm-eval
    overlap: Annotated[
        float, Field(gt=0, le=1)
    ]  # of an item's trigrams, question or answer; more in an anchor tells it


class Anchors(Section):
    """A set of anchors: how the base invents general user turns and answers them, and which of these are kept."""

    model: Name  # base, or an endpoint that serves the same weights and continues raw text
    count: Annotated[int, Field(ge=0)]  # drawn; fewer are kept
    turns: Literal["invented", "gibberish"]  # gibberish: random tokens, as many as the invented turn has
    hints: list[str]  # system prompts, in turn, under which turns are invented; the answers are given without them
    prompts: Annotated[str, Field(pattern=r"^[\w.-]+\.jsonl$")] | None  # in data/anchors: user turns of one's own
    without: Measured | None  # None: whatever is no benchmark item and no held-out question may be told
    temperature: Annotated[float, Field(gt=0)]  # of the user turns
    answer_temperature: Annotated[float, Field(ge=0)]  # 0 is greedy
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_new_tokens: PositiveInt  # of a user turn
    answer_max_new_tokens: PositiveInt
    batch_size: PositiveInt
    chunk_rows: PositiveInt
    seed: int
    duplicate_overlap: Annotated[float, Field(ge=0.5, le=1)]  # of two prompts' trigrams (Jaccard); more is one prompt
    held_out_overlap: Annotated[float, Field(gt=0, le=1)]  # of a held-out text's trigrams; more in an anchor tells it
    min_well_formed: Share  # below it the set comes with a warning
    top_k: PositiveInt  # tokens of the base that are kept at every position of its answers


class Generate(Section):
    """transformers' generate: rows in batches of like length, each with its own random stream."""

    kind: Literal["generate"]
    batch_size: PositiveInt


class ContinuousBatching(Section):
    """transformers' continuous batching: a row that ends makes room for the next."""

    kind: Literal["continuous_batching"]
    batch_size: PositiveInt  # rows in flight


class Vllm(Section):
    """vLLM in the training's process, on the same GPU."""

    kind: Literal["vllm"]
    gpu_memory: Annotated[float, Field(gt=0, lt=1)]  # share for vLLM's weights and cache


class VllmServer(Section):
    """vLLM as a server that sees the same files."""

    kind: Literal["vllm_server"]
    batch_size: PositiveInt  # requests in flight
    url: str
    folder: str  # where weights or adapters pass through


class Distill(Section):
    template: str
    temperature: PositiveFloat
    top_k: PositiveInt
    ema_beta: Annotated[float, Field(ge=0, lt=1)]
    lambda_max: PositiveFloat
    tail_bucket: bool
    rollout_temperature: PositiveFloat
    rollout_max_new_tokens: PositiveInt
    sampler: Annotated[Generate | ContinuousBatching | Vllm | VllmServer, Field(discriminator="kind")]
    rollout_steps: PositiveInt  # optimiser steps that one sampling serves
    probe_steps: PositiveInt  # between two looks at the distance to the base and at the sampler
    sampler_tolerance: PositiveFloat  # mean difference of the sampler's log-probabilities from the trainer's
    teacher_dtype: Literal["float32", "bfloat16"] | None  # of a full fine-tuning's frozen copy; None: models.base.dtype
    teacher_device: str | None  # of the same; None: the student's
    teacher_adapter: str | None  # folder of a LoRA adapter that the teacher keeps on


class Adapter(Section):
    """LoRA: low-rank matrices beside frozen weights."""

    rank: PositiveInt
    alpha: PositiveInt  # the update is scaled by alpha / rank
    dropout: Annotated[float, Field(ge=0, lt=1)]
    targets: Literal["all-linear"] | list[str]  # names of the linear layers that get one


class Replay(Section):
    """General question-answer rows of the user's, learned beside the domain's: plain cross-entropy."""

    # JSON lines with id, question, answer; in data/replay, which DVC watches. Or the domain's own rows, more often.
    files: Literal["domain"] | Annotated[list[str], Field(min_length=1)]
    share: Annotated[float, Field(gt=0, lt=1)]  # of a step's rows, and of its cross-entropy


class Prune(Section):
    """FAPM: only the best-scored share of each tensor's change stays."""

    kind: Literal["prune"]
    keep: Annotated[float, Field(gt=0, lt=1)]


class Chosen(Section):
    """How much of the change stays is chosen on the validation split, domain first; 1 is always among them."""

    coefficients: list[Annotated[float, Field(ge=0, le=1)]] = Field(min_length=1)
    tasks: list[str] = Field(min_length=1)  # of lm-eval: the general score; never those of the benchmark
    general_loss: Share  # by how much the general score may be below the base's


class Interpolate(Chosen):
    kind: Literal["interpolate"]


class Ties(Chosen):
    kind: Literal["ties"]
    keep: Annotated[float, Field(gt=0, le=1)]  # share of each tensor's change that the trim leaves


def chosen_by(after: Prune | Chosen | None) -> list[str]:
    """The tasks by which a coefficient is chosen."""
    return after.tasks if isinstance(after, Chosen) else []


After = Annotated[Prune | Interpolate | Ties, Field(discriminator="kind")]


class Hold(Section):
    """How a method holds the student to a set of anchors: the term w L_anchor."""

    set: Name
    loss: Literal["kl", "ce"]  # to the base's distribution, or to the answers that it sampled
    batch: PositiveInt  # anchors per optimiser step
    weight: Literal["ema"] | PositiveFloat  # u; ema: what balances L_anchor against L_SFT
    weight_max: PositiveFloat  # bound on it under ema: L_anchor is 0 at the start
    logits: Literal["stored", "teacher"]  # the base's: from the set, or from a teacher that is in memory anyway


class Method(Section):
    answers: Literal["raw", "rewritten", "fused"]
    cross_entropy: Literal["plain", "dft", "eaft", "none"]  # how its tokens are weighted; none: the teacher alone
    teacher: Literal["none", "plain", "answer_conditioned"]
    balance: Literal["ema"] | PositiveFloat | None
    distill: Distill | None
    adapter: Adapter | None  # None: full fine-tuning
    replay: Replay | None
    anchors: Hold | None  # what general behaviour the student is held to
    after: After | None  # what of the change is taken back after training

    @model_validator(mode="after")
    def settings_go_with_teacher(self) -> Method:
        without = self.teacher == "none"
        if without != (self.balance is None) or without != (self.distill is None):
            raise ValueError(
                f"teacher {self.teacher!r} with balance {self.balance!r} and distill "
                f"{'null' if self.distill is None else 'set'}: expected both exactly where there is a teacher"
            )
        return self

    @model_validator(mode="after")
    def something_is_learned(self) -> Method:
        if self.cross_entropy == "none" and not isinstance(self.balance, float):
            raise ValueError(
                f"cross_entropy 'none' with balance {self.balance!r}: expected a teacher with a number as balance, the "
                "factor of its loss (nothing else is learned, and ema would weigh it against a cross-entropy)"
            )
        return self

    @model_validator(mode="after")
    def a_teacher_without_adapter_is_no_copy(self) -> Method:
        if self.adapter and self.distill and (self.distill.teacher_dtype or self.distill.teacher_device):
            raise ValueError(
                "teacher_dtype and teacher_device place the frozen copy of full fine-tuning; with an adapter the "
                "teacher is the student's own weights, so both must be null"
            )
        return self

    @model_validator(mode="after")
    def anchors_have_logits(self) -> Method:
        if self.anchors and self.anchors.logits == "teacher" and self.distill is None:
            raise ValueError("anchors.logits 'teacher' without a teacher: expected 'stored', or a teacher")
        return self

    @model_validator(mode="after")
    def anchors_are_balanced_against_a_cross_entropy(self) -> Method:
        if self.anchors and self.anchors.weight == "ema" and self.cross_entropy == "none":
            raise ValueError("anchors.weight 'ema' beside cross_entropy 'none': expected a number, or a cross-entropy")
        return self

    @model_validator(mode="after")
    def replay_goes_with_a_cross_entropy(self) -> Method:
        if self.replay and self.cross_entropy == "none":
            raise ValueError("replay beside cross_entropy 'none': expected a cross-entropy, of which replay is a share")
        return self


class Launch(Section):
    """Over how many processes a training is spread, and how."""

    processes: PositiveInt
    strategy: Literal["none", "ddp", "fsdp2"]

    @model_validator(mode="after")
    def a_strategy_is_for_several(self) -> Launch:
        if (self.processes == 1) != (self.strategy == "none"):
            raise ValueError(
                f"{self.processes} process(es) with strategy {self.strategy!r}: expected ddp or fsdp2 exactly where "
                "there is more than one process"
            )
        return self


class Explosion(Section):
    """When a loss has run away: above `factor` times its running median, `steps` steps in a row."""

    factor: Annotated[float, Field(gt=1)]
    steps: PositiveInt


class Train(Section):
    epochs: PositiveInt
    batch_size: PositiveInt
    micro_batch_size: PositiveInt
    learning_rate: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0)]
    warmup_ratio: Share
    max_grad_norm: PositiveFloat
    precision: Literal["float32", "bfloat16"]
    max_length: PositiveInt
    too_long: Literal["refuse", "cut"]
    checkpoint_steps: PositiveInt
    gradient_checkpointing: bool
    group_by_length: bool
    launch: Launch
    explosion: Explosion

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


class BenchmarkData(Section):
    """Where a data set of benchmark tasks comes from: a commit of the hub, or a folder that was fetched before."""

    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None
    mirror: str | None  # in data/benchmarks, which DVC watches

    @model_validator(mode="after")
    def from_one_place(self) -> BenchmarkData:
        if self.revision is not None and self.mirror is not None:
            raise ValueError(f"revision and mirror {self.mirror!r}: expected one of them, the other one null")
        return self


class Benchmark(Section):
    tasks: list[str]
    few_shot: dict[str, Annotated[int, Field(ge=0)]]  # examples before each question, by name; others as the task says
    limit: dict[str, PositiveInt]  # items of a task (of each of a group's), by name; others whole
    data: dict[str, BenchmarkData]  # by data set
    batch_size: PositiveInt
    max_new_tokens: PositiveInt


class Judge(Section):
    """The panel that votes on benchmarks' answers: of which tasks, and how they are asked."""

    tasks: dict[str, str] = Field(min_length=1)  # the template by task; `domain` is the domain's own
    judges: list[Asked] = Field(min_length=1)
    quorum: PositiveInt  # votes that a verdict needs
    calibration: Annotated[str, Field(pattern=r"^[\w.-]+\.jsonl$")] | None  # in data/calibration: scores by people
    batch_size: PositiveInt
    chunk_rows: PositiveInt
    seed: int
    budget: Budget
    max_failed: Share  # of answers without a verdict; beyond it the stage stops

    @model_validator(mode="after")
    def the_panel_can_decide(self) -> Judge:
        names = [judge.model for judge in self.judges]
        if len(set(names)) < len(names):
            raise ValueError(f"judges {names}: expected each name once")
        if self.quorum > len(names):
            raise ValueError(f"quorum {self.quorum} with {len(names)} judge(s): expected at most as many")
        if self.calibration is not None and "domain" not in self.tasks:
            raise ValueError("calibration without `domain` among the tasks: people's scores are of such answers")
        return self


class Report(Section):
    confidence: Annotated[float, Field(gt=0, lt=1)]
    bootstrap_samples: PositiveInt
    examples: Annotated[int, Field(ge=0)]
    sample: Annotated[int, Field(ge=0)]
    flips: Annotated[int, Field(ge=0)]
    seed: int


class Folder(Section):
    """A folder into which others drop files; what is new or changed there is copied, nothing is removed."""

    kind: Literal["folder"]
    path: str
    into: Literal["data", "documents"]  # question-answer files, or documents to make some of


class HubRevision(Section):
    """The data set of the domain's own `hub` entry, at its newest commit."""

    kind: Literal["hub"]


class DvcImport(Section):
    """What `dvc import` or `dvc import-url` brought, at its source's newest state."""

    kind: Literal["dvc"]
    path: Annotated[str, Field(pattern=r"^(data|documents)/.+\.dvc$")]


Source = Annotated[Folder | HubRevision | DvcImport, Field(discriminator="kind")]


class Candidate(Section):
    """The training whose model is put before the gate."""

    method: Name
    seed: int


class Approval(Section):
    """A person is asked before a candidate that passed goes into production."""

    timeout_hours: PositiveFloat  # without an answer it is not promoted


class Gate(Section):
    """What a candidate must keep to go into production: docs/gate.md."""

    confidence: Annotated[float, Field(gt=0, lt=1)]
    domain_metric: Literal["acc", "complete", "judged"]  # what of the domain decides
    domain_margin: Share  # accuracy that the interval's lower end may be below the model in production
    general_margin: Share  # accuracy that a general task may lose against the base
    near_miss: Share  # accuracy beyond that margin which recovery may give back
    min_fidelity: Share  # refined training answers that keep what their reference says
    max_leaks: Share  # domain answers that speak of a reference, beyond the base's share
    max_size_ratio: PositiveFloat  # bytes of weights, against the base
    max_latency_ratio: PositiveFloat  # seconds an answer, against the base, measured side by side
    latency_items: PositiveInt  # domain questions that this is measured on
    recover: Interpolate | None  # what a near miss goes through before the verdict; None: it is refused
    approval: Approval | None  # None: nobody is asked
    bootstrap_samples: PositiveInt
    seed: int


class Retrain(Section):
    """The scheduled service; changes no result of a stage."""

    folder: str  # where its checkout lies
    remote: str | None  # the git remote that keeps its branch and tags; None: this repository itself
    branch: str
    candidate: Candidate
    fetch: dict[Name, Source]  # by domain
    retry_seconds: list[Annotated[float, Field(ge=0)]]  # waits between two attempts; as many as there are


class Pruning(Section):
    """When caches are old; changes no result."""

    call_days: Annotated[float, Field(ge=0)]
    checkpoint_days: Annotated[float, Field(ge=0)]


class Params(Section):
    run: Run
    resources: Resources
    models: dict[Name, AnyModel]
    harvest: dict[Name, list[Harvest]]
    domains: dict[Name, Domain]
    question: Question
    ingest: Ingest
    rewrite: Rewrite
    semantic_filter: SemanticFilter
    fuse: Fuse
    anchors: dict[Name, Anchors]
    methods: dict[Name, Method]
    train: Train
    benchmark: Benchmark
    judge: Judge
    report: Report
    gate: Gate
    retrain: Retrain
    prune: Pruning

    @model_validator(mode="after")
    def names_are_known(self) -> Params:
        wrong = []
        for where, names, known in (
            ("run.domains", self.run.domains, self.domains),
            ("run.harvest", self.run.harvest, self.harvest),
            ("run.documents", self.run.documents, self.domains),
            ("run.judged", self.run.judged, self.run.domains),
            ("run.methods", self.run.methods, self.methods),
            ("judge.judges", [judge.model for judge in self.judge.judges], self.models),
            ("question.model", [self.question.model], self.models),
            ("question.checkers", [checker.model for checker in self.question.checkers], self.models),
            ("rewrite.model", [self.rewrite.model], self.models),
            ("fuse.model", [self.fuse.model], self.models),
            ("fuse.judges", [judge.model for judge in self.fuse.models], self.models),
            ("models", ["base"], self.models),
            ("anchors.*.model", [row.model for row in self.anchors.values()], self.models),
            ("retrain.fetch", list(self.retrain.fetch), self.domains),
            ("methods.*.anchors.set", [row.anchors.set for row in self.methods.values() if row.anchors], self.anchors),
        ):
            wrong += [f"{where}: got {name!r}, expected one of {sorted(known)}" for name in names if name not in known]
        if isinstance(self.models.get("base"), Endpoint):
            wrong.append("models.base: got an endpoint, expected a local model: its weights are trained")
        for name, row in self.anchors.items():
            if row.model != "base" and isinstance(self.models.get(row.model), Model):
                wrong.append(f"anchors.{name}.model: got the local model {row.model!r}, expected base, or an endpoint")
        for name in {"base", "champion"} & set(self.methods):
            wrong.append(
                f"methods.{name}: the name is taken by the untouched model or the one in production; rename it"
            )
        for name, source in self.retrain.fetch.items():
            if source.kind == "hub" and name in self.domains and self.domains[name].hub is None:
                wrong.append(f"retrain.fetch.{name}: got kind hub, but domains.{name}.hub is null")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def base(self) -> Model:
        """The model that is taught."""
        model = self.models["base"]
        assert isinstance(model, Model)  # checked above
        return model


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check `path`.

    Raises:
        ParamsError: naming every key that is wrong, what was expected and what came.
    """
    try:
        raw: Any = read_yaml(path)
    except FileNotFoundError as error:
        raise ParamsError(f"{path} is not there; run from the project's folder") from error
    except yaml.YAMLError as error:
        raise ParamsError(f"{path} is not YAML: {error}") from error
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            where = ".".join(str(part) for part in problem["loc"]) or "(top level)"
            hidden = problem["type"] == "missing" or MAY_BE_SECRET.intersection(problem["loc"])
            came = "" if hidden else f", got {problem['input']!r:.80}"
            problems.append(f"  {where}: {problem['msg']}{came}")
        raise ParamsError(f"{path} has {len(problems)} problem(s):\n" + "\n".join(problems)) from error
