"""Benchmarks, judges, the report and the gate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from raft_tasks.config.base import Count, FileName, Section, Share, key
from raft_tasks.config.generation import Budget, StructuredCall
from raft_tasks.config.training import Interpolate


class BenchmarkData(Section):
    """Where a data set of benchmark tasks comes from."""

    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = key(None, "commit of the hub")
    mirror: str | None = key(None, "folder in data/benchmarks that holds a copy")

    @model_validator(mode="after")
    def from_one_place(self) -> BenchmarkData:
        if self.revision is not None and self.mirror is not None:
            raise ValueError(f"revision and mirror {self.mirror!r}: expected one of them, the other one null")
        return self


class Benchmark(Section):
    """What every model is measured on."""

    tasks: list[str] = key(["ifeval", "mmlu"], "lm-eval tasks beside the domain's own")
    validation_tasks: list[str] = key(["arc_easy"], "tasks by which merge and gate.recover choose; none of `tasks`")
    few_shot: dict[str, Count] = key({}, "task -> examples before each question; others as the task says")
    limit: dict[str, PositiveInt] = key({}, "task -> items that are used, drawn by a fixed seed; others whole")
    max_tokens: dict[str, PositiveInt] = key(
        {}, "task -> tokens of a generated answer, at most; others as the task says"
    )
    plain_text: list[str] = key(
        ["hellaswag", "lambada_openai", "openbookqa", "piqa", "winogrande"],
        "tasks of `tasks` whose prompts are texts to go on with: scored without the chat template",
    )
    data: dict[str, BenchmarkData] = key({}, "data set -> where it comes from; known tasks have a pinned default")
    batch_size: PositiveInt = key(32, "items generated together")
    max_new_tokens: PositiveInt = key(1024, "tokens of an answer to the domain's questions, at most")


class Judge(Section):
    """The panel of models that votes on benchmark answers, in the domains of `run.judged`."""

    tasks: dict[str, str] = key(
        {"domain": "vote.jinja"}, "task -> prompt template; `domain` is the domain's own task", min_length=1
    )
    judges: list[StructuredCall] = key(
        [StructuredCall()], "the models, best of other families than the one judged", min_length=1
    )
    quorum: PositiveInt = Field(
        default_factory=lambda data: len(data.get("judges", "")) // 2 + 1,
        description="votes that a verdict needs; default: more than half of the judges",
    )
    calibration: FileName | None = key(None, "file of data/calibration with people's scores")
    batch_size: PositiveInt = key(32, "answers judged together by a local model")
    chunk_rows: PositiveInt = key(64, "answers per task")
    seed: int = key(0, "seed of the sampling")
    budget: Budget = key(Budget(), "what one run of the stage may spend")
    max_failed: Share = key(0.02, "share of answers without a verdict; beyond it the stage stops")

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
    """Statistics and samples of the report."""

    confidence: Annotated[float, Field(gt=0, lt=1)] = key(0.95, "level of the intervals")
    bootstrap_samples: PositiveInt = key(2000, "bootstrap resamples")
    examples: Count = key(3, "rows shown through all stages")
    sample: Count = key(20, "rows per domain whose refinement can be browsed; anchors per set")
    flips: Count = key(200, "items per domain that training flipped, to browse")
    seed: int = key(0, "seed of the resampling")


class Approval(Section):
    """A person is asked before a candidate that passed goes into production."""

    timeout_hours: PositiveFloat = key(24.0, "hours without an answer after which it is not promoted")


class SecondMeasurement(Section):
    """How the gate measures a candidate once more, to know the evaluator's own noise."""

    batch_size: PositiveInt | None = key(None, "null: half of benchmark.batch_size")
    dtype: Literal["float32", "bfloat16"] | None = key(None, "number format of the weights; null: models.base.dtype")
    seed: int = key(0, "of few-shot examples, beside the benchmark's own")


class PromotionGate(Section):
    """What a candidate must keep to go into production."""

    confidence: Annotated[float, Field(gt=0, lt=1)] = key(0.95, "level of the intervals")
    domain_metric: Literal["acc", "complete", "judged"] = key("acc", "the domain's metric; judged needs run.judged")
    domain_margin: Share = key(0.05, "accuracy that the interval's lower end may be below the model in production")
    general_margin: Share = key(0.05, "accuracy that a general task may lose against the base")
    noise: SecondMeasurement | None = key(
        SecondMeasurement(), "measure the candidate twice: no margin may lie below the difference; null: only once"
    )
    near_miss: Share = key(0.05, "accuracy beyond that margin which `recover` may give back")
    min_fidelity: Share | None = key(
        0.9, "share of refined training answers that keep what their reference says, at least; null: not a rule"
    )
    max_leaks: Share = key(0.01, "share of domain answers that mention a reference, beyond the base's")
    max_size_ratio: PositiveFloat = key(1.01, "bytes of the weights against the base")
    max_latency_ratio: PositiveFloat = key(2.0, "seconds per answer against the base, measured side by side")
    latency_items: PositiveInt = key(32, "domain questions of that measurement")
    recover: Interpolate | None = key(
        Interpolate(coefficients=[0.5, 0.7, 0.8, 0.9]), "merge tried on a near miss; null: it is refused"
    )
    approval: Approval | None = key(None, "ask a person before promoting; null: nobody")
    bootstrap_samples: PositiveInt = key(2000, "bootstrap resamples")
    seed: int = key(0, "seed of the resampling")
