"""The chat template that a trained model carries: by itself it renders what training and benchmarks rendered."""

import re
from pathlib import Path

import pytest
from chat_models import FORMATS, chat_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from raft_tasks.chat import PREAMBLE_END, ChatError, render, save_tokenizer, served_template

SMOLLM2 = (  # the model's own; a system turn of its own, where the messages bring none
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (  # no system turn
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
OPENS = FORMATS["qwen3"].template.replace(  # a thought, where thinking is on
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif -%}\n{%- endif -%}",
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% else %}{{ '<think>\\n' }}{% endif -%}\n{%- endif -%}",
)
FIRST_LINES = "\n \n  {% set a = 1 %}\n  {{ a }}" + SMOLLM2  # white space that trimming may not touch
TEMPLATES = {name: (name, form.template) for name, form in FORMATS.items()} | {
    "smollm2": ("qwen3", SMOLLM2),
    "gemma": ("llama", GEMMA),
    "first lines": ("qwen3", FIRST_LINES),
    "opens": ("qwen3", OPENS),
}
QUESTION = {"role": "user", "content": "What is 5 mg?"}
CONVERSATIONS = {
    "one turn": [QUESTION],
    "system": [{"role": "system", "content": "Reply in one word."}, QUESTION],
    "several turns": [QUESTION, {"role": "assistant", "content": "A dose."}, {"role": "user", "content": "Of what?"}],
}
TOLD = 'Say "it\'s {{ x }}" \\ {% raw %}\nas a clerk — ☃ 🦜 <b>\t.'


def tokenizer_of(name):
    form, template = TEMPLATES[name]
    tokenizer = chat_tokenizer(form)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    class Clock:
        @staticmethod
        def now():
            raise AssertionError("a prompt asked for today's date")

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


@pytest.mark.parametrize("system", [None, "Be brief.", TOLD])
@pytest.mark.parametrize("name", TEMPLATES)
def test_transformers_alone_renders_the_trained_prompts(name, system, tmp_path):
    tokenizer = tokenizer_of(name)
    save_tokenizer(tokenizer, system, tmp_path)
    served = AutoTokenizer.from_pretrained(tmp_path)
    refused = 0
    for messages in CONVERSATIONS.values():
        try:
            text = render(tokenizer, system, messages, add_generation_prompt=True)
        except ChatError:
            refused += 1
            with pytest.raises(Exception, match="System role not supported"):
                served.apply_chat_template(messages, add_generation_prompt=True)
            continue
        for options in ({}, {"enable_thinking": True}):
            shown = served.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, **options)
            assert shown["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert text.count(system or "no system prompt") == (system is not None)
    assert refused == ((3 if system else 1) if name == "gemma" else 0)


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "gemma"])
def test_training_and_benchmarks_render_a_trained_model_as_its_base(name, system):
    base, trained = tokenizer_of(name), tokenizer_of(name)
    trained.chat_template = served_template(base.chat_template, system)
    for messages in CONVERSATIONS.values():
        assert render(trained, system, messages, True) == render(base, system, messages, True)
        # None is the template's own system prompt, another one takes its place
        assert render(trained, None, messages, True) == render(base, system, messages, True)
        assert render(trained, "Be rude.", messages, True) == render(base, "Be rude.", messages, True)
    assert served_template(trained.chat_template, system) == trained.chat_template
    assert served_template(trained.chat_template, None) == trained.chat_template
    assert served_template(trained.chat_template, "Be rude.") == served_template(base.chat_template, "Be rude.")
    assert trained.chat_template.count(PREAMBLE_END) == 1


@pytest.mark.parametrize("thinking", ["on", "both"])
@pytest.mark.parametrize("name", ["smollm3", "qwen3", "opens"])
def test_a_served_template_carries_the_mode(name, thinking):
    """on: whatever a client asks for; both: as it asks. Made once more for another mode, it is as of the base."""
    base, served = tokenizer_of(name), tokenizer_of(name)
    for system in (None, "Be brief."):
        served.chat_template = served_template(base.chat_template, system, thinking)
        for messages in CONVERSATIONS.values():
            on, off = (render(base, system, messages, True, thinking=mode) for mode in (True, False))
            assert on != off
            for asked in (True, False):
                shown = served.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, enable_thinking=asked
                )
                assert shown == (on if asked or thinking == "on" else off)
            # benchmarks ask for either mode, whatever the folder of a trained model says
            assert [render(served, None, messages, True, thinking=mode) for mode in (True, False)] == [on, off]
        assert served_template(served.chat_template, None) == served_template(base.chat_template, system)


def test_with_thinking_off_a_served_template_is_what_it_was_before_there_was_a_choice():
    text = served_template(TEMPLATES["qwen3"][1], "Be brief.")
    assert text.startswith(
        "{#- raft-refinery: prompts as this model was trained and measured with: thinking off, the date frozen, the "
        'system prompt first -#}\n{%- set enable_thinking = false -%}\n{%- set trained_system = "Be brief." -%}\n'
    )


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_every_system_prompt_survives_being_written_into_a_template(system):
    tokenizer = tokenizer_of("phi")
    expected = render(tokenizer, system, CONVERSATIONS["system"], add_generation_prompt=True)
    tokenizer.chat_template = served_template(tokenizer.chat_template, system)
    turns = CONVERSATIONS["system"]
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == expected


def test_the_template_needs_no_more_than_plain_jinja():
    text = served_template(TEMPLATES["llama"][1], "Be brief.").partition(PREAMBLE_END)[0]
    assert set(re.findall(r"\{%-? (\w+)", text)) <= {"set", "if", "else", "endif"}
    assert "namespace" not in text
    assert "|" not in text


def test_a_date_that_cannot_be_frozen_is_refused_before_anything_is_written(tmp_path):
    tokenizer = tokenizer_of("smollm2")
    tokenizer.chat_template = "{% set form = '%d' %}{{ strftime_now(form) }}" + SMOLLM2
    with pytest.raises(ChatError, match="its prompts would change from day to day"):
        save_tokenizer(tokenizer, None, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


# The table of docs/guides/serving.md, made of what is rendered here.

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "serving.md"
SHOWN = {
    "smollm2": "SmolLM2 (its own)",
    "smollm3": "SmolLM3",
    "qwen3": "Qwen3",
    "llama": "Llama 3.2",
    "phi": "Phi-4-mini",
    "gemma": "Gemma 2",
}
HEADER = """\
| template in the form of | thinking | date | system turn | one turn | with a system turn | several turns |
|---|---|---|---|---|---|---|
"""


def raw(tokenizer, messages, **options):
    """The base's template as transformers renders it, on some day."""
    template = re.sub(r"strftime_now\([^)]*\)", "'some day'", tokenizer.chat_template)
    return tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True, **options
    )


def system_turn(tokenizer):
    """What the base's template makes of a system turn, read off its prompts without and with one."""
    try:
        given = raw(tokenizer, CONVERSATIONS["system"]).split(CONVERSATIONS["system"][0]["content"])[0]
    except TemplateError:
        return "refused"
    before = raw(tokenizer, CONVERSATIONS["one turn"]).split(QUESTION["content"])[0]
    if "system" not in before:
        return "where the messages bring one"
    heading = [line for line in before.splitlines() if line in given.splitlines()]
    return "always" if len(heading) > 1 else "its own where there is none"


def equality(tokenizer, served, messages):
    """Token ids of the saved folder, by transformers alone, against training's."""
    try:
        trained = tokenizer(render(tokenizer, None, messages, True), add_special_tokens=False)["input_ids"]
    except ChatError:
        trained = None
    try:
        alone = served.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)["input_ids"]
    except TemplateError:
        alone = None
    return "both refuse" if trained is alone is None else "equal" if trained == alone else "**differ**"


def template_table(work):
    rows = []
    for name, title in SHOWN.items():
        tokenizer = tokenizer_of(name)
        save_tokenizer(tokenizer, None, work / name)
        served = AutoTokenizer.from_pretrained(work / name)
        asked = raw(tokenizer, CONVERSATIONS["one turn"])
        switch = asked != raw(tokenizer, CONVERSATIONS["one turn"], enable_thinking=False)
        cells = [title, "on unless told" if switch else "-", "today's" if "some day" in asked else "-",
                 system_turn(tokenizer),
                 *(equality(tokenizer, served, messages) for messages in CONVERSATIONS.values())]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |\n")
    return HEADER + "".join(rows)


def test_the_documented_table_is_what_is_rendered(tmp_path):
    assert template_table(tmp_path) in PAGE.read_text(encoding="utf-8")


def test_a_system_turn_given_as_parts():
    template = SMOLLM2.replace("message['content']", "(message['content'] if message['content'] is string else "
                               "message['content'] | map(attribute='text') | join)")  # fmt: skip
    tokenizer = chat_tokenizer("qwen3")
    tokenizer.chat_template = served_template(template, "Be brief.")
    turns = [{"role": "system", "content": [{"type": "text", "text": "Be polite."}]}, QUESTION]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert text.startswith("<|im_start|>system\nBe brief.\n\nBe polite.<|im_end|>")
