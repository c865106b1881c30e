"""Evidence of the gate: the same verdict from its file alone, and a model that was changed afterwards."""

import json
from dataclasses import replace

import pytest
from chat_models import chat_tokenizer
from transformers import AutoTokenizer, GenerationConfig

from raft_tasks.chat import PREAMBLE_END, save_tokenizer
from raft_tasks.config import Model, load_config
from raft_tasks.errors import InputError
from raft_tasks.evaluation.evidence import Evidence, check_files, digest_model, replay, write_evidence
from raft_tasks.evaluation.gate import Measured
from raft_tasks.evaluation.prompting import CONVERSATIONS, END, compare_prompts
from raft_tasks.schemas import ItemResult

RULES = load_config().gate
TOLD = "Be brief."


def measured(name, right):
    def item(task, number):
        return ItemResult(
            task=task,
            id=str(number),
            source=str(number),
            metrics={"acc": float(number < right)},
            prompt="a prompt",
            answer="It is rope.",
        )

    items = {task: [item(task, number) for number in range(60)] for task in ("domain", "recall")}
    return Measured(name, items, bytes=10, seconds=0.5, leaks=0.0, prompting={"one turn": None})


@pytest.fixture
def evidence(tmp_path):
    """On a candidate in tmp_path/model."""
    save_tokenizer(chat_tokenizer("smollm3"), TOLD, tmp_path / "model")
    inputs = {"candidate": digest_model(Model(path=str(tmp_path / "model")))}
    return Evidence("archive", RULES, measured("raft-0", 45), measured("base", 30), None, 0.95, inputs)


@pytest.mark.parametrize("right", [45, 0])
def test_a_file_gives_the_verdict_again(evidence, right, tmp_path):
    repeat = measured("raft-0 repeated", right)
    evidence = replace(
        evidence, candidate=measured("raft-0", right), champion=measured("raft-archive@v1", 44), repeat=repeat
    )
    verdict = evidence.judge()
    assert verdict.promoted == (right == 45)
    write_evidence(tmp_path / "gate.json", evidence, verdict)
    again, same = replay(tmp_path / "gate.json", tmp_path / "model")
    assert same == verdict
    assert again.inputs == evidence.inputs
    text = (tmp_path / "gate.json").read_text()
    assert "rope" not in text
    assert json.loads(text)["verdict"]["promoted"] == verdict.promoted


def test_a_verdict_or_figure_changed_by_hand_is_refused(evidence, tmp_path):
    file = tmp_path / "gate.json"
    write_evidence(file, evidence, evidence.judge())
    whole = file.read_text()
    for old, new in (('"result": "pass"', '"result": "fail"'), ('"seconds": 0.5', '"seconds": 9.5')):
        assert old in whole
        file.write_text(whole.replace(old, new, 1))
        with pytest.raises(InputError, match="its figures do not give its verdict"):
            replay(file)
    for broken in ("", "{}", whole.replace('"items"', '"item"')):
        file.write_text(broken)
        with pytest.raises(InputError, match="expected evidence as `raft gate` writes it"):
            replay(file)
    with pytest.raises(InputError, match="No such file"):
        replay(tmp_path / "none.json")


def test_a_template_changed_by_hand_after_the_gate_is_caught(evidence, tmp_path):
    check_files(evidence, tmp_path / "model")
    (tmp_path / "model/README.md").write_text("The card is written later.")
    check_files(evidence, tmp_path / "model")
    template = tmp_path / "model/chat_template.jinja"
    template.write_text(template.read_text() + " ")
    (tmp_path / "model/extra.txt").write_text("")
    with pytest.raises(InputError, match=r"not the model that was judged: chat_template\.jinja, extra\.txt differ"):
        check_files(evidence, tmp_path / "model")


ALL = dict.fromkeys([*CONVERSATIONS, END])


def save_ends(folder, *tokens):
    ends = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(tokens)
    GenerationConfig(eos_token_id=ends).save_pretrained(folder)


def models(tmp_path, name, edit):
    """A trained model's folder with `edit` made in its template, and its base."""
    tokenizer = chat_tokenizer(name)
    tokenizer.save_pretrained(tmp_path / "base")
    save_tokenizer(tokenizer, TOLD, tmp_path / "trained")
    template = tmp_path / "trained/chat_template.jinja"
    template.write_text(edit(template.read_text()))
    save_ends(tmp_path / "trained", "<|end_of_text|>", "<|im_end|>")
    return Model(path=str(tmp_path / "trained")), Model(path=str(tmp_path / "base"), system=TOLD)


def test_a_trained_folder_shows_the_prompts_of_training(tmp_path):
    assert compare_prompts(*models(tmp_path, "smollm3", str)) == ALL


def test_a_folder_whose_servers_would_not_stop_at_the_trained_end_is_caught(tmp_path):
    """Benchmarks stop there by themselves: the scores of such a folder are not what its users see."""
    trained, base = models(tmp_path, "smollm3", str)
    save_ends(tmp_path / "trained", "<|end_of_text|>")
    shown = compare_prompts(trained, base)
    assert {name for name, text in shown.items() if text} == {END}
    assert "stops at eos_token_id [" in shown[END]
    assert "'<|im_end|>'), which ends a turn in training" in shown[END]
    save_ends(tmp_path / "trained", "<|im_end|>")
    assert compare_prompts(trained, base) == ALL
    (tmp_path / "trained/generation_config.json").unlink()
    assert "there is no generation_config.json" in compare_prompts(trained, base)[END]


@pytest.mark.parametrize(
    ("edit", "differing", "shown"),
    [
        (lambda text: text.partition(PREAMBLE_END)[2], set(CONVERSATIONS), "in training"),
        (lambda text: text.replace("enable_thinking = false", "enable_thinking = true"), set(CONVERSATIONS), "token "),
        (lambda text: text.replace("+ '\\n\\n' +", "+ ' ' +"), {"system turn"}, "token "),
        (lambda text: text.replace("message.content.lstrip", "message.content.upper"), set(CONVERSATIONS), "refuses"),
        (lambda text: "{{ raise_exception('no') }}" + text, set(CONVERSATIONS), "the folder's template refuses it: no"),
        (lambda text: text + "x", set(CONVERSATIONS), "in training the end"),
    ],
    ids=["of the base", "thinks", "merges otherwise", "of turns", "refuses", "longer"],
)
def test_every_change_of_a_template_shows(edit, differing, shown, tmp_path):
    found = {name: text for name, text in compare_prompts(*models(tmp_path, "smollm3", edit)).items() if text}
    if shown == "refuses":  # upper() takes no argument: an assistant's turn is refused, others are not
        differing = {"several turns"}
    assert set(found) == differing
    assert all(shown in text for text in found.values())


def test_what_training_refuses_the_folder_must_refuse(tmp_path):
    gemma = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    base, trained = chat_tokenizer("qwen3"), tmp_path / "trained"
    base.chat_template, plain = gemma + base.chat_template, base.chat_template
    base.save_pretrained(tmp_path / "base")
    save_tokenizer(base, None, trained)
    settings = Model(path=str(trained)), Model(path=str(tmp_path / "base"))
    save_ends(trained, "<|im_end|>")
    assert compare_prompts(*settings) == ALL
    (trained / "chat_template.jinja").write_text("{%- set enable_thinking = false -%}" + plain)
    assert compare_prompts(*settings)["system turn"] == "training's template refuses it, the folder's does not"
