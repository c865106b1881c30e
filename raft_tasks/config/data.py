"""Where a domain's rows come from, and what is refused of them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PositiveInt, Tag, model_validator

from raft_tasks.config.base import Name, Section, Share, added_key, key


class Hub(Section):
    """A data set of the hub, or a local folder that `datasets` can load."""

    id: str = key(..., "owner/name on the hub, or a folder")
    config: str | None = key(None, "the data set's configuration, if it has several")
    data_files: list[str] | None = key(None, "glob patterns within the data set; null: all that the data set declares")
    split: str = key("train", "the data set's split")
    revision: str | None = key(None, "commit of 40 hexadecimal digits, required on the hub; null for a folder")
    streaming: bool = key(False, "read the data set row by row instead of downloading it")
    where: dict[str, list[str]] = key({}, "column -> accepted values; other rows are skipped")
    limit: PositiveInt | None = key(None, "rows taken at most")


class Harvest(Section):
    """Documents of one data set; `hub.where` chooses them, `hub.limit` is how many."""

    hub: Hub = key(..., "the data set")
    text: str = key("text", "the column with the text")
    max_characters: PositiveInt = key(8000, "characters kept of a document")


class Columns(Section):
    """Which column of the files holds what; null where they have none."""

    id: str | None = key(None, "a row's id; null: a digest of question and answer")
    question: str | list[str] | None = key(
        "question",
        "the question; a list of columns (joined by blank lines) or a template ('{{ instruction }}: {{ input }}') if "
        "it stands in several; null with `chat`",
    )
    answer: str | None = key("answer", "the reference answer; null with `chat`")
    source: str | None = key(None, "what a row comes from, such as a document: rows of one source share a split")
    split: str | None = key(None, "train, validation or test, for `split.by: column`")
    expected: str | None = key(None, "texts that a right answer must contain")
    details: str | None = key(None, "texts that a complete answer contains too")
    explanation: str | None = key(None, "what a terse answer means, in words: rewriting and fusion start from it")
    unused: list[str] = key([], "columns such as `input` or `context` that are left out on purpose")


class SplitByColumn(Section):
    """Rows name their split themselves."""

    by: Literal["column"] = key(..., "column: `columns.split` holds the split")
    sources_may_straddle: bool = key(False, "true: rows of one source may lie in several splits")


class SplitBySource(Section):
    """All rows of a source go to one split, drawn by a hash of source and seed."""

    by: Literal["source"] = key("source", "source: drawn by source")
    validation: Share = key(0.1, "share of the sources in the validation split")
    test: Share = key(0.2, "share of the sources in the test split")
    seed: int = key(0, "seed of the draw")


class Chat(Section):
    """Rows that are conversations: a list of {role, content} in one column. What comes before an answer is kept."""

    column: str = key("messages", "the column with the list")
    conversation: Literal["single", "first", "last", "all"] = key(
        "single",
        "single: refuse rows of several turns; first, last, all: which of their answers are learned, a row each",
    )


OTHER_METRICS = {  # of a domain's answers, beside its checks
    "acc", "complete", "token_f1", "judged", "thought", "unfinished_thought",
}  # fmt: skip
Off = BeforeValidator(  # a default can be turned off
    lambda value: None if value == "off" or value is False else value,
    json_schema_input_type=float | Literal["off"] | None,
)


class Hygiene(Section):
    """What is removed or flagged beyond what makes a row unusable."""

    near_duplicates: Annotated[Annotated[float, Field(ge=0.5, le=1)] | None, Off] = key(
        0.8, "Jaccard similarity of word trigrams above which the later of two rows is removed; off: none is"
    )
    contamination: Annotated[Annotated[float, Field(gt=0, le=1)] | None, Off] = key(
        0.5, "share of a benchmark item's word 8-grams above which a training row is removed; off: none is"
    )
    language: Annotated[str, Field(pattern="^[a-z]{2}$")] | None = key(
        None, "ISO 639-1 code that rows must have; null: any"
    )
    privacy: Literal["flag", "reject"] = key("flag", "what happens to rows with personal data or secrets")


class Check(Section):
    """A value that a right answer names, and no other one: found by patterns, or one of some choices."""

    patterns: list[str] = key(
        [], "regular expressions, case ignored; a value is a match's groups; the first that finds any decides"
    )
    choices: list[str] | dict[str, list[str]] = key(
        [], "the values, or value -> wordings that name it; wordings of capitals alone must be written so"
    )

    @model_validator(mode="after")
    def finds_something(self) -> Check:
        if bool(self.patterns) == bool(self.choices):
            raise ValueError("patterns and choices: expected exactly one of them")
        for pattern in self.patterns:
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"patterns: {pattern!r} is no regular expression: {error}") from error
            if not groups:
                raise ValueError(f"patterns: {pattern!r} has no group: expected parentheses round the value")
        return self


Split = Annotated[
    Annotated[SplitByColumn, Tag("column")] | Annotated[SplitBySource, Tag("source")],
    Discriminator(lambda value: value.get("by", "source") if isinstance(value, dict) else getattr(value, "by", None)),
]


class Domain(Section):
    """A domain's question-answer pairs."""

    files: list[str] = key(
        [], "glob patterns in data/<domain>; default without `hub`: all .jsonl and .csv (also .gz, .zst), .parquet"
    )
    hub: Hub | None = key(None, "a data set of the hub, in place of files or beside them")
    columns: Columns = key(Columns(), "the files' columns")
    chat: Chat | None = key(None, "set where rows are conversations")
    split: Split = key(SplitBySource(), "how rows get their split")
    hygiene: Hygiene = key(Hygiene(), "what is removed or flagged")
    limit: dict[Literal["train", "validation", "test"], PositiveInt] = key(
        {}, "split -> rows used of it, drawn by a hash of their ids; others whole"
    )
    checks: dict[Name, Check] = added_key(
        {}, "values that right answers name, by their reference; the first check is the domain's accuracy", {}
    )

    @model_validator(mode="before")
    @classmethod
    def chat_takes_the_place_of_columns(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("chat") is not None and isinstance(value.get("columns", {}), dict):
            value = {**value, "columns": {"question": None, "answer": None, **value.get("columns", {})}}
        return value

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
        of_one_answer = {"expected", "details", "explanation"} & self.columns.model_dump(exclude_none=True).keys()
        if of_one_answer and self.chat is not None and self.chat.conversation == "all":
            raise ValueError(
                f"columns {sorted(of_one_answer)} belong to one answer of a conversation, got chat.conversation 'all': "
                "expected single, first or last"
            )
        if OTHER_METRICS & set(self.checks):
            raise ValueError(f"checks {sorted(self.checks)}: expected other names than {sorted(OTHER_METRICS)}")
        return self


class Ingest(Section):
    """Which rows are unusable, and how many may be."""

    min_characters: PositiveInt = key(1, "characters of a question or answer, at least")
    max_characters: PositiveInt = key(8000, "characters of a question or answer; longer rows are rejected, never cut")
    max_rejected: Share = key(0.02, "share of rows that may be unusable; beyond it the stage fails and names them")
