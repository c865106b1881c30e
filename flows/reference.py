"""`make reference`: docs/reference/config.md, the page of all keys, and commands.md, the page of all commands."""

from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from flows.cli import app
from raft_tasks.config.show import REFERENCE, reference

COMMANDS = Path("docs/reference/commands.md")


def commands() -> str:
    """The page COMMANDS, in Typer's own form: what `--help` prints."""
    group = typer.main.get_command(app)
    for command in group.commands.values():  # type: ignore[attr-defined]
        command.short_help = str(command.help).split("\n", 1)[0]  # otherwise Typer cuts it at 45 characters
    context = typer.Context(group, info_name="raft")
    return get_docs_for_click(obj=group, ctx=context, name="raft", title="Commands").strip() + "\n"


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
    COMMANDS.write_text(commands(), encoding="utf-8")
