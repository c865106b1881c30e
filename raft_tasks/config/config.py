"""All sections together, and how they are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError, ValidationInfo, model_validator

from raft_tasks.artifacts import read_yaml
from raft_tasks.config.base import Name, Section, key
from raft_tasks.config.data import Domain, Harvest, Ingest
from raft_tasks.config.defaults import catalogue, fill_in
from raft_tasks.config.evaluation import Benchmark, Judge, PromotionGate, Report
from raft_tasks.config.faults import explain
from raft_tasks.config.generation import AnchorSet, Fuse, Question, Rewrite, SemanticFilter
from raft_tasks.config.models import AnyModel, Endpoint, Model
from raft_tasks.config.service import Pruning, Resources, Retrain, Run
from raft_tasks.config.training import CoefficientSearch, Method, Train
from raft_tasks.errors import InputError

# The context of a validation in which sections may name each other wrongly: `raft doctor` goes on with the rest.
ANY_NAMES = {"names": "any"}


class Config(Section):
    """params.yaml, with all defaults."""

    run: Run = key(..., "what the graph is unrolled over")
    resources: Resources = key(Resources(), "the pipeline's budget; changes no result")
    models: dict[Name, AnyModel] = key(..., "the models; `base` is the one that is trained, always local")
    harvest: dict[Name, list[Harvest]] = key({}, "documents of the hub, by domain")
    domains: dict[Name, Domain] = key(..., "the domains' data")
    question: Question = key(Question(), "question-answer pairs from documents")
    ingest: Ingest = key(Ingest(), "which rows are unusable")
    rewrite: Rewrite = key(Rewrite(), "self-conditioned rewriting (Eq. 1)")
    semantic_filter: SemanticFilter = key(SemanticFilter(), "the semantic filter (Eqs. 2-3)")
    fuse: Fuse = key(Fuse(), "answer fusion (Eq. 4)")
    anchors: dict[Name, AnchorSet] = key({}, "anchor sets, beside the built-in ones")
    methods: dict[Name, Method] = key({}, "training methods, beside the built-in ones")
    train: Train = key(Train(), "optimisation")
    benchmark: Benchmark = key(Benchmark(), "what every model is measured on")
    judge: Judge = key(Judge(), "the panel of models that judges answers")
    report: Report = key(Report(), "statistics and samples of the report")
    gate: PromotionGate = key(PromotionGate(), "what a candidate must keep to go into production")
    retrain: Retrain = key(Retrain(), "the scheduled service")
    prune: Pruning = key(Pruning(), "when caches are old")

    @model_validator(mode="before")
    @classmethod
    def defaults_that_depend_on_other_keys(cls, document: Any) -> Any:
        return fill_in(document)

    @model_validator(mode="after")
    def names_are_known(self, info: ValidationInfo) -> Config:
        if info.context == ANY_NAMES:
            return self
        built_in = catalogue()["methods"].keys() - set(self.run.methods)
        rows = {name: row for name, row in self.methods.items() if name not in built_in}
        wrong = []
        for where, names, allowed in (
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
            ("train.curve.sets", self.curve_sets, self.anchors),
            ("methods.*.anchors.set", [row.anchors.set for row in rows.values() if row.anchors], self.anchors),
        ):
            wrong += [
                f"{where}: got {name!r}, expected one of {sorted(allowed)}" for name in names if name not in allowed
            ]
        wrong += [*self._wrong_roles(), *self._wrong_methods(), *self._wrong_tasks(rows), *self._wrong_gate()]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def _wrong_roles(self) -> Iterator[str]:
        base = self.models.get("base")
        if isinstance(base, Endpoint):
            yield "models.base: got an endpoint, expected a local model: its weights are trained"
        if isinstance(base, Model) and base.thinking != "off" and base.thought_tokens >= self.train.max_length:
            yield (
                f"models.base.thought_tokens: got {base.thought_tokens}, expected less than train.max_length "
                f"{self.train.max_length}: an answer is learned behind its thought"
            )
        for name, model in self.models.items():
            if name != "base" and isinstance(model, Model) and model.thinking != "off":
                yield f"models.{name}.thinking: got {model.thinking}, expected off: only base is trained and served so"
        for name, row in self.anchors.items():
            if row.model != "base" and isinstance(self.models.get(row.model), Model):
                yield f"anchors.{name}.model: got the local model {row.model!r}, expected base, or an endpoint"
        for name in {"base", "champion"} & set(self.methods):
            yield f"methods.{name}: the name is taken by the untouched model or the one in production; rename it"
        for name, domain in self.domains.items():
            if domain.columns.split is not None and domain.split.by != "column":
                yield (
                    f"domains.{name}.columns.split: got {domain.columns.split!r} with split.by {domain.split.by!r}, "
                    "which does not read it; expected split: {by: column}, or no columns.split"
                )
            folder = f"data/{name}/"
            for pattern in domain.files:
                if not pattern.startswith(folder):
                    yield f"domains.{name}.files: got {pattern!r}, expected a pattern in {folder}, which DVC watches"
        for name, source in self.retrain.fetch.items():
            if source.kind == "hub" and name in self.domains and self.domains[name].hub is None:
                yield f"retrain.fetch.{name}: got kind hub, but domains.{name}.hub is null"

    def _wrong_methods(self) -> Iterator[str]:
        for name in (name for name in self.run.methods if name in self.methods):
            method = self.methods[name]
            if method.anchors and method.anchors.set in self.curve_sets:
                yield f"train.curve.sets: got {method.anchors.set!r}, from which methods.{name} learns; expected others"
            if method.injection:
                for domain in sorted({*self.run.domains} & {*self.run.harvest} - {*self.run.documents}):
                    yield (
                        f"run.documents: got no {domain!r}, which is in run.harvest, with methods.{name}.injection; "
                        "expected it: else the method's rows are written before its documents are there"
                    )

    def _wrong_tasks(self, rows: dict[str, Method]) -> Iterator[str]:
        merges = {
            "gate.recover": self.gate.recover,
            **{f"methods.{name}.merge": row.merge for name, row in rows.items()},
        }
        searches = {where: merge for where, merge in merges.items() if isinstance(merge, CoefficientSearch)}
        for where, search in searches.items():
            if not search.tasks:
                yield f"{where}.tasks: got none, expected lm-eval tasks there or in benchmark.validation_tasks"
            for task in sorted({*search.tasks} & {*self.benchmark.tasks}):
                yield f"{where}.tasks: got {task!r}, which is in benchmark.tasks too; expected tasks that test nothing"
        # what is said of a task that nothing benchmarks would be passed over
        tasks = {"domain", *self.benchmark.tasks, *self.benchmark.validation_tasks}
        tasks.update(task for search in searches.values() for task in search.tasks)
        for bound in ("limit", "max_tokens"):
            for name in getattr(self.benchmark, bound):
                if name not in tasks:
                    yield f"benchmark.{bound}: got the task {name!r}, expected one of {sorted(tasks)}"

    def _wrong_gate(self) -> Iterator[str]:
        if self.gate.domain_metric != "judged":
            return
        if unjudged := sorted({*self.run.domains} - {*self.run.judged}):
            yield f"gate.domain_metric: got judged, but run.judged lacks {unjudged}; expected all of run.domains there"
        if "domain" not in self.judge.tasks:
            yield f"gate.domain_metric: got judged, but judge.tasks has {sorted(self.judge.tasks)}, expected domain too"

    @property
    def curve_sets(self) -> list[str]:
        """The anchor sets of the forgetting curve."""
        return self.train.curve.sets if self.train.curve else []

    @property
    def anchor_sets(self) -> list[str]:
        """The anchor sets that are needed: for the losses of the run's methods, and for the forgetting curve."""
        methods = [self.methods[name] for name in self.run.methods]
        learned = {method.anchors.set for method in methods if method.anchors}
        return sorted(learned | {*self.curve_sets})

    @property
    def base(self) -> Model:
        """The model that is trained."""
        model = self.models["base"]
        assert isinstance(model, Model)  # checked above
        return model


def load_config(path: Path = Path("params.yaml")) -> Config:
    """Read and check `path`.

    Raises:
        InputError: naming every key that is wrong, what was expected, what came, and the new name of an old key.
    """
    return parse_config(read_document(path), str(path))


def read_document(path: Path = Path("params.yaml")) -> Any:
    """What stands in `path`, without defaults. InputError if it is not there or not YAML."""
    try:
        return read_yaml(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} is not there; run from the project's folder, or make one with `raft init`") from error


def parse_config(document: Any, name: str = "params.yaml") -> Config:
    """Check a document; `name` is what messages call it. Raises InputError as `load_config` does."""
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        problems = explain(Config, error)
        raise InputError(f"{name} has {len(problems)} problem(s):\n" + "\n".join(problems)) from error
