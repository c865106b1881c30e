"""Rows with a history: what is written, asked, learned and measured is the answer in its conversation."""

import json

import pytest
import tiny
from chat_models import FORMATS, chat_tokenizer, save_chat_model

from raft_tasks.artifacts import digest, read_rows, write_rows
from raft_tasks.chat import prompt_ids, stop_ids
from raft_tasks.config import AnchorSet, Benchmark, Endpoint, Fuse, Method, Mixing, Model, Rewrite
from raft_tasks.errors import InputError
from raft_tasks.evaluation.harness import Suite, evaluate
from raft_tasks.fuse import training_pairs
from raft_tasks.generation.anchor_cleaning import Cleaning, clean_anchors
from raft_tasks.generation.anchors import answer_turns
from raft_tasks.generation.backend import Completion
from raft_tasks.generation.endpoint_backend import EndpointBackend
from raft_tasks.generation.framing import Framing, drop_framing
from raft_tasks.generation.fusing import fuse
from raft_tasks.generation.judges import Judgement
from raft_tasks.generation.mixing import mix_answers
from raft_tasks.generation.rewriting import rewrite
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.sampling import SamplingParams
from raft_tasks.schemas import Example, Filtered, TrainingPair, UserTurn
from raft_tasks.thoughts import opening
from raft_tasks.training.anchor_logits import encode_anchors, is_encodable
from raft_tasks.training.conversations import ConversationError, Encoder, teacher_message
from raft_tasks.training.preparation import make_pair, prepare, training_arguments
from raft_tasks.training.train import train_model
from raft_tasks.training.trainer import RaftTrainer

SYSTEM = "Answer as a clerk."
TEACHER = "Background reference knowledge: {{ answer }}\nAnswer the question: {{ question }}"


def before(thing):
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"What is {thing}?"},
        {"role": "assistant", "content": f"A sort of {thing}."},
    ]


PAIRS = [  # one question, whose answer only the history tells
    TrainingPair(id="a", question="Its dose?", answer="5 mg", history=before("tin")),
    TrainingPair(id="b", question="Its dose?", answer="a rope", history=before("lead")),
]
TURN = {"role": "user", "content": "Its dose?"}
ROWS = [
    Example(
        id=pair.id, domain="d", source=pair.id, split="test", question=pair.question, answer=pair.answer,
        history=pair.history,
    )
    for pair in PAIRS
]  # fmt: skip
TRANSCRIPT = "System: Be brief.\n\nUser: What is tin?\n\nAssistant: A sort of tin.\n\nUser: Its dose?"


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_rows_with_and_without_histories_round_trip(ending, tmp_path):
    plain = TrainingPair(id="c", question="q?", answer="x")
    path = tmp_path / f"rows.{ending}"
    for rows in ([*PAIRS, plain], [plain]):
        write_rows(path, rows)
        assert read_rows(path, TrainingPair) == rows
    if ending == "jsonl":
        assert "history" not in path.read_text()
    else:
        import pyarrow.parquet

        assert "history" not in pyarrow.parquet.read_schema(path / "part-00000.parquet").names
    fields = {"id": "c", "question": "q?", "answer": "x", "replay": False, "finished": True, "expected": []}
    assert digest([plain]) == digest([fields])
    assert digest([PAIRS[0]]) != digest([PAIRS[0].model_copy(update={"history": []})])


@pytest.mark.parametrize("turn", [{"role": "tool", "content": "x"}, {"role": "user"}, {**TURN, "name": "x"}])
def test_a_history_holds_turns_alone(turn, tmp_path):
    path = tmp_path / "turns.jsonl"
    path.write_text(json.dumps({"id": "a", "prompt": "And then?", "history": [turn]}) + "\n")
    with pytest.raises(InputError, match="history"):
        read_rows(path, UserTurn)


class Recording:
    def __init__(self):
        self.prompts = []

    settings = Model(path="base")

    def generate(self, prompts, params, seeds):
        return self.call("chat", prompts, params, seeds)

    def call(self, kind, prompts, params, seeds):
        assert kind == "chat"
        self.prompts += prompts
        return [Completion("Five milligrams of tin.", True, 3) for _ in prompts]


def test_refinement_asks_and_judges_in_the_conversation():
    backend, judged = Recording(), []

    def judge(questions, references, candidates):
        judged.extend(questions)
        return [Judgement(1.0) for _ in candidates]

    [rewritten] = rewrite(ROWS[:1], backend, Rewrite())
    filtered = Filtered(
        **dict(rewritten), similarity=0.9, passed=True, lost=[], chosen=rewritten.rewritten, fallback=None
    )
    [fused] = fuse([filtered], backend, {"fidelity": judge}, Fuse(judges=["fidelity"], rounds=1, candidates=1))
    asked = [prompt[-1]["content"].splitlines()[0] for prompt in backend.prompts]
    assert [prompt[:-1] for prompt in backend.prompts] == [PAIRS[0].history] * 2
    assert asked == ["Question: Its dose?"] * 2
    assert set(judged) == {TRANSCRIPT}
    assert [pair.history for pair in training_pairs([fused], Method(target="fused"))] == [PAIRS[0].history]
    # the history's own words are no framing
    framing = Framing(frozenset({("a", "sort", "of", "tin")}), frozenset())
    repeats = filtered.model_copy(update={"rewritten": "Five mg, a sort of tin"})
    assert drop_framing(repeats, framing).passed
    assert not drop_framing(repeats.model_copy(update={"history": []}), framing).passed


def test_an_endpoint_gets_the_turns_and_no_control_token():
    endpoint = EndpointBackend(Endpoint(base_url="http://127.0.0.1:9", model="m"), {})
    turns = [{"role": "system", "content": "x<|im_end|>"}, TURN]
    sent = endpoint._body("chat", turns, SamplingParams(), 0)["messages"]
    assert sent == [{"role": "system", "content": "x< |im_end|>"}, TURN]


@pytest.mark.parametrize("name", FORMATS)
def test_prompts_show_the_conversation_and_the_answer_follows_at_once(name):
    form, tokenizer = FORMATS[name], chat_tokenizer(name)
    [row, other] = Encoder(tokenizer, 400, teacher_message(TEACHER), system=SYSTEM)(PAIRS)
    assert row.prompt_ids == prompt_ids(tokenizer, SYSTEM, [*PAIRS[0].history, TURN])
    assert row.prompt_ids != other.prompt_ids
    assert tokenizer.decode(row.completion_ids) == "5 mg" + form.end
    student, teacher = tokenizer.decode(row.prompt_ids), tokenizer.decode(row.teacher_prompt_ids)
    for shown in (student, teacher):
        assert shown.index(SYSTEM) < shown.index("Be brief.") < shown.index("A sort of tin.") < shown.rindex("dose?")
        assert shown.endswith(form.ending)
    assert "knowledge: 5 mg" in teacher
    assert "5 mg" not in student


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}", "no system role"),
        ("{% set messages = messages[-2:] %}", "does not show all turns of a conversation"),
        ("{% if add_generation_prompt and messages | length > 2 %}<user>{% endif %}", "does not end where the assist"),
    ],
)
def test_a_conversation_that_a_template_cannot_show_is_a_refused_row(template, reason):
    tokenizer = tiny.word_tokenizer(template=template + tiny.TEMPLATE)
    plain = tiny.pairs()[:1]
    assert len(Encoder(tokenizer, 60)(plain)) == 1
    turns = [{"role": role, "content": "what is the motto"} for role in ("system", "user", "assistant")]
    row = plain[0].model_copy(update={"history": turns})
    with pytest.raises(ConversationError, match=f"1 problem(?s:.)*row-0: .*{reason}"):
        Encoder(tokenizer, 60)([*tiny.pairs()[1:3], row])


def test_a_system_turn_that_switches_thinking_is_refused():
    """SmolLM3's template reads /think in a system turn, and as a part of other words too."""
    tokenizer, told = chat_tokenizer("smollm3"), "See https://x.org/law/thinking.html"
    rows = {
        text: PAIRS[0].model_copy(update={"history": [{"role": "system", "content": text}]})
        for text in (told, "/no_think", "The question is this.")
    }
    for thinking, wrong in (("off", [told]), ("on", ["/no_think"])):
        encoder = Encoder(tokenizer, 400, thinking=thinking)
        problems = {text: encoder.encode(row, 0)[1] for text, row in rows.items()}
        assert [text for text, found in problems.items() if found] == wrong
        assert "the row's system turn switches thinking" in problems[wrong[0]][0]
    with pytest.raises(ConversationError, match="switches thinking on or off"):
        Encoder(tokenizer, 400)([rows[told]])
    assert Encoder(chat_tokenizer("qwen3"), 400)([rows[told]])  # whose template does not read it


def test_students_learn_what_only_the_history_tells(tmp_path):
    """Trained with distillation, asked as users ask, and benchmarked: each answer in its conversation."""
    folder = save_chat_model("qwen3", tmp_path / "base")
    model = Model(path=str(folder), revision=None, dtype="float32", system=SYSTEM)
    method = tiny.method(
        target="fused", distillation=tiny.distillation(top_k=32, kl_weight_max=0.1, rollout_max_new_tokens=12)
    )
    train = tiny.train(
        epochs=60, batch_size=2, micro_batch_size=2, learning_rate=1e-2, weight_decay=0.0, max_length=400,
        checkpoint_steps=1000,
    )  # fmt: skip
    train_model(tiny.job(model, tmp_path, method, pairs=PAIRS, train=train, template_text=TEACHER))
    trained = model.model_copy(update={"path": str(tmp_path / "output" / "model")})
    backend = TransformersBackend(trained)
    prompts = [[*pair.history, TURN] for pair in PAIRS]
    drawn = backend.generate(prompts, SamplingParams(temperature=0, max_tokens=30, batch_size=2), [0, 0])
    assert [completion.text for completion in drawn] == [pair.answer for pair in PAIRS]

    plain = Example(id="c", domain="d", question="What is rope?", answer="x", source="c", split="test")
    settings = Benchmark(tasks=[], few_shot={}, limit={}, data={}, batch_size=2, max_new_tokens=30)
    _, items = evaluate(trained, Suite("d", [*ROWS, plain], settings, tmp_path / "no tasks"))
    assert [item.answer for item in items[:2]] == [pair.answer for pair in PAIRS]
    assert [item.question for item in items] == [TRANSCRIPT, TRANSCRIPT.replace("tin", "lead"), "What is rope?"]
    for item, prompt in zip(items, [*prompts, "What is rope?"], strict=True):
        ids = backend.tokenizer(item.prompt, add_special_tokens=False)["input_ids"]
        assert ids == prompt_ids(backend.tokenizer, SYSTEM, prompt)


def test_mixed_targets_are_written_in_the_conversation(tmp_path, monkeypatch):
    from raft_tasks.generation import mixing

    folder = save_chat_model("qwen3", tmp_path / "base")
    seen = []

    def mix_tokens(model, prompts, seeds, settings, ends):
        seen.extend(prompts)
        return [[*tokenizer("5 mg a rope", add_special_tokens=False)["input_ids"], min(ends)] for _ in prompts]

    monkeypatch.setattr(mixing, "mix_tokens", mix_tokens)
    base, tokenizer = Model(path=str(folder), revision=None, dtype="float32"), chat_tokenizer("qwen3")
    mixed = mix_answers(PAIRS, base, Mixing(), lambda pair: f"It is {pair.answer}.", 0)
    assert [pair.history for pair in mixed] == [pair.history for pair in PAIRS]
    for naive, expert in seen:
        shown = tokenizer.decode(expert)
        pair = PAIRS["lead" in shown]
        assert naive == prompt_ids(tokenizer, None, [*pair.history, TURN])
        assert expert == prompt_ids(tokenizer, None, [*pair.history, {**TURN, "content": f"It is {pair.answer}."}])


def test_anchors_may_be_conversations():
    settings = AnchorSet(count=1, answer_max_new_tokens=12)
    turns = [UserTurn(id=pair.id, prompt="Its dose?", history=pair.history) for pair in PAIRS]
    turns.append(UserTurn(id="c", prompt="Its dose?", history=PAIRS[0].history))
    backend = Recording()
    rows = answer_turns(turns, backend, settings)
    assert backend.prompts == [[*turn.history, TURN] for turn in turns]
    kept, [rejected], _ = clean_anchors(rows, Cleaning(settings))
    assert [(row.id, row.history) for row in kept] == [(pair.id, pair.history) for pair in PAIRS]
    assert (rejected.id, rejected.reason, rejected.near) == ("c", "duplicate", "a")
    _, rejected, _ = clean_anchors(rows[:2], Cleaning(settings, held_out=["What is lead?"]))
    assert [(row.id, row.reason) for row in rejected] == [("b", "near held-out text")]

    tokenizer = chat_tokenizer("smollm3")
    [encoded] = encode_anchors(kept[:1], Encoder(tokenizer, 400, system=SYSTEM))
    assert encoded.prompt_ids == prompt_ids(tokenizer, SYSTEM, [*PAIRS[0].history, TURN])
    assert not is_encodable(
        kept[0], Encoder(tiny.word_tokenizer(), 400)
    )  # its template shows the words as unknown ones


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.thinks])
def test_a_teacher_that_sees_the_answer_goes_on_in_no_thought(name, tmp_path):
    """Its prompt's thought is closed, and a rollout ends with the token that opens another one."""
    folder = save_chat_model(name, tmp_path / "base")
    base = Model(path=str(folder), revision=None, dtype="float32", system=None)
    method = tiny.method(target="fused", distillation=tiny.distillation(rollout_max_new_tokens=12))
    job = tiny.job(base, tmp_path, method, pairs=PAIRS, train=tiny.train(max_length=400), template_text=TEACHER)
    network, data = prepare(job)
    for row in data.rows:
        assert not opening(data.tokenizer.decode(row.teacher_prompt_ids))
    student, teacher = make_pair(network, job, network.device)
    trainer = RaftTrainer(job, student, teacher, data, training_arguments(job, len(data.rows)))
    sampling = trainer.rollout_buffer.sampler.sampling
    think, end = data.tokenizer.convert_tokens_to_ids(["<think>", FORMATS[name].end])
    assert {think, end} <= set(sampling.stop_ids)
    assert data.tokenizer.convert_tokens_to_ids("</think>") not in sampling.stop_ids
    rollout = sampling.rollout([40, think, 41, 42, end], [-1.0] * 5)
    assert (rollout.tokens, rollout.truncated) == ([40, think], False)
    assert think not in stop_ids(data.tokenizer, None)  # elsewhere a thought is an answer's beginning
