"""`models.base.thinking`: what it changes when it is left alone, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest

from raft_tasks.artifacts import digest
from raft_tasks.chat import ChatError
from raft_tasks.config import Model, parse_config, read_document, resolved
from raft_tasks.doctor import check_templates
from raft_tasks.errors import InputError
from raft_tasks.file_digests import FileDigests
from raft_tasks.models import identify
from raft_tasks.schemas import ItemResult, TrainingPair

ROOT = Path(__file__).parents[1]
POCKET = ROOT / "models/pocket-base"
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def config(judge=None, **base):
    document = read_document(ROOT / "params.yaml")
    document["models"] = {"base": {"path": "models/pocket-base", **base}}
    document["models"] |= {} if judge is None else {"judge": judge}
    document["train"]["max_length"] = 4096
    return parse_config(document)


def identity(tmp_path, **settings):
    with FileDigests(tmp_path / "digests.sqlite") as digests:
        return identify("base", Model(**settings), digests)


def test_with_thinking_off_a_model_is_to_dvc_and_caches_what_it_was_before_the_key(tmp_path):
    """Byte for byte: these are the files of artifacts/models, on which every stage with a model depends."""
    before = {"path": "owner/name", "revision": COMMIT, "dtype": "bfloat16", "system": None}
    for settings in ({}, {"thinking": "off"}, {"thinking": "off", "thought_tokens": 1024}):
        known = identity(tmp_path, path="owner/name", revision=COMMIT, **settings)
        assert json.dumps(known) == json.dumps(before)
        assert digest(resolved(Model(**before, **settings))) == digest(before)
    of_folder = identity(tmp_path, path=str(POCKET), dtype="float32")
    assert list(of_folder) == ["path", "revision", "dtype", "system", "sha256"]
    assert identity(tmp_path, path="owner/name", revision=COMMIT, thinking="both") == before | {"thinking": "both"}


def test_rows_without_thoughts_are_written_as_before():
    pair = TrainingPair(id="a", question="What?", answer="This.")
    item = ItemResult(task="domain", id="a", source="a", metrics={}, prompt="What?", answer="This.")
    assert "thought" not in pair.model_dump_json() + item.model_dump_json()
    assert '"thought":"<think>"' in pair.model_copy(update={"thought": "<think>"}).model_dump_json()


def test_a_template_without_a_switch_is_refused_by_the_doctor_and_before_the_first_stage(tmp_path):
    message = "thinking: got both, but the chat template of .* has no switch"
    with pytest.raises(ChatError, match=message):
        identity(tmp_path, path=str(POCKET), dtype="float32", thinking="both")
    [fault] = check_templates(config(path=str(POCKET), dtype="float32", thinking="both"))
    assert (fault.where, "has no switch" in fault.got) == ("models.base", True)
    folder = tmp_path / "thinks"
    folder.mkdir()
    shutil.copy(POCKET / "config.json", folder)
    (folder / "chat_template.jinja").write_text(QWEN3)
    for thinking in ("on", "both"):
        assert list(check_templates(config(path=str(folder), thinking=thinking))) == []
        assert identity(tmp_path, path=str(folder), thinking=thinking)["thinking"] == thinking


def test_only_the_base_thinks_and_its_thoughts_leave_room_for_answers():
    with pytest.raises(InputError, match=r"models\.judge\.thinking: got on, expected off: only base"):
        config(judge={"path": "y", "thinking": "on"})
    with pytest.raises(InputError, match=r"thought_tokens: got 4096, expected less than train\.max_length 4096"):
        config(thinking="on", thought_tokens=4096)
    assert config(thought_tokens=4096).base.thought_tokens == 4096  # of no account where nothing thinks
