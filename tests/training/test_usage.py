"""The card's section on serving: for a whole model, for an adapter, and once where a card is written again."""

import subprocess

import pytest

from raft_tasks.artifacts import write_json
from raft_tasks.config import Model
from raft_tasks.training.usage import with_usage

BASE = Model(path="models/base", dtype="bfloat16")
HUB = Model(path="team/base", revision="a" * 40, dtype="float32")


@pytest.fixture
def adapter(tmp_path):
    write_json(tmp_path / "adapter" / "adapter_config.json", {"r": 12})
    return tmp_path / "adapter"


def commands(card):
    blocks = card.split("```sh\n")[1:]
    return "\n".join(block.partition("```")[0] for block in blocks)


def test_a_whole_model_needs_its_folder_alone(tmp_path):
    card = with_usage("# A card\n\n## Scores\n\nNone.\n", tmp_path, BASE)
    assert card.startswith("# A card\n\n## Scores\n\nNone.\n\n## Use\n\nThe folder is complete.")
    assert 'vllm serve "$MODEL" --dtype bfloat16 --served-model-name "$MODEL"\n' in card
    assert 'transformers serve "$MODEL" --dtype bfloat16\n' in card
    assert 'raft export "$MODEL" model.gguf --dtype float16\n' in card
    assert "lora" not in card
    assert "models/base" not in card


def test_an_adapter_is_served_on_its_base_with_its_own_prompting(adapter):
    text = commands(with_usage("# A card\n", adapter, HUB)).replace("\\\n  ", "")
    assert f"vllm serve team/base --dtype float32 --revision {'a' * 40} --enable-lora --max-lora-rank 16 " in text
    assert '--lora-modules "$MODEL=$MODEL" --tokenizer "$MODEL" --chat-template "$MODEL/chat_template.jinja"' in text
    assert '--generation-config "$MODEL"\n' in text
    assert "--revision" not in with_usage("", adapter, BASE)


def test_a_card_that_is_written_again_has_one_section_of_the_folder_that_it_lies_in(adapter, tmp_path):
    card = with_usage("# A card\n", adapter, BASE) + "\n## Release\n\nPromoted.\n"
    again = with_usage(card, tmp_path, BASE)
    assert again == with_usage("# A card\n\n## Release\n\nPromoted.\n", tmp_path, BASE)
    assert again.count("## Use\n") == 1


@pytest.mark.parametrize("whole", [True, False])
def test_the_commands_are_a_shells(adapter, tmp_path, whole):
    text = commands(with_usage("# A card\n", tmp_path if whole else adapter, BASE))
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    sent = text.partition("-d ")[2]
    done = subprocess.run(["bash", "-c", f"MODEL='a b'; echo {sent}"], capture_output=True, text=True, check=True)
    assert '{"model": "a b", "messages": [' in done.stdout
