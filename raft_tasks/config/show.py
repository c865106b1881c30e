"""The configuration as text: what holds, a JSON schema for editors, the reference of all keys."""

import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic_core import PydanticUndefined, to_jsonable_python

from raft_tasks.config.base import Section, alternatives, sections
from raft_tasks.config.config import Config, parse_config
from raft_tasks.config.defaults import catalogue
from raft_tasks.config.models import MAY_BE_SECRET
from raft_tasks.errors import InputError

MARK = "   # params.yaml"
PLAIN = re.compile(r"(?!(true|false|null)$)[^\W\d_][\w./-]*", re.IGNORECASE)  # needs no quotes
SETS = ("methods", "anchors")
REFERENCE = Path("docs/reference/config.md")
HEAD = """\
# Configuration reference

`make reference` writes this page. `params.yaml` says what differs from these defaults; `raft config show` prints all
that holds. NAME stands for a name of yours, * for an item of a list; where a key has several kinds, the kind stands in
brackets. An entry of `methods` or `anchors` is laid over the built-in one of its name; `extends: NAME` starts from one.
"""


def show(document: Any, key: str | None = None) -> str:
    """What holds as YAML, defaults included; what the document sets is marked.

    Args:
        document: of params.yaml (`read_document`).
        key: a section, a key such as train.epochs, a method or an anchor set; None: all, but only the methods and sets
            that are run or given.

    Raises:
        InputError: the document is wrong, or nothing is called `key`.
    """
    config = parse_config(document)
    values = config.model_dump(mode="json")
    if key is None:
        rows = {name: config.methods[name] for name in config.run.methods}
        used = {"methods": set(rows), "anchors": {row.anchors.set for row in rows.values() if row.anchors}}
        for section, names in used.items():
            wanted = names | document.get(section, {}).keys()
            values[section] = {name: row for name, row in values[section].items() if name in wanted}
    elif key.partition(".")[0] in values:
        values = _part(values, key.split("."), key)
    else:
        holders = [section for section in SETS if key in values[section]]
        if not holders:
            choices = [*values, *(name for section in SETS for name in values[section])]
            close = get_close_matches(key, choices, n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(choices)}"
            raise InputError(f"no section, method or anchor set is called {key!r}; {hint}")
        values = {section: {key: values[section][key]} for section in holders}
    return "\n".join(_lines(values, document, "")) + "\n"


def _part(values: Any, path: list[str], key: str) -> Any:
    """The mapping around what lies at `path`."""
    name, *rest = path
    if not isinstance(values, dict) or name not in values:
        names = ", ".join(values) if isinstance(values, dict) else "no keys"
        raise InputError(f"got the key {key!r}, expected for {name!r} one of {names}")
    return {name: _part(values[name], rest, key) if rest else values[name]}


def _lines(values: Mapping[str, Any], given: Any, indent: str) -> Iterator[str]:
    for name, value in values.items():
        stands = isinstance(given, dict) and name in given
        if isinstance(value, dict) and value:
            yield f"{indent}{one_line(name)}:"
            yield from _lines(value, given[name] if stands else None, indent + "  ")
        else:
            text = "'***'" if name in MAY_BE_SECRET and value is not None else one_line(value)
            yield f"{indent}{one_line(name)}: {text}{MARK if stands else ''}"


def one_line(value: Any) -> str:
    """A value as YAML 1.2 on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(one_line, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{one_line(name)}: {one_line(item)}' for name, item in value.items())}}}"
    return value if isinstance(value, str) and PLAIN.fullmatch(value) else json.dumps(value, ensure_ascii=False)


def schema() -> dict[str, Any]:
    """JSON schema of params.yaml."""
    result = Config.model_json_schema()
    for name in ("Method", "AnchorSet"):
        result["$defs"][name]["properties"]["extends"] = {"type": "string", "description": "the entry it starts from"}
    return result


def reference() -> str:
    """The page REFERENCE: every key with its values, default and meaning."""
    parts = [HEAD]
    for name, field in Config.model_fields.items():
        star = ".NAME" if "dict[" in str(field.annotation) else ""
        rows = [row for inner in sections(field.annotation) for row in _rows(inner, f"{name}{star}.")]
        text = str(field.description)
        parts += [
            f"## {name}\n\n{text[0].upper()}{text[1:]}.\n",
            "| key | values | default | meaning |\n|---|---|---|---|",
        ]
        parts += [*rows, ""]
    text = Path(__file__).with_name("catalogue.yaml").read_text(encoding="utf-8")
    names = ", ".join(f"`{name}`" for name in catalogue()["methods"])
    return "\n".join([*parts, f"## Built-in entries\n\nMethods: {names}.\n\n```yaml\n{text}```\n"])


def _rows(section: type[Section], prefix: str, values: Any = None) -> Iterator[str]:
    """Table rows of a section's keys and of all within; `values` are its defaults where they are not its own."""
    for name, field in section.model_fields.items():
        inner = sections(field.annotation)
        default = field.default if values is None else getattr(values, name)
        if not (inner and isinstance(default, Section)):
            text = "required" if field.is_required() else "see meaning"
            if default is not PydanticUndefined:
                text = f"`{one_line(to_jsonable_python(default))}`"
            cells = (f"`{prefix}{name}`", _type(field.annotation), text, str(field.description))
            yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
        star = ".NAME" if "dict[" in str(field.annotation) else ".*" if "list[" in str(field.annotation) else ""
        for option in inner:
            kind = next((option.model_fields[key] for key in ("kind", "by") if key in option.model_fields), None)
            tag = f"({get_args(kind.annotation)[0]})" if kind and len(inner) > 1 else ""
            yield from _rows(option, f"{prefix}{name}{star}{tag}.", default if isinstance(default, option) else None)


def _type(annotation: Any) -> str:
    """The type of a key in words."""
    words = []
    for leaf in alternatives(annotation):
        if get_origin(leaf) is Literal:
            words += [str(value) for value in get_args(leaf)]
        elif get_origin(leaf) in (list, dict):
            words.append(f"{get_origin(leaf).__name__} of {_type(get_args(leaf)[-1])}")
        elif isinstance(leaf, type) and issubclass(leaf, Section):
            words.append("keys below")
        else:
            words.append(
                {"str": "text", "int": "integer", "float": "number", "bool": "true, false", "NoneType": "null"}.get(
                    leaf.__name__, "any"
                )
            )
    return " | ".join(dict.fromkeys(words))
