"""Which columns of a record hold the question, the answer and what else is read, and what else decides on a row.

The record {"instruction": "Translate.", "input": "Dog", "output": "Chien", "weight": 0} with the columns
{question: [instruction, input], answer: output} has these values:

    {"question": "Translate.\n\nDog", "answer": "Chien", "not learned": "weight is 0"}
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jinja2
import jinja2.meta

from raft_tasks.config import Domain
from raft_tasks.errors import InputError
from raft_tasks.sources.marks import MARKS, find_mark, plain_key

# Columns that public data sets use for a part of what the model is asked; without them a row is another question. Plain
# keys: `system_prompt` and `System prompt` are one.
_INPUTS = """
    input inputs inputtext instruction instructions context contexts ctx passage passages paragraph paragraphs article
    story documents background knowledge premise hypothesis sentence1 sentence2 choices options optiona optionb optionc
    optiond opa opb opc opd history chathistory system systemprompt systemmessage tools functions image images audio
    video
"""
INPUTS = frozenset(_INPUTS.split())
NOT_LEARNED = "not learned"
DOCUMENT_PAIR = frozenset({"source", "chunk"})  # of a pair that the stage `question` made
WHOLE_PAIR = DOCUMENT_PAIR | {"question", "answer", "agreement"}  # such a pair as the stage wrote it
FROM_DOCUMENT = "from a document"
# Turns of one conversation, a row each, share a split where no column is named as their source. Plain keys.
GROUPS = frozenset({"conversationid", "dialogid", "dialogueid", "threadid", "sessionid", "chatid", "messagetreeid"})


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
            try:
                self._parts = sorted(jinja2.meta.find_undeclared_variables(environment.parse(question)))
                self._template = environment.from_string(question)
            except jinja2.TemplateError as error:
                raise InputError(f"columns.question: {question!r} is no Jinja template: {error}") from error
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
        if "source" not in self._single and record.keys() >= DOCUMENT_PAIR:
            values["source"] = record["source"]  # pairs of one document share a split
        if record.keys() >= WHOLE_PAIR:  # its names are the stage's, whatever the domain's other files call theirs
            own = {role: record[role] for role in ("id", "question", "answer", "source") if role in record}
            values |= own | {FROM_DOCUMENT: True}
        elif (question := self._question(record, place)) is not None:
            values["question"] = question
        marks: dict[str, Any] = {}
        for column, value in record.items():
            if column in self.columns or column in self.unused:
                continue
            if value in (None, [], {}) or value != value or (isinstance(value, str) and not value.strip()):
                continue
            if plain_key(column) in MARKS:
                marks[column] = value
            if plain_key(column) in GROUPS and not {"source", "chat"} & self._single.keys():
                values.setdefault("source", str(value))
                continue
            self.leave(column, place)
        if marks and (mark := find_mark(marks)):
            values[NOT_LEARNED] = mark
        return values

    def optional(self, columns: Iterable[str]) -> set[str]:
        """Those of the columns that decide on a row though no role has them."""
        rest = set(columns) - self.columns.keys() - self.unused
        wanted = {column for column in rest if plain_key(column) in INPUTS | MARKS | GROUPS}
        there = rest | (self.columns.keys() & {*columns})
        pair = {"id", *WHOLE_PAIR} if there >= WHOLE_PAIR else DOCUMENT_PAIR if there >= DOCUMENT_PAIR else set()
        return wanted | (rest & pair)

    def leave(self, column: str, place: str) -> None:
        """Note a column that is not read."""
        column = column.encode("utf-8", "backslashreplace").decode()  # JSON can escape half a character
        (self._inputs if plain_key(column) in INPUTS else self.unread).setdefault(column, place)

    def check_inputs(self) -> None:
        """Raises InputError if a column that belongs to the question has a value, and nothing reads it."""
        target = "the messages" if "chat" in self._single else "columns.question (a list of columns, or a template)"
        for column, place in self._inputs.items():
            raise InputError(
                f"{place}: column {column!r} has a value and nothing reads it, so other questions would be learned; "
                f"add it to {target}, or to columns.unused in params.yaml"
            )

    def check(self, place: str, columns: list[str]) -> None:
        """Raises InputError for a column that is missing, or stands twice."""
        twice = [column for column in self.columns if columns.count(column) > 1]
        if twice:
            raise InputError(f"{place}: column {twice[0]!r} stands twice: {columns}; rename one of them")
        missing = [f"{column!r} (for {role})" for column, role in self.columns.items() if column not in columns]
        if missing and not {*columns} >= WHOLE_PAIR:
            separator = next((mark for mark in ";\t|" if any(mark in column for column in columns)), None)
            raise InputError(
                f"{place}: no column {', '.join(missing)}; the columns there are {', '.join(map(repr, columns))}; "
                + (
                    "correct `columns` in params.yaml"
                    if separator is None
                    else f"separate by commas, not {separator!r}"
                )
            )

    def _question(self, record: Mapping[str, Any], place: str) -> Any:
        if len(self._parts) == 1 and self._template is None:
            return record.get(self._parts[0])
        parts = {column: record[column] for column in self._parts if record.get(column) not in (None, "")}
        wrong = [part for part in parts.values() if not isinstance(part, str)]
        if wrong or not parts:
            return wrong[0] if wrong else None
        if self._template is None:
            return "\n\n".join(parts.values())
        try:
            return self._template.render(dict.fromkeys(self._parts, "") | parts)
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InputError(f"{place}: columns.question cannot be rendered: {error}; correct the template") from error


def roles_of(domain: Domain) -> Roles:
    columns: dict[str, Any] = domain.columns.model_dump()
    unused = columns.pop("unused", ())
    if domain.chat is not None:
        columns["chat"] = domain.chat.column
    return Roles(columns, unused)
