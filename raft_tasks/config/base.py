"""What every section of the configuration is built from."""

from collections.abc import Iterable
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
FileName = Annotated[str, Field(pattern=r"^[\w.-]+\.jsonl$")]


class Section(BaseModel):
    """Keys that belong together: unknown keys are refused, types are strict (an int may stand for a float)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def key(default: Any, meaning: str, **constraints: Any) -> Any:
    """A key with its default and its meaning; a default of `...` must be given in params.yaml."""
    return Field(default, description=meaning, **constraints)


def added_key(default: Any, meaning: str, neutral: Any) -> Any:
    """A key that came after a release: with the value `neutral` results are what they were before the key existed.

    `resolved` leaves it out at that value, so that the new key re-runs no stage.
    """
    return Field(default, description=meaning, json_schema_extra={"neutral": neutral})


def resolved(section: Section) -> dict[str, Any]:
    """All values of `section` as JSON data, without added keys at their neutral value: what stages depend on."""
    return {
        name: _plain(getattr(section, name))
        for name, field in type(section).model_fields.items()
        if not _is_neutral(field.json_schema_extra, getattr(section, name))
    }


def _is_neutral(extra: Any, value: Any) -> bool:
    return isinstance(extra, dict) and "neutral" in extra and extra["neutral"] == value


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return resolved(value)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def kind_or(default: str) -> Any:
    """A discriminator by `kind` for a union of sections, `default` where the key is not given."""

    def kind(value: Any) -> str:
        return value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", default)

    return kind


def alternatives(annotation: Any) -> list[Any]:
    """`annotation` without Annotated, its unions taken apart."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if get_origin(annotation) not in (Union, UnionType):
        return [annotation]
    return [leaf for option in get_args(annotation) for leaf in alternatives(option)]


def sections(annotation: Any) -> list[type[Section]]:
    """The sections that `annotation` allows, directly or as items of a dict or list."""
    inner = []
    for leaf in alternatives(annotation):
        if get_origin(leaf) in (dict, list):
            inner += sections(get_args(leaf)[-1])
        elif isinstance(leaf, type) and issubclass(leaf, Section):
            inner.append(leaf)
    return inner


def walk(start: Any, path: Iterable[str | int]) -> tuple[list[str | int], list[Any]]:
    """Follow a pydantic error's `loc` from `start`: its parts without tags of unions, and the types at its end."""
    parts: list[str | int] = []
    current = alternatives(start)
    for part in path:
        following = []
        for leaf in current:
            if get_origin(leaf) in (dict, list):
                following += alternatives(get_args(leaf)[-1])
            elif isinstance(leaf, type) and issubclass(leaf, Section) and part in leaf.model_fields:
                following += alternatives(leaf.model_fields[str(part)].annotation)
        if following:
            parts.append(part)
            current = following
    return parts, current
