"""Prompt templates: Jinja files beside this module (templates/*.jinja), or a user's own."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template, TemplateSyntaxError, UndefinedError

from raft_tasks.errors import InputError

FOLDER = Path(__file__).parent / "templates"
LIKELIHOOD_TEMPLATE = "teacher.jinja"  # what the fusion's judge of likelihood shows: the question with its reference


def template_text(name_or_path: str) -> str:
    """The template's source. A name is looked up beside this module; with a separator in it, it is a path."""
    path = Path(name_or_path) if "/" in name_or_path or "\\" in name_or_path else FOLDER / name_or_path
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(file.name for file in FOLDER.glob("*.jinja")))
        raise InputError(
            f"prompt template {name_or_path!r} cannot be read ({error}); expected one of {known}, or a path with a '/'"
        ) from error


def render(name_or_path: str, **fields: str) -> str:
    """Fill the template, once: what stands in a field is text, even where it looks like Jinja.

    Raises:
        InputError: naming the template, and the fields it was given.
    """
    try:
        return _compiled(name_or_path, template_text(name_or_path)).render(fields)
    except UndefinedError as error:
        raise InputError(f"prompt template {name_or_path!r}: {error}; given: {', '.join(sorted(fields))}") from error


@cache
def _compiled(name_or_path: str, text: str) -> Template:
    try:
        return Environment(undefined=StrictUndefined, autoescape=False).from_string(text)  # prompts are not HTML
    except TemplateSyntaxError as error:
        raise InputError(f"prompt template {name_or_path!r}, line {error.lineno}: {error.message}") from error
