"""What is run, with which resources, and the scheduled service."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from raft_tasks.config.base import Count, Name, Section, key, kind_or


class Run(Section):
    """What DVC unrolls the graph over: it reads these keys from params.yaml itself, so each must stand there."""

    domains: list[Name] = key(..., "names of `domains`", min_length=1)
    harvest: list[Name] = key(..., "domains whose documents come from the hub: names of `harvest`")
    documents: list[Name] = key(..., "domains whose documents/<domain> are made into questions")
    judged: list[Name] = key(..., "domains whose answers the panel of `judge` votes on")
    methods: list[Name] = key(..., "names of `methods`", min_length=1)
    seeds: list[int] = key(..., "seeds of the training: batch order and rollouts", min_length=1)
    rows: Literal["jsonl", "parquet"] = key(..., "format of row artifacts; parquet: folders of shards")


class Chunks(Section):
    """Where the chunks of row stages run; results and their order do not depend on it."""

    runner: Literal["threads", "processes", "dask"] = key("threads", "processes: one per GPU")
    workers: PositiveInt = key(1, "chunks at a time")
    dask_address: str | None = key(None, "address of a dask scheduler; null: a cluster on this machine")
    results: str | None = key(
        None, "a saved Prefect storage block, TYPE/NAME, that keeps the chunks' results for a team; null: .cache/tasks"
    )

    @model_validator(mode="after")
    def an_address_is_for_dask(self) -> Chunks:
        if self.dask_address is not None and self.runner != "dask":
            raise ValueError(f"dask_address {self.dask_address!r} with runner {self.runner!r}: expected runner dask")
        return self


class Resources(Section):
    """The pipeline's budget; changes no result."""

    processes: PositiveInt = key(1, "stages that run side by side")
    threads: PositiveInt = key(4, "compute threads of each stage")
    gpus: Count = key(0, "GPUs that must be there before a stage starts")
    trackers: list[Literal["tensorboard", "mlflow", "wandb"]] = key([], "where training curves go beside steps.csv")
    chunks: Chunks = key(Chunks(), "where the chunks of row stages run")


class Folder(Section):
    """A folder into which others drop files; what is new or changed there is copied, nothing is removed."""

    kind: Literal["folder"] = key("folder", "a folder")
    path: str = key(..., "the folder")
    into: Literal["data", "documents"] = key("data", "question-answer files, or documents to make some of")


class HubRevision(Section):
    """The data set of the domain's own `hub` entry, at its newest commit."""

    kind: Literal["hub"] = key(..., "the newest commit of domains.<domain>.hub")


class DvcImport(Section):
    """What `dvc import` or `dvc import-url` brought, at its source's newest state."""

    kind: Literal["dvc"] = key(..., "the newest state of a DVC import")
    path: Annotated[str, Field(pattern=r"^(data|documents)/.+\.dvc$")] = key(..., "the .dvc file")


Source = Annotated[
    Annotated[Folder, Tag("folder")] | Annotated[HubRevision, Tag("hub")] | Annotated[DvcImport, Tag("dvc")],
    Discriminator(kind_or("folder")),
]


class Candidate(Section):
    """The training whose model is put before the gate."""

    method: Name = key("fused_sft_anchored", "a name of run.methods")
    seed: int = key(0, "a seed of run.seeds")


class Retrain(Section):
    """The scheduled service; changes no result of a stage."""

    folder: str = key(".raft", "folder of its own checkout")
    remote: str | None = key(None, "git remote that keeps its branch and tags; null: this repository")
    branch: str = key("retrain", "branch of its commits; nobody else pushes to it")
    candidate: Candidate = key(Candidate(), "whose model is put before the gate")
    fetch: dict[Name, Source] = key({}, "domain -> where new data comes from")
    release: Literal["whole", "adapter"] = key(
        "whole", "what is released of a candidate with an adapter: base and adapter merged, or the adapter alone"
    )
    past_questions: PositiveInt = key(
        500, "of each domain, that the model in production answers for methods with replay.files production"
    )
    retry_seconds: list[Annotated[float, Field(ge=0)]] = key(
        [10.0, 60.0, 300.0], "seconds between attempts when a source or remote is away"
    )


class Pruning(Section):
    """When caches are old; changes no result."""

    call_days: Annotated[float, Field(ge=0)] = key(90.0, "days for which model responses are kept")
    checkpoint_days: Annotated[float, Field(ge=0)] = key(
        14.0, "days for which checkpoints of stopped trainings are kept"
    )
