import re
from pathlib import Path

import jsonschema
import pytest

from raft_tasks.artifacts import parse_yaml
from raft_tasks.config import Config, parse_config, read_document
from raft_tasks.config.base import sections
from raft_tasks.config.show import REFERENCE, one_line, reference, schema, show
from raft_tasks.errors import InputError

DOCUMENT = {
    "run": {
        "domains": ["mine"], "harvest": [], "documents": [], "judged": [], "methods": ["sft", "fused_sft_anchored"],
        "seeds": [0], "rows": "jsonl",
    },
    "models": {"base": {"path": "models/some"}, "judge_one": {"base_url": "http://host/v1?key=abc", "model": "m"}},
    "domains": {"mine": {"hygiene": {"contamination": "off"}}},
    "methods": {"mine": {"extends": "raft", "distillation": {"kl_weight": 1.0}}},
}  # fmt: skip


def test_all_that_holds_is_shown_and_makes_the_same_configuration():
    text = show(DOCUMENT)
    shown = parse_yaml(text, "shown")
    assert set(shown["methods"]) == {"sft", "fused_sft_anchored", "mine"}
    assert set(shown["anchors"]) == {"generated"}
    assert "abc" not in text
    shown["models"] = DOCUMENT["models"]
    assert parse_config(shown) == parse_config(DOCUMENT)


@pytest.mark.parametrize(
    "text",
    ["a/b.c-d", "a b", "1e3", "True", "null", ".inf", "-", "off", "a: b", "[x", "#", "", "two\nlines", "caf\u00e9"],
)
def test_a_value_on_one_line_is_read_back(text):
    value = {"key": [text, 1e-05, True, None, {text: {}}]}
    assert parse_yaml(one_line(value), "shown") == value
    assert "\n" not in one_line(value)
    assert one_line("models/pocket-base") == "models/pocket-base"


def test_what_params_yaml_sets_is_marked():
    text = show(DOCUMENT, "mine")
    assert "      kl_weight: 1.0   # params.yaml\n      kl_weight_max: 10.0\n" in text
    assert text.startswith("methods:\n  mine:\n    target: fused\n    sft: true\n")
    assert show(DOCUMENT, "ingest") == "ingest:\n  min_characters: 1\n  max_characters: 8000\n  max_rejected: 0.02\n"
    assert show(DOCUMENT, "train.launch.strategy") == "train:\n  launch:\n    strategy: none\n"
    assert "prompt_source: gibberish" in show(DOCUMENT, "gibberish")


def test_an_unknown_name_is_answered_with_the_likely_one():
    with pytest.raises(InputError, match=r"'raftt'; did you mean raft\?"):
        show(DOCUMENT, "raftt")


def test_the_schema_accepts_what_the_types_accept():
    for document in (DOCUMENT, read_document()):
        jsonschema.validate(document, schema())
    with pytest.raises(jsonschema.ValidationError, match="epohcs"):
        jsonschema.validate(DOCUMENT | {"train": {"epohcs": 1}}, schema())


def test_the_reference_is_current():
    assert REFERENCE.read_text(encoding="utf-8") == reference(), "run `make reference`"


def field_names(section):
    for name, field in section.model_fields.items():
        yield section.__name__, name
        for inner in sections(field.annotation):
            yield from field_names(inner)


def test_every_key_is_read_by_something():
    files = [
        path for root in ("flows", "raft_tasks") for path in Path(root).rglob("*") if path.suffix in (".py", ".jinja")
    ]
    outside = (path for path in files if path.parent != Path("raft_tasks/config") or path.name == "defaults.py")
    code = "\n".join(path.read_text(encoding="utf-8") for path in outside)
    unread = {
        f"{section}.{name}"
        for section, name in field_names(Config)
        if not re.search(rf"\.{name}\b|[\"']{name}[\"']", code) and name != "by"
    }
    assert unread == set()
