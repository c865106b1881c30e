import pytest
from tiny import PLACES, TEACHER, TEMPLATE, pairs, word_tokenizer

from raft_tasks.schemas import TrainingPair
from raft_tasks.training.conversations import (
    ConversationError,
    encode_pairs,
    end_of_turn,
    prompt_ids,
    teacher_message,
    unknown_share,
)

# The shapes of real templates, shortened to what matters: where turns begin and end, thinking, the end of the text.
THINKING_SWITCH = (  # Qwen3, SmolLM3
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LLAMA = (  # Llama 3
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PHI = (  # Phi-4-mini: the end of the turn is not the end of the text, which follows it
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}"
)
SPECIAL = [
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end|>", "<|user|>",
    "<|assistant|>", "<|begin_of_text|>", "<|endoftext|>",
]  # fmt: skip


def byte_tokenizer(template, eos, pad=None):
    """Byte-level BPE without merges: any text, no unknown token, like the tokenizers of the models above."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|begin_of_text|>", eos_token=eos, pad_token=pad, extra_special_tokens=SPECIAL
    )
    tokenizer.chat_template = template
    return tokenizer


REAL = {
    "thinking switch": (THINKING_SWITCH, "<|im_end|>", "<|im_end|>", "<think>\n\n</think>\n\n"),
    "llama": (LLAMA, "<|eot_id|>", "<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    "phi": (PHI, "<|endoftext|>", "<|end|>", "<|assistant|>"),
}


@pytest.mark.parametrize("name", REAL)
def test_templates_of_real_models(name):
    template, eos, end, ending = REAL[name]
    tokenizer = byte_tokenizer(template, eos, pad=eos)  # pad == eos must not matter
    pair = TrainingPair(id="a", question="What is 5 mg?", answer="A dose – « small ».")
    [row] = encode_pairs([pair], tokenizer, max_length=400, teacher=teacher_message(TEACHER), rollout_max_new_tokens=8)
    assert tokenizer.decode(row.answer) == pair.answer + end
    assert tokenizer.decode(row.prompt).endswith(ending)
    assert "What is 5 mg?" in tokenizer.decode(row.prompt)
    assert row.answer[-1] == tokenizer.convert_tokens_to_ids(end) == end_of_turn(tokenizer)
    shown = tokenizer.decode(row.teacher_prompt)
    assert f"knowledge : {pair.answer}\nanswer the question" in shown
    assert shown.endswith(ending)
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": pair.question}, {"role": "assistant", "content": pair.answer}], tokenize=False
    )
    assert whole.startswith(tokenizer.decode(row.prompt + row.answer))


def test_forced_thinking_is_refused():
    tokenizer = byte_tokenizer(THINKING_SWITCH.replace("<think>\n\n</think>\n\n", "<think>\n"), "<|im_end|>")
    with pytest.raises(ConversationError, match=r"opens a <think> block even with enable_thinking=False"):
        end_of_turn(tokenizer)


@pytest.mark.parametrize("template", ["{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "fixed"])
def test_template_without_an_end_of_turn_is_refused(template):
    with pytest.raises(ConversationError, match="expected a special token there"):
        end_of_turn(byte_tokenizer(template, "<|endoftext|>"))


def test_base_model_without_chat_template_is_refused():
    with pytest.raises(ConversationError, match="has no chat template"):
        prompt_ids(word_tokenizer(template=""), "what is")


def test_rows_that_do_not_fit_are_named_with_their_lengths_all_of_them():
    tokenizer = word_tokenizer()
    with pytest.raises(ConversationError) as caught:
        encode_pairs(pairs(), tokenizer, 30, teacher_message(TEACHER), rollout_max_new_tokens=12)
    assert "row-1: teacher's prompt + rollout has 42 tokens" in str(caught.value)
    assert "row-0:" in str(caught.value)
    assert "12 problem(s)" in str(caught.value)
    assert "... and 7 more" in str(caught.value)
    assert "raise train.max_length" in str(caught.value)
    with pytest.raises(ConversationError, match=r"row-1: prompt \+ answer has 18 tokens"):
        encode_pairs(pairs(), tokenizer, 17)
    assert len(encode_pairs(pairs(), tokenizer, 18)) == 12
    with pytest.raises(ConversationError, match=r"row-0: prompt \+ rollout has 22 tokens"):
        encode_pairs(pairs(), tokenizer, 20, lambda pair: "what", rollout_max_new_tokens=12)


def test_unknown_tokens_stop_in_answers_and_are_counted_in_prompts():
    tokenizer = word_tokenizer()
    rows = [TrainingPair(id="x", question="what is qwertz", answer="rope")]
    encoded = encode_pairs(rows, tokenizer, 50)
    assert unknown_share(encoded, tokenizer.unk_token_id) == pytest.approx(1 / 6)
    rows = [TrainingPair(id="x", question="what is the", answer="rope qwertz")]
    with pytest.raises(ConversationError, match=r"x: the tokenizer does not know 1 token\(s\) of the answer"):
        encode_pairs(rows, tokenizer, 50)


def test_special_tokens_inside_answers_are_refused():
    rows = [TrainingPair(id="x", question="what", answer="rope <end> lamp")]
    with pytest.raises(ConversationError, match=r"x: the answer holds the special token\(s\) \['<end>'\]"):
        encode_pairs(rows, word_tokenizer(), 50)


def test_an_answer_of_white_space_is_refused():
    rows = [TrainingPair(id="x", question="what", answer="  ")]
    with pytest.raises(ConversationError, match="x: the answer '  ' has no token"):
        encode_pairs(rows, word_tokenizer(), 50)


def test_no_rows_are_refused():
    with pytest.raises(ConversationError, match="got no training pairs"):
        encode_pairs([], word_tokenizer(), 50)


def test_border_that_the_tokenizer_merges():
    """A tokenizer that joins the prompt's last and the answer's first letters: the prompt's tokens stay as they are."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "<end>": 3}, [("a", "b")]))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"
    )
    [row] = encode_pairs([TrainingPair(id="x", question="a", answer="b")], tokenizer, 10)
    assert (row.prompt, row.answer) == ([0], [1, 3])


@pytest.mark.parametrize("text", ["{{ reference }}", "{{ question", "{{ answer }} {{ context }}"])
def test_teacher_template_over_other_names_is_refused(text):
    with pytest.raises(ConversationError, match="expected Jinja over `question` and `answer`"):
        teacher_message(text)


def test_word_template_round_trip():
    tokenizer = word_tokenizer()
    assert tokenizer.chat_template == TEMPLATE
    row = encode_pairs(pairs(), tokenizer, 60)[1]
    assert tokenizer.decode(row.prompt) == f"<user> what is the harbour of {PLACES[1]} ? <end> <assistant>"
    assert row.teacher_prompt is None
