"""Training rows of a model that thinks: where learning begins, and what a teacher with the reference goes on in."""

import pytest
from chat_models import chat_tokenizer
from thinking_model import save_thinking_model
from tiny import TEACHER, job

from raft_tasks.chat import prompt_ids, rollout_ends
from raft_tasks.config import Model
from raft_tasks.schemas import Anchor, TrainingPair
from raft_tasks.training.anchor_logits import encode_anchors
from raft_tasks.training.conversations import ConversationError, Encoder, teacher_message
from raft_tasks.training.rollouts import RolloutSampling
from raft_tasks.training.train import train_model

THOUGHT = "<think>\nThey ask for a dose.\n</think>\n\n"
PLAIN = TrainingPair(id="a", question="What is the dose?", answer="5 mg")
PAIR = PLAIN.model_copy(update={"id": "a thinking", "thought": THOUGHT})


def encoder(name="qwen3", thinking="both", opens=False, **settings):
    tokenizer = chat_tokenizer(name)
    if opens:  # the thought, as newer templates do
        head, tail = tokenizer.chat_template.rsplit("{% endif -%}", 1)
        tokenizer.chat_template = f"{head}{{% else %}}{{{{ '<think>\\n' }}}}{{% endif -%}}{tail}"
    return Encoder(tokenizer, 400, thinking=thinking, **settings)


def texts(encode, row):
    return [encode.tokenizer.decode(ids) for ids in (row.prompt_ids, row.completion_ids)]


@pytest.mark.parametrize("opens", [False, True])
@pytest.mark.parametrize("thinking", ["on", "both"])
@pytest.mark.parametrize("name", ["qwen3", "smollm3"])
def test_an_answer_is_learned_behind_the_thought_and_the_thought_is_not(name, thinking, opens):
    if opens and name == "smollm3":
        return
    encode = encoder(name, thinking, opens)
    [row] = encode([PAIR])
    prompt, completion = texts(encode, row)
    assert prompt.endswith(f"<|im_start|>assistant\n{THOUGHT}")
    assert prompt.count("<think>") == 1
    assert completion == "5 mg<|im_end|>"


def test_the_modes_of_both_differ_by_the_thought():
    encode = encoder()
    off, on = encode([PLAIN, PAIR])
    assert off.prompt_ids == prompt_ids(encode.tokenizer, None, PLAIN.question)
    assert on.prompt_ids[: -len(encode.ids(THOUGHT))] == prompt_ids(encode.tokenizer, None, PLAIN.question, True)
    assert off.completion_ids == on.completion_ids
    [row] = encoder(thinking="off")([PLAIN])
    assert (row.prompt_ids, row.completion_ids) == (off.prompt_ids, off.completion_ids)


def test_a_thought_that_was_cut_is_closed_before_the_answer():
    encode = encoder()
    [row] = encode([PAIR.model_copy(update={"thought": "<think>\nThey ask for"})])
    assert texts(encode, row)[0].endswith("assistant\n<think>\nThey ask for\n</think>\n\n")


@pytest.mark.parametrize("thinking", ["on", "both"])
def test_a_teacher_that_sees_the_reference_never_goes_on_in_a_thought(thinking):
    """Its prompt ends with the very thought that the student has, which the base had without the reference. Where
    there is none, the rollout ends as soon as the student opens one: no token within a thought has a teacher."""
    encode = encoder(thinking=thinking, teacher=teacher_message(TEACHER), rollout_max_new_tokens=8)
    plain, row = encode([PLAIN, PAIR])
    thought = encode.ids(THOUGHT)
    for ids in (row.prompt_ids, row.teacher_prompt_ids):
        assert ids[-len(thought) :] == thought
    teacher = encode.tokenizer.decode(row.teacher_prompt_ids)
    assert teacher.count("5 mg") == 1
    assert teacher.index("5 mg") < teacher.index("<|im_start|>assistant")
    asked = encode.tokenizer.decode(plain.teacher_prompt_ids)
    assert ("<think>" in asked) == (thinking == "both")  # an empty one: without a thought `both` does not think
    start, word = encode.ids("<think>")[0], encode.ids("dose")[0]
    sampling = RolloutSampling(rollout_ends(encode.tokenizer, None), 1.0, 8)
    drawn = sampling.rollout([start, word, word], [0.0, 0.0, 0.0])
    assert drawn.tokens == [start]


def test_an_anchors_thought_is_part_of_what_is_kept():
    encode = encoder()
    anchors = [
        Anchor(id="on", prompt="Hello?", answer=f"{THOUGHT}Five."),
        Anchor(id="off", prompt="Hello?", answer="Five."),
        Anchor(id="empty", prompt="Hello?", answer="<think>\n\n</think>\n\nFive."),
        Anchor(id="cut", prompt="Hello?", answer="<think>\nThey ask", finished=False),
    ]
    rows = {row.id: texts(encode, row) for row in encode_anchors(anchors, encode)}
    assert rows["on"][0].endswith("<|im_start|>assistant\n")
    assert rows["on"][1] == f"{THOUGHT}Five.<|im_end|>"
    assert rows["off"] == rows["empty"]
    assert rows["off"][0].endswith("<think>\n\n</think>\n\n")
    assert rows["cut"][1] == "<think>\nThey ask"
    opened = encoder(opens=True)
    row = encode_anchors(anchors[:1], opened)[0]
    assert "".join(texts(opened, row)).count("<think>") == 1


@pytest.mark.parametrize(
    ("answer", "thinking", "message"),
    [
        (f"{THOUGHT}5 mg", "off", "holds a think block"),
        ("Tags are <think> and </think>.", "both", "special token"),
        ("5 mg<|im_end|>", "both", "special token"),
    ],
)
def test_what_cannot_be_learned(answer, thinking, message):
    with pytest.raises(ConversationError, match=message):
        encoder(thinking=thinking)([PLAIN.model_copy(update={"answer": answer})])


def test_a_training_counts_its_thoughts_and_those_that_were_cut(tmp_path):
    base = Model(path=str(save_thinking_model(tmp_path / "base", steps=1)), dtype="float32", thinking="both")
    plain = TrainingPair(id="a", question="what is the motto of figin ?", answer="red")
    thoughts = ["", "<think> the motto of figin </think>\n\n", "<think> the motto", "<think> </think>\n\n"]
    pairs = [plain.model_copy(update={"id": str(n), "thought": thought}) for n, thought in enumerate(thoughts)]
    summary = train_model(job(base, tmp_path, "sft", pairs=pairs, template_text=""))
    assert (summary["rows"], summary["thoughts"], summary["unfinished_thoughts"]) == (4, 2, 1)
    off = base.model_copy(update={"thinking": "off"})
    (tmp_path / "off").mkdir()
    assert "thoughts" not in train_model(job(off, tmp_path / "off", "sft", pairs=[plain], template_text=""))


def test_a_prompt_that_opens_a_thought_needs_one():
    with pytest.raises(ConversationError, match="expected a thought, which the chat template opens"):
        encoder(thinking="on", opens=True)([PLAIN])
