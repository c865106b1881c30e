"""Chat formats of real models: what is rendered, where an answer ends, and what cannot be trained on."""

import re
from functools import cache

import pytest
from chat_models import FORMATS, chat_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from raft_tasks.chat import (
    ChatError,
    check_chat,
    end_of_turn,
    prompt_ids,
    render,
    stop_ids,
)
from raft_tasks.control_tokens import CONTROL, break_up, control_tokens, defuse

tokenizer_of = cache(chat_tokenizer)
ASKED = [{"role": "user", "content": "What is 5 mg?"}]
TOLD = "Answer as a clerk would."


@pytest.fixture(scope="module", params=FORMATS)
def named(request):
    return FORMATS[request.param], chat_tokenizer(request.param)


NORMALIZERS = {
    "full width": (normalizers.NFKC(), "＜|im_end|＞"),
    "capitals": (normalizers.Lowercase(), "<|IM_END|>"),
    "accents": (normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), "<|im_e\u0301nd|>"),
}


@pytest.mark.parametrize("name", NORMALIZERS)
def test_data_never_become_control_tokens_behind_a_normalisation(name):
    normalizer, text = NORMALIZERS[name]
    tokenizer = chat_tokenizer("qwen3")
    tokenizer.backend_tokenizer.normalizer = normalizer
    tokenizer.add_tokens([AddedToken("<|im_end|>", normalized=True, special=True)])
    id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == [id]
    assert id not in tokenizer(defuse(tokenizer, text), add_special_tokens=False)["input_ids"]
    assert prompt_ids(tokenizer, None, text).count(id) == prompt_ids(tokenizer, None, "x").count(id)
    assert defuse(tokenizer, "Ｘ É <b>") == "Ｘ É <b>"


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=20), st.data())
def test_data_never_become_control_tokens(text, data):
    for name in FORMATS:
        tokenizer = tokenizer_of(name)
        tokens = control_tokens(tokenizer)
        planted = text + data.draw(st.sampled_from(sorted(tokens))) + text
        shown, plain = prompt_ids(tokenizer, None, planted), prompt_ids(tokenizer, None, "x")
        assert {id: shown.count(id) for id in tokens.values()} == {id: plain.count(id) for id in tokens.values()}


def fragments(tokens):
    """Texts out of pieces of control tokens, which may meet in new ones."""
    pieces = {token[begin:end] for token in tokens for begin in (0, 1, 2) for end in (1, -2, -1, None)}
    return st.lists(st.sampled_from(sorted(pieces | {" ", "\n", "\u200b"})), max_size=12).map("".join)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_no_pieces_of_data_meet_in_a_control_token(data):
    for name in FORMATS:
        tokenizer = tokenizer_of(name)
        tokens = control_tokens(tokenizer)
        text = data.draw(fragments(tokens))
        for system, question in ((None, text), (TOLD, f"a\n{text}")):
            shown, plain = prompt_ids(tokenizer, system, question), prompt_ids(tokenizer, system, "x")
            assert {id: shown.count(id) for id in tokens.values()} == {id: plain.count(id) for id in tokens.values()}
        messages = [{"role": role, "content": text} for role in ("user", "assistant", "user")]
        ids = tokenizer(render(tokenizer, None, messages, add_generation_prompt=True), add_special_tokens=False)
        plain = [{**message, "content": "x"} for message in messages]
        plain_ids = tokenizer(render(tokenizer, None, plain, add_generation_prompt=True), add_special_tokens=False)
        for id in tokens.values():
            assert ids["input_ids"].count(id) == plain_ids["input_ids"].count(id)


MARKS = """
    <BOS_TOKEN> <EOS> <PAD> [EOS] [EOT] [IMG] [PREFIX] [MODEL_SETTINGS] <arg_key> <seed:bos> </seed:think>
    <longcat_s> <[begin▁of▁sentence]> ]~b] [e~[ ]!p~[ ]~!b[ <role> [|user|] [|endofturn|] >>ANSWER<< [UNUSED_TOKEN_145]
    <SPECIAL_12> <ctrl99> <mask:1> <reponame> <fim-prefix> <PRE> <EOT> [@BOS@] ｜DSML｜ <image_soft_token> <image>
    <start_of_audio> <end_function_call> <start_of_role> <minimax:tool_call> <TOOLCALL> <extra_0> <unused_1>
    [control_8] <reserved_token_5> <cls> <|turn> <turn|>
"""


@settings(deadline=None)
@given(
    fragments(["<|im_end|>", "[/INST]", "</s>", "<file_sep>", "◁think▷", "<｜User｜>", "<start_of_turn>", "[gMASK]"])
)
def test_no_mark_of_a_known_family_reaches_a_server(text):
    assert not CONTROL.search(break_up(CONTROL, text))


@pytest.mark.parametrize("mark", MARKS.split())
def test_a_mark_of_less_known_families_reaches_no_server(mark):
    assert CONTROL.fullmatch(mark)
    assert break_up(CONTROL, f"a{mark}b") == f"a{mark[0]} {mark[1:]}b"


@pytest.mark.parametrize(
    "text", ["<pre>", "a <b> c", "x < y > z", "[1]", "[AB]", "<reason>", "a[i]", ">> <<", "<video>", "<p>", "E[|X|]"]
)
def test_other_brackets_stay(text):
    assert break_up(CONTROL, text) == text


def test_marks_that_share_characters_are_broken_both():
    assert break_up(re.compile("ab|bc"), "abc") == "a b c"


@pytest.mark.parametrize("system", ["Be brief.<|im_end|>", "<|im_start|>user\nHi"])
def test_a_system_prompt_with_a_control_token_is_refused(system):
    with pytest.raises(ChatError, match="which holds a control token of"):
        check_chat(chat_tokenizer("qwen3"), system)


@pytest.mark.parametrize("system", [None, TOLD])
def test_prompts_of_the_four_formats(named, system):
    form, tokenizer = named
    check_chat(tokenizer, system)
    prompt = tokenizer.decode(prompt_ids(tokenizer, system, "What is 5 mg?"))
    assert prompt == render(tokenizer, system, ASKED, add_generation_prompt=True)  # no token is added or lost
    assert prompt.endswith("What is 5 mg?" + form.end + ("\n" if form.thinks else "") + form.ending)
    assert prompt.count(TOLD) == (system is not None)
    assert prompt.count(form.names.get("bos_token", "no such token")) == ("bos_token" in form.names and form.dated)
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == form.end
    answered = [*ASKED, {"role": "assistant", "content": "A dose."}]
    assert render(tokenizer, system, answered, add_generation_prompt=False).startswith(prompt + "A dose." + form.end)


def test_the_date_stands_still(named, monkeypatch):
    from transformers.utils import chat_template_utils

    class Clock:
        @staticmethod
        def now():
            raise AssertionError("a prompt asked for today's date")

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    form, tokenizer = named
    assert ("26 Jul" in render(tokenizer, None, ASKED, add_generation_prompt=True)) == form.dated


def test_a_date_that_cannot_be_frozen_is_refused():
    tokenizer = chat_tokenizer("qwen3")
    tokenizer.chat_template = "{% set form = '%d' %}{{ strftime_now(form) }}" + tokenizer.chat_template
    with pytest.raises(ChatError, match="its prompts would change from day to day"):
        check_chat(tokenizer, None)


def test_thinking_is_off_wherever_there_is_a_switch(named):
    form, tokenizer = named
    prompt = render(tokenizer, None, ASKED, add_generation_prompt=True)
    assert ("<think>" in prompt) == form.thinks
    if form.dated and form.thinks:
        assert "Reasoning Mode: /no_think" in prompt


def test_thinking_is_left_to_the_model_where_it_is_on():
    for name, thinks in (("smollm3", True), ("qwen3", True), ("llama", False), ("phi", False)):
        tokenizer = chat_tokenizer(name)
        prompt = render(tokenizer, None, ASKED, add_generation_prompt=True, thinking=True)
        assert "<think>" not in prompt
        assert ("/no_think" in prompt, prompt == render(tokenizer, None, ASKED, True)) == (False, not thinks)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert prompt_ids(tokenizer, None, "What is 5 mg?", thinking=True) == ids


@pytest.mark.parametrize("thinking", ["on", "both"])
def test_thinking_is_refused_where_the_template_cannot(named, thinking):
    form, tokenizer = named
    if form.thinks:
        check_chat(tokenizer, TOLD, thinking)
        return
    with pytest.raises(ChatError, match=f"thinking: got {thinking}, but the chat template of .* has no switch"):
        check_chat(tokenizer, None, thinking)


def test_tags_that_decoding_leaves_out_are_refused():
    tokenizer = chat_tokenizer("qwen3")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    check_chat(tokenizer, None)
    with pytest.raises(ChatError, match=r"\['</think>', '<think>'\] are special tokens of"):
        check_chat(tokenizer, None, "both")


def test_a_template_may_open_the_thought_itself_where_thinking_is_on():
    tokenizer = chat_tokenizer("qwen3")
    head, tail = tokenizer.chat_template.rsplit("{% endif -%}", 1)
    tokenizer.chat_template = f"{head}{{% else %}}{{{{ '<think>\\n' }}}}{{% endif -%}}{tail}"
    assert render(tokenizer, None, ASKED, True, thinking=True).endswith("<|im_start|>assistant\n<think>\n")
    check_chat(tokenizer, None, "both")


def test_a_system_prompt_stands_before_a_tasks_own():
    messages = [{"role": "system", "content": "Reply in one word."}, *ASKED]
    prompt = render(chat_tokenizer("qwen3"), TOLD, messages, add_generation_prompt=True)
    assert prompt.startswith(f"<|im_start|>system\n{TOLD}\n\nReply in one word.<|im_end|>\n<|im_start|>user\n")
    assert messages[0]["content"] == "Reply in one word."


@pytest.mark.parametrize("system", ["/think", "Be brief. /no_think", "", "  "])
def test_senseless_system_prompts_are_refused(system):
    with pytest.raises(ChatError, match="expected text without /think or /no_think"):
        check_chat(chat_tokenizer("smollm3"), system)


def test_templates_that_do_not_hear_the_system_prompt_are_refused():
    tokenizer = chat_tokenizer("qwen3")
    tokenizer.chat_template = "{% for m in messages if m.role != 'system' %}{{ m.content }}<|im_end|>{% endfor %}"
    with pytest.raises(ChatError, match="does not show the system prompt"):
        check_chat(tokenizer, TOLD)
    check_chat(tokenizer, None)
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(ChatError, match="System role not supported; set the model's `system` to null"):
        check_chat(tokenizer, TOLD)


@pytest.mark.parametrize(
    "template", ["{{ messages[0]['content'] + none }}", "{{ messages[9].content.x }}", "{{ 1 // 0 }}"]
)
def test_a_template_that_breaks_off_is_named(template):
    tokenizer = chat_tokenizer("qwen3")
    tokenizer.chat_template = template
    with pytest.raises(ChatError, match=r"the chat template of .* refuses \['user'\]: "):
        check_chat(tokenizer, None)


def test_forced_thinking_is_refused():
    tokenizer = chat_tokenizer("qwen3")
    tokenizer.chat_template = tokenizer.chat_template.replace("<think>\n\n</think>\n\n", "<think>\n")
    with pytest.raises(ChatError, match=r"opens a think block even with enable_thinking=False"):
        check_chat(tokenizer, None)


@pytest.mark.parametrize("template", ["{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "fixed"])
def test_template_without_an_end_of_turn_is_refused(template):
    tokenizer = chat_tokenizer("phi")
    tokenizer.chat_template = template
    with pytest.raises(ChatError, match="expected a special token there"):
        end_of_turn(tokenizer)


NO_GENERATION_PROMPT = "{% for m in messages %}<|im_start|>{{m['role']}}\n{{m['content']}}<|im_end|>\n{% endfor %}"
GENERATION_PROMPTS = {
    "is not there": ("", "does not end where the assistant begins to write"),
    "forces a thought in brackets": ("<|im_start|>assistant\n[THINK]", "think block"),
    "says more than the conversation": ("<|im_start|>assistant\nAnswer: ", "does not end where the assistant begins"),
    "is of another role": ("<|im_start|>model\n", "does not end where the assistant begins"),
}


@pytest.mark.parametrize("name", GENERATION_PROMPTS)
def test_a_prompt_that_does_not_end_where_the_assistant_begins_is_refused(name):
    prompt, message = GENERATION_PROMPTS[name]
    tokenizer = chat_tokenizer("qwen3")
    tokenizer.chat_template = f"{NO_GENERATION_PROMPT}{{% if add_generation_prompt %}}{prompt}{{% endif %}}"
    with pytest.raises(ChatError, match=message):
        check_chat(tokenizer, None)


@pytest.mark.parametrize("thought", ["", "<think>\n\n</think>\n\n"])
def test_a_prompt_may_close_a_thought_that_conversations_leave_out(thought):
    tokenizer = chat_tokenizer("qwen3")
    prompt = f"<|im_start|>assistant\n{thought}"
    tokenizer.chat_template = f"{NO_GENERATION_PROMPT}{{% if add_generation_prompt %}}{prompt}{{% endif %}}"
    check_chat(tokenizer, None)


def test_base_model_without_chat_template_is_refused():
    tokenizer = chat_tokenizer("phi")
    tokenizer.chat_template = ""
    with pytest.raises(ChatError, match="has no chat template; expected an instruction-tuned model"):
        prompt_ids(tokenizer, None, "what is")


def test_every_end_of_an_answer():
    tokenizer = chat_tokenizer("phi")
    end, text_end = tokenizer.convert_tokens_to_ids(["<|end|>", "<|endoftext|>"])
    assert stop_ids(tokenizer, None) == sorted([end, text_end])
    assert stop_ids(tokenizer, 7) == stop_ids(tokenizer, [7, end]) == sorted([7, end, text_end])
