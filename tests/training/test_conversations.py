import re

import pytest
from chat_models import FORMATS, chat_tokenizer
from tiny import PLACES, TEACHER, TEMPLATE, pairs, word_tokenizer

from raft_tasks.chat import end_of_turn, prompt_ids
from raft_tasks.schemas import TrainingPair
from raft_tasks.training.conversations import ConversationError, Encoder, teacher_message, unknown_share


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("name", FORMATS)
def test_rows_in_the_formats_of_real_models(name, system):
    form, tokenizer = FORMATS[name], chat_tokenizer(name)
    pair = TrainingPair(id="a", question="What is 5 mg?", answer="A dose – « small ».")
    [row] = Encoder(tokenizer, 400, teacher_message(TEACHER), rollout_max_new_tokens=8, system=system)([pair])
    assert tokenizer.decode(row.completion_ids) == pair.answer + form.end
    assert row.completion_ids[-1] == end_of_turn(tokenizer)
    assert row.prompt_ids == prompt_ids(tokenizer, system, pair.question)
    shown = tokenizer.decode(row.teacher_prompt_ids)
    assert f"knowledge : {pair.answer}\nanswer the question" in shown
    assert shown.endswith(form.ending)
    assert ("Be brief." in shown) == (system is not None)


def test_rows_that_do_not_fit_are_named_with_their_lengths_all_of_them():
    tokenizer = word_tokenizer()
    with pytest.raises(ConversationError) as caught:
        Encoder(tokenizer, 30, teacher_message(TEACHER), rollout_max_new_tokens=12)(pairs())
    assert "row-1: teacher's prompt + rollout has 42 tokens" in str(caught.value)
    assert "row-0:" in str(caught.value)
    assert "12 problem(s)" in str(caught.value)
    assert "... and 7 more" in str(caught.value)
    assert "raise train.max_length" in str(caught.value)
    with pytest.raises(ConversationError, match=r"row-1: prompt \+ answer has 18 tokens"):
        Encoder(tokenizer, 17)(pairs())
    assert len(Encoder(tokenizer, 18)(pairs())) == 12
    with pytest.raises(ConversationError, match=r"row-0: prompt \+ rollout has 22 tokens"):
        Encoder(tokenizer, 20, lambda pair: "what", rollout_max_new_tokens=12)(pairs())


def cut(limit, teacher=None, rollout=0, rows=None):
    return Encoder(word_tokenizer(), limit, teacher, rollout, too_long="cut")(rows or pairs())


def test_cut_answers_lose_their_tail_and_do_not_teach_to_stop():
    whole = Encoder(word_tokenizer(), 60)(pairs())
    assert cut(60) == whole
    rows = cut(16)
    assert [row.truncated_tokens for row in rows] == [0 if number % 3 == 0 else 2 for number in range(12)]
    for row, full in zip(rows, whole, strict=True):
        assert row.prompt_ids == full.prompt_ids
        assert row.completion_ids == full.completion_ids[: len(full.completion_ids) - row.truncated_tokens]
        assert (row.completion_ids[-1] == end_of_turn(word_tokenizer())) == (row.truncated_tokens == 0)
        assert len(row.prompt_ids) + len(row.completion_ids) <= 16
    assert cut(17)[1].truncated_tokens == 1  # just the end-of-turn token does not fit


def test_the_teacher_sees_as_much_of_a_cut_answer_as_is_learned():
    row = cut(34, teacher_message(TEACHER), 6)[1]
    assert row.truncated_tokens == 3
    assert "knowledge : the harbour of arlo is lamp\n" not in word_tokenizer().decode(row.teacher_prompt_ids)
    assert "knowledge : the harbour of arlo is answer" in word_tokenizer().decode(row.teacher_prompt_ids)
    assert len(row.teacher_prompt_ids) + 6 <= 34


def test_what_was_cut_before_does_not_teach_to_stop_either():
    whole = Encoder(word_tokenizer(), 60)(pairs())
    unfinished = Encoder(word_tokenizer(), 60)([pair.model_copy(update={"finished": False}) for pair in pairs()])
    assert [row.completion_ids for row in unfinished] == [row.completion_ids[:-1] for row in whole]


def test_questions_are_never_cut():
    with pytest.raises(ConversationError, match=r"row-0: prompt \+ answer has 12 tokens"):
        cut(10)
    with pytest.raises(ConversationError, match=r"row-0: prompt \+ rollout has 16 tokens"):
        cut(15, lambda pair: "what", 6)
    with pytest.raises(ConversationError, match=r"row-0: teacher's prompt \+ rollout has 16 tokens"):
        cut(15, lambda pair: pair.question, 6)


def test_think_blocks_in_answers_are_refused():
    rows = [TrainingPair(id="x", question="What?", answer="<think>Hm.</think>A dose.")]
    with pytest.raises(ConversationError, match="x: the answer holds a think block"):
        Encoder(chat_tokenizer("qwen3"), 100)(rows)


@pytest.mark.parametrize(
    "answer", ["[THINK]Hm.[/THINK]A dose.", "<|channel|>analysis<|message|>Hm.", "Hm.\n</think>\nA"]
)
def test_thoughts_by_other_tags_are_refused(answer):
    with pytest.raises(ConversationError, match="x: the answer holds a think block"):
        Encoder(chat_tokenizer("phi"), 100)([TrainingPair(id="x", question="What?", answer=answer)])


@pytest.mark.parametrize("token", ["<file_sep>", "<tool_call>", "<|fim_middle|>"])
@pytest.mark.parametrize("special", [True, False])
def test_every_control_token_of_the_tokenizer_is_refused(token, special):
    from tokenizers import AddedToken

    tokenizer = chat_tokenizer("qwen3")
    tokenizer.add_tokens([AddedToken(token, special=special)], special_tokens=special)
    rows = [TrainingPair(id="x", question=f"What is {token}?", answer=f"A {token} b.")]
    with pytest.raises(ConversationError, match=rf"1 problem.*\n.*special token\(s\) \['{re.escape(token)}'\]"):
        Encoder(tokenizer, 100)(rows)
    (row,) = Encoder(tokenizer, 100)([rows[0].model_copy(update={"answer": "A b."})])
    assert tokenizer.convert_tokens_to_ids(token) not in row.prompt_ids


def test_unknown_tokens_stop_in_answers_and_are_counted_in_prompts():
    tokenizer = word_tokenizer()
    rows = [TrainingPair(id="x", question="what is qwertz", answer="rope")]
    encoded = Encoder(tokenizer, 50)(rows)
    assert unknown_share(encoded, tokenizer.unk_token_id) == pytest.approx(1 / 6)
    rows = [TrainingPair(id="x", question="what is the", answer="rope qwertz")]
    with pytest.raises(ConversationError, match=r"x: the tokenizer does not know 1 token\(s\) of the answer"):
        Encoder(tokenizer, 50)(rows)


def test_special_tokens_inside_answers_are_refused():
    rows = [TrainingPair(id="x", question="what", answer="rope <end> lamp")]
    with pytest.raises(ConversationError, match=r"x: the answer holds the special token\(s\) \['<end>'\]"):
        Encoder(word_tokenizer(), 50)(rows)


def test_an_answer_of_white_space_is_refused():
    rows = [TrainingPair(id="x", question="what", answer="  ")]
    with pytest.raises(ConversationError, match="x: the answer '  ' has no token"):
        Encoder(word_tokenizer(), 50)(rows)


def test_no_rows_are_refused():
    with pytest.raises(ConversationError, match="got no training pairs"):
        Encoder(word_tokenizer(), 50)([])


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
    [row] = Encoder(tokenizer, 10)([TrainingPair(id="x", question="a", answer="b")])
    assert (row.prompt_ids, row.completion_ids) == ([0], [1, 3])


@pytest.mark.parametrize("text", ["{{ reference }}", "{{ question", "{{ answer }} {{ context }}"])
def test_teacher_template_over_other_names_is_refused(text):
    with pytest.raises(ConversationError, match="expected Jinja over `question` and `answer`"):
        teacher_message(text)


def test_word_template_round_trip():
    tokenizer = word_tokenizer()
    assert tokenizer.chat_template == TEMPLATE
    row = Encoder(tokenizer, 60)(pairs())[1]
    assert tokenizer.decode(row.prompt_ids) == f"<user> what is the harbour of {PLACES[1]} ? <end> <assistant>"
    assert row.teacher_prompt_ids is None
