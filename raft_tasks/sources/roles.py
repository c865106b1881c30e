"""Which columns of a record hold the question, the answer and what else is read, and what else decides on a row.

The record {"instruction": "Translate.", "input": "Dog", "output": "Chien", "weight": 0} with the columns
{question: [instruction, input], answer: output} has these values:

    {"question": "Translate.\n\nDog", "answer": "Chien", "not learned": "weight is 0"}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jinja2
import jinja2.meta

from raft_tasks.config import Domain
from raft_tasks.errors import InputError
from raft_tasks.sampling import is_finished
from raft_tasks.schemas import DocumentPair

# Columns that public data sets use for a part of what the model is asked; without them a row is another question.
INPUTS = frozenset(
    {"input", "inputs", "input_text", "instruction", "context", "contexts", "passage", "background", "knowledge",
     "premise", "hypothesis", "choices", "options", "history", "system", "system_prompt", "tools", "functions"}
)  # fmt: skip
# How formats mark what is not learned, a turn or a row. OpenAI, Mistral, OpenChat: weight 0; axolotl:
# train(ing) false; ms-swift, XTuner: loss false; torchtune: masked true; HELM-like exports: ignore, mask true.
LEARNED_KEYS = ("weight", "loss_weight", "train", "training", "trainable", "loss", "learn", "output_with_loss")
MASKED_KEYS = ("masked", "mask", "ignore", "ignore_loss", "no_loss")
# KTO: the answer of a row with label false is a bad one. Generated rows: one with another finish_reason was cut.
ROW_MARKS = frozenset({*LEARNED_KEYS, *MASKED_KEYS, "label", "finish_reason"})
NOT_LEARNED = "not learned"
DOCUMENT_PAIR = frozenset(DocumentPair.model_fields)  # the columns of a pair that the stage `question` made


class SourceError(InputError):
    """A file, or the set of files, cannot be used as it is."""


class Roles:
    """Takes the values of the roles (question, answer, id, ..., `chat` for a conversation) out of a record.

    Args:
        columns: {role: column}; the question's may be a list of columns, or a Jinja template of them.
        unused: columns that are left out on purpose.

    Attributes:
        unread: other columns with a value that no role reads -> where the first one stands.
    """

    def __init__(self, columns: Mapping[str, str | list[str] | None], unused: Iterable[str] = ()) -> None:
        self.unused = frozenset(unused)
        question = columns.get("question") or []
        self._template: jinja2.Template | None = None
        if isinstance(question, str) and "{{" in question:
            environment = jinja2.Environment(keep_trailing_newline=True)
            self._parts = sorted(jinja2.meta.find_undeclared_variables(environment.parse(question)))
            self._template = environment.from_string(question)
        else:
            self._parts = [question] if isinstance(question, str) else question
        self._single = {role: str(column) for role, column in columns.items() if column and role != "question"}
        self.columns = dict.fromkeys(self._parts, "question")
        self.columns |= {column: role for role, column in self._single.items() if column not in self.columns}
        self.unread: dict[str, str] = {}
        self._inputs: dict[str, str] = {}  # those of them that belong to the question

    def take(self, record: Mapping[str, Any], place: str) -> dict[str, Any]:
        """{role: value} of the roles that have one."""
        values = {role: record[column] for role, column in self._single.items() if record.get(column) is not None}
        question = self._question(record)
        if question is not None:
            values["question"] = question
        if "source" not in self._single and record.keys() >= DOCUMENT_PAIR:
            values["source"] = record["source"]  # pairs of one document share a split
        for column in record.keys() - self.columns.keys() - self.unused:
            value = record[column]
            if value in (None, "", [], {}):
                continue
            if (_key(column) in ROW_MARKS and _is_masked(_key(column), value)) or (
                _key(column) == "finish_reason" and not is_finished(value)
            ):
                values[NOT_LEARNED] = f"{column} is {value!r}"
            else:
                self.leave(column, place)
        return values

    def optional(self, columns: Iterable[str]) -> set[str]:
        """Those of the columns that decide on a row though no role has them."""
        rest = set(columns) - self.columns.keys() - self.unused
        wanted = {column for column in rest if _key(column) in INPUTS | ROW_MARKS}
        return wanted | (rest & DOCUMENT_PAIR if rest | self.columns.keys() >= DOCUMENT_PAIR else set())

    def leave(self, column: str, place: str) -> None:
        """Note a column that is not read."""
        (self._inputs if _key(column) in INPUTS else self.unread).setdefault(column, place)

    def check_inputs(self) -> None:
        """Raises SourceError if a column that belongs to the question has a value, and nothing reads it."""
        for column, place in self._inputs.items():
            raise SourceError(
                f"{place}: column {column!r} has a value and nothing reads it, so other questions would be learned; "
                "add it to columns.question (a list of columns, or a template), or to columns.unused in params.yaml"
            )

    def check(self, place: str, columns: list[str]) -> None:
        """Raises SourceError for a column that is missing, or stands twice."""
        twice = [column for column in self.columns if columns.count(column) > 1]
        if twice:
            raise SourceError(f"{place}: column {twice[0]!r} stands twice: {columns}; rename one of them")
        missing = [f"{column!r} (for {role})" for column, role in self.columns.items() if column not in columns]
        if missing:
            separator = next((mark for mark in ";\t|" if any(mark in column for column in columns)), None)
            raise SourceError(
                f"{place}: no column {', '.join(missing)}; the columns there are {', '.join(map(repr, columns))}; "
                + (
                    "correct `columns` in params.yaml"
                    if separator is None
                    else f"separate by commas, not {separator!r}"
                )
            )

    def _question(self, record: Mapping[str, Any]) -> Any:
        if len(self._parts) == 1 and self._template is None:
            return record.get(self._parts[0])
        parts = {column: record[column] for column in self._parts if record.get(column) not in (None, "")}
        wrong = [part for part in parts.values() if not isinstance(part, str)]
        if wrong or not parts:
            return wrong[0] if wrong else None
        if self._template is None:
            return "\n\n".join(parts.values())
        return self._template.render(dict.fromkeys(self._parts, "") | parts)


def _key(column: str) -> str:
    return column.strip().lower()


def _is_masked(key: str, value: Any) -> bool:
    """Whether a row's mark says that it is not learned; other values than yes and no are no marks."""
    if isinstance(value, str):
        value = {"true": True, "false": False, "0": 0, "1": 1, "0.0": 0, "1.0": 1}.get(_key(value))
    if key == "label" and not isinstance(value, bool):  # a class
        return False
    return value in (0, 1) and bool(value) == (key in MASKED_KEYS)


def roles_of(domain: Domain) -> Roles:
    columns: dict[str, Any] = domain.columns.model_dump()
    unused = columns.pop("unused", ())
    if domain.chat is not None:
        columns["chat"] = domain.chat.column
    return Roles(columns, unused)
