"""`raft chat`: a person talks to base and candidate side by side, each prompted by its own folder alone."""

import sys
from contextlib import ExitStack
from typing import Any

from raft_tasks.compare import base_settings, locate_model
from raft_tasks.config import Model, load_config
from raft_tasks.errors import InputError
from raft_tasks.evaluation.prompting import served_ids
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.sampling import SamplingParams
from raft_tasks.schemas import Turn

WIDTH = 100  # columns where the output is no terminal
NEW = "/new"
HELP = f"An empty line is passed over, {NEW} begins a new conversation, Ctrl-D ends. Answers are greedy."


class Partner:
    """A model in a conversation of its own: its template alone renders it, without any option."""

    def __init__(self, model: Model) -> None:
        self.backend = TransformersBackend(model)
        self.backend.model  # noqa: B018  what cannot be loaded is refused before a person types
        self.turns: list[Turn] = []

    def answer(self, question: str, max_tokens: int) -> str:
        """The answer to the next user turn; both are kept. InputError where the conversation is too long."""
        turns = [*self.turns, Turn(role="user", content=question)]
        greedy = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        (completion,) = self.backend.call("tokens", [served_ids(self.backend.tokenizer, turns)], greedy, [0])
        self.turns = [*turns, Turn(role="assistant", content=completion.text)]
        return completion.text if completion.finished else f"{completion.text} [not finished in {max_tokens} tokens]"


def chat(candidate: str, base: str | None, max_tokens: int) -> None:
    """Read user turns from standard input, one a line, and print both models' answers.

    Args:
        candidate: in a form of `raft compare`, as `base`, which is models.base of the project where it is None.

    Raises:
        InputError: a model is not there or cannot be loaded.
    """
    settings = base_settings()
    with ExitStack() as located:
        models = {"base": located.enter_context(locate_model(base, [], settings)) if base else load_config().base}
        models["candidate"] = located.enter_context(locate_model(candidate, [], settings))
        partners = {role: Partner(model) for role, model in models.items()}
        print(*(f"{role}: {model.path}" for role, model in models.items()), HELP, sep="\n", flush=True)
        while (line := _read_line()) is not None:
            if line == NEW:
                for partner in partners.values():
                    partner.turns = []
            elif line:
                _print_answers({name: _answer(partner, line, max_tokens) for name, partner in partners.items()})


def _read_line() -> str | None:
    """What a person typed; None at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None


def _answer(partner: Partner, question: str, max_tokens: int) -> str:
    try:
        return partner.answer(question, max_tokens)
    except InputError as error:
        return f"[no answer: {error}; {NEW} begins a new conversation]"


def _print_answers(answers: dict[str, str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console: Any = Console()
    console.width = console.width if console.is_terminal else WIDTH
    table = Table(box=SIMPLE_HEAD, expand=True)
    for name in answers:
        table.add_column(Text(name), ratio=1)
    table.add_row(*map(Text, answers.values()))
    console.print(table)
