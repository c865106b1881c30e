import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from anchor_settings import SETTINGS, with_settings
from chat_models import FORMATS, chat_tokenizer, save_chat_model

from raft_tasks.chat import ChatError, prompt_ids
from raft_tasks.config import Model
from raft_tasks.errors import InputError
from raft_tasks.generation.anchor_cleaning import Cleaning, clean_anchors
from raft_tasks.generation.anchors import (
    answer_turns,
    generate_anchors,
    plain_tokens,
    user_end,
    user_prefix,
)
from raft_tasks.generation.backend import Completion, Failure
from raft_tasks.generation.served_base import ServedBase
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.sampling import SamplingParams
from raft_tasks.schemas import UserTurn
from raft_tasks.seeds import derive_seed

ROOT = Path(__file__).parents[2]
POCKET = Model(path=str(ROOT / "models/pocket-base"), revision=None, dtype="float32", system=None)

# The shapes of real templates, shortened to what matters: what stands before a user's words, and what after.
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
SMOLLM3 = (  # puts in a system prompt that tells the thinking mode
    "<|im_start|>system\n## Metadata\n\nReasoning Mode: "
    "{% if enable_thinking is defined and not enable_thinking %}/no_think{% else %}/think{% endif %}{{ '\n\n' }}"
    "You are a helpful AI assistant named SmolLM.\n\n<|im_end|>\n" + QWEN3
)
LLAMA3 = (  # begins with BOS, puts in a system prompt, strips the content
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PHI4 = (  # no white space; the text ends with another token than the turn
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}"
)
DEEPSEEK = (  # a user's turn ends where the assistant's begins
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GLM = (  # a word between the content and the mark
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}/nothink{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SPECIAL = [
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end|>", "<|user|>",
    "<|assistant|>", "<|begin_of_text|>", "<|endoftext|>", "[INST]", "[/INST]",
]  # fmt: skip
SMOLLM3_SYSTEM = (
    "<|im_start|>system\n## Metadata\n\nReasoning Mode: /no_think\n\nYou are a helpful AI assistant named SmolLM.\n\n"
    "<|im_end|>\n"
)
LLAMA3_SYSTEM = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023<|eot_id|>"
)
TEMPLATES = {
    "Qwen3": (QWEN3, "<|im_start|>user\n", "<|im_end|>"),
    "SmolLM3": (SMOLLM3, SMOLLM3_SYSTEM + "<|im_start|>user\n", "<|im_end|>"),
    "Llama 3.2": (LLAMA3, LLAMA3_SYSTEM + "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    "Phi-4-mini": (PHI4, "<|user|>", "<|end|>"),
    "DeepSeek": (DEEPSEEK, "<|begin_of_text|><|user|>", "<|assistant|>"),
    "GLM": (GLM, "<|user|>\n", "<|assistant|>"),
}


def byte_tokenizer(template: str, merges: tuple[tuple[str, str], ...] = ()) -> Any:
    """Byte-level BPE that knows any text, like the tokenizers of the models above."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    core = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|begin_of_text|>",
        eos_token="<|endoftext|>",
        extra_special_tokens=SPECIAL,
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
def test_prefix_and_end_of_a_users_turn_in_real_templates(name: str) -> None:
    template, prefix, end = TEMPLATES[name]
    tokenizer = byte_tokenizer(template)
    ids = user_prefix(tokenizer, None)
    assert tokenizer.decode(ids) == prefix
    assert tokenizer.convert_ids_to_tokens(user_end(tokenizer)) == end
    # What stands before the words of a real prompt is token for token the same.
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 5 mg?"}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    whole = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert whole[: len(ids)] == ids
    assert tokenizer.decode(whole[len(ids) :]).startswith("What is 5 mg?")


def test_a_space_that_belongs_to_the_first_word_is_left_to_the_model() -> None:
    mistral = "{{ bos_token }}{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
    tokenizer = byte_tokenizer(mistral, merges=(("Ġ", "M"),))
    assert tokenizer.decode(user_prefix(tokenizer, None)) == "<|begin_of_text|>[INST]"
    assert tokenizer.convert_ids_to_tokens(user_end(tokenizer)) == "[/INST]"


def test_prefix_and_end_with_the_pocket_model() -> None:
    tokenizer = TransformersBackend(POCKET).tokenizer
    assert tokenizer.decode(user_prefix(tokenizer, None)) == "<|im_start|>user\n"
    assert tokenizer.unk_token_id not in user_prefix(tokenizer, None)
    assert tokenizer.convert_ids_to_tokens(user_end(tokenizer)) == "<|im_end|>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", "has no chat template"),
        ("{% for m in messages %}<|user|>{{ m.content | upper }}<|end|>{% endfor %}", "'Marker7' 0 times"),
        ("{% for m in messages %}<|user|>{{ m.content }} {{ m.content }}<|end|>{% endfor %}", "'Marker7' 2 times"),
        ("{% for m in messages %}{{ m.content }}<|end|>{% endfor %}", "begins with the user's words"),
    ],
)
def test_a_template_without_a_users_mark_is_refused(template: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        user_prefix(byte_tokenizer(template), None)


def test_a_users_turn_without_end_is_refused() -> None:
    with pytest.raises(InputError, match=r"goes on with '\\nassistant: ' after the user's words; expected a special"):
        user_end(byte_tokenizer("{% for m in messages %}{{ m.role }}: {{ m.content }}\nassistant: {% endfor %}"))


def test_continuing_raw_tokens_against_a_plain_loop(tiny: TransformersBackend) -> None:
    import torch

    prefix = user_prefix(tiny.tokenizer, None)
    assert tiny.tokenizer.decode(prefix) == "<|user|>"
    specials = set(tiny.tokenizer.all_special_ids)
    for start in ([], [9], [12, 20]):
        ids = prefix + start
        while len(ids) < len(prefix + start) + 10 and not specials & set(ids[len(prefix + start) :]):
            with torch.inference_mode():
                ids.append(int(tiny.model(torch.tensor([ids])).logits[0, -1].argmax()))
        params = SamplingParams(temperature=0, max_tokens=10, abort_token_ids=frozenset(specials))
        [completion] = tiny.call("tokens", [prefix + start], params, [0])
        added = ids[len(prefix + start) :]
        assert completion.text == tiny.tokenizer.decode(added, skip_special_tokens=True)
        assert completion.tokens == len(added)
        assert completion.finished == (added[-1] in (1, tiny.end_of_turn))


def test_further_ends_finish_and_aborts_do_not(tiny: TransformersBackend) -> None:
    prefixes, lamp = [user_prefix(tiny.tokenizer, None)] * 60, tiny.tokenizer.convert_tokens_to_ids("lamp")
    marks = frozenset(tiny.tokenizer.all_special_ids)
    params = SamplingParams(max_tokens=20, batch_size=60, abort_token_ids=marks)
    ends = replace(params, stop_token_ids=frozenset({lamp}))
    aborts = replace(params, abort_token_ids=marks | {lamp})
    plain, ended, stopped = (tiny.call("tokens", prefixes, some, range(60)) for some in (params, ends, aborts))
    assert [row.text for row in ended] == [row.text for row in stopped]
    changed = [number for number in range(60) if "lamp" in plain[number].text.split()]
    assert 10 < len(changed) < 60
    for number in range(60):
        if number in changed:
            before, _, _ = f"{plain[number].text} ".partition("lamp ")
            assert ended[number].text == f"{before}lamp"
            assert ended[number].finished
            assert not stopped[number].finished
        else:
            assert plain[number] == ended[number] == stopped[number]


def test_an_anchor_depends_on_its_number_alone(tiny: TransformersBackend) -> None:
    together = generate_anchors(range(40), tiny, SETTINGS)
    assert [row.id for row in together[:2]] == ["anchor-00000", "anchor-00001"]
    assert generate_anchors(range(40), tiny, with_settings(batch_size=40)) == together
    assert generate_anchors([31, 7], tiny, SETTINGS) == [together[31], together[7]]
    assert len({row.prompt for row in together}) > 30
    assert generate_anchors(range(40), tiny, with_settings(seed=1)) != together
    greedy = generate_anchors(range(40), tiny, with_settings(answer_temperature=0))
    assert [row.prompt for row in greedy] == [row.prompt for row in together]
    assert [row.answer for row in greedy] != [row.answer for row in together]
    assert generate_anchors([], tiny, SETTINGS) == []


def test_hints_go_into_the_system_prompt_in_turn_and_not_into_the_answers(tiny: TransformersBackend) -> None:
    hints = ["Keep every fact.", "Question: corn rope lamp"]
    plain, hinted = (
        generate_anchors(range(20), tiny, SETTINGS),
        generate_anchors(range(20), tiny, with_settings(hints=hints)),
    )
    assert [row.prompt for row in hinted] != [row.prompt for row in plain]
    assert generate_anchors([3, 8], tiny, with_settings(hints=hints)) == [hinted[3], hinted[8]]
    assert generate_anchors([8], tiny, with_settings(hints=hints[:1])) == [hinted[8]]
    asked = [UserTurn(id=row.id, prompt=row.prompt) for row in hinted if row.answer]
    assert asked
    assert answer_turns(asked, tiny, SETTINGS) == [row for row in hinted if row.answer]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("smollm3", "## Custom Instructions\n\nYou teach maths.\n\n<|im_end|>\n<|im_start|>user\n"),
        ("llama", "Today Date: 26 Jul 2024\n\nYou teach maths.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"),
        ("phi", "<|system|>You teach maths.<|end|><|user|>"),
        ("qwen3", "<|im_start|>system\nYou teach maths.<|im_end|>\n<|im_start|>user\n"),
    ],
)
def test_hints_in_real_templates(name: str, shown: str) -> None:
    tokenizer = chat_tokenizer(name)
    assert tokenizer.decode(user_prefix(tokenizer, None, "You teach maths.")).endswith(shown)
    both = tokenizer.decode(user_prefix(tokenizer, "Be brief.", "You teach maths."))
    assert both.endswith(shown.replace("You teach", "Be brief.\n\nYou teach"))
    assert "You teach" not in tokenizer.decode(user_prefix(tokenizer, "Be brief."))


@pytest.mark.parametrize("name", ["smollm3", "llama", "phi", "qwen3"])
def test_models_of_these_architectures_generate_until_the_end_of_the_turn(name: str, tmp_path: Path) -> None:
    backend = TransformersBackend(
        Model(path=str(save_chat_model(name, tmp_path)), revision=None, dtype="float32", system=None)
    )
    settings, end = with_settings(max_new_tokens=40, hints=["Be brief."]), user_end(backend.tokenizer)
    prefix = user_prefix(backend.tokenizer, None, "Be brief.")
    rows = generate_anchors(range(24), backend, settings)
    special = frozenset(backend.tokenizer.all_special_ids)
    params = SamplingParams(max_tokens=40, batch_size=24, stop_token_ids=frozenset({end}), abort_token_ids=special)
    raw = backend.call("tokens", [prefix] * 24, params, [derive_seed(0, "anchor-prompt", row.id) for row in rows])
    assert backend.tokenizer.convert_ids_to_tokens(end) == FORMATS[name].end
    for row, turn in zip(rows, raw, strict=True):
        assert not set(FORMATS[name].special) & set(row.prompt.split())
        assert not row.prompt_finished or turn.finished
    assert any(row.prompt_finished for row in rows)  # random weights end some turns


def test_a_template_that_drops_a_hint_is_refused() -> None:
    tokenizer = byte_tokenizer("{% for m in messages if m.role == 'user' %}<|user|>{{ m.content }}<|end|>{% endfor %}")
    with pytest.raises(ChatError, match=r"does not show the system prompt 'You teach'; set anchors\.\*\.hints to \[\]"):
        user_prefix(tokenizer, None, "You teach")


class Server:
    """A server that goes on with raw text, as far as `ServedBase` sees one."""

    def __init__(self, *answers: Completion) -> None:
        self.answers, self.asked = list(answers), []

    def call(self, kind: str, prompts: list[str], params: SamplingParams, seeds: list[int]) -> list[Completion]:
        assert kind == "text"
        self.asked += prompts
        return (self.answers or [Completion("What is it?", True, 4)] * len(prompts))[: len(prompts)]


def served(tokenizer: Any, *answers: Completion, system: str | None = None) -> ServedBase:
    settings = Model(path="base", revision=None, dtype="float32", system=system)
    return ServedBase(Server(*answers), SimpleNamespace(settings=settings, tokenizer=tokenizer))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["smollm3", "llama", "phi", "qwen3"])
def test_a_server_makes_the_same_tokens_of_what_it_is_sent(name: str) -> None:
    """Llama's tokenizer puts its begin-of-text token before every text: it must not stand there twice."""
    tokenizer = chat_tokenizer(name)
    base = served(tokenizer, system="Be brief.")
    [row] = generate_anchors([0], base, SETTINGS)
    assert (row.prompt, row.answer, row.prompt_finished, row.answer_finished) == (
        "What is it?",
        "What is it?",
        True,
        True,
    )
    turn, answered = base.endpoint.asked
    assert tokenizer(turn)["input_ids"] == user_prefix(tokenizer, "Be brief.")
    assert tokenizer(answered)["input_ids"] == prompt_ids(tokenizer, "Be brief.", "What is it?")


def test_what_a_server_went_on_after_a_special_token_is_unfinished() -> None:
    tokenizer = chat_tokenizer("qwen3")
    base = served(tokenizer, Completion("What?<|im_start|>assistant Yes", True, 9), Completion("What", False, 1))
    rows = generate_anchors([0, 1], base, SETTINGS)
    assert [row.prompt_finished for row in rows] == [False, False]
    assert len(base.endpoint.asked) == 2  # neither is answered
    shown = served(tokenizer, Completion("What?<|im_end|>", True, 2))
    [row] = generate_anchors([0], shown, SETTINGS)
    assert (row.prompt, row.prompt_finished, row.answer, row.answer_finished) == ("What?", True, "What?", True)


def test_a_server_that_refuses_raw_text_stops_the_stage() -> None:
    refused = Completion("", False, 0, failure=Failure("rejected", "HTTP 400: messages is missing"))
    with pytest.raises(
        InputError, match=r"1 of 1 prompts have no continuation: rejected: HTTP 400.*POST <base_url>/compl"
    ):
        generate_anchors([0], served(chat_tokenizer("phi"), refused), SETTINGS)


def test_gibberish_has_as_many_tokens_as_the_turn_in_its_place(tiny: TransformersBackend) -> None:
    settings = with_settings(prompt_source="gibberish")
    real, rows = generate_anchors(range(60), tiny, SETTINGS), generate_anchors(range(60), tiny, settings)
    assert generate_anchors([7], tiny, settings) == [rows[7]]
    whole = [number for number in range(60) if real[number].prompt_finished and real[number].prompt]
    assert len(whole) > 5
    for number in whole:
        assert len(rows[number].prompt.split()) == len(real[number].prompt.split())  # one token a word
        assert rows[number].prompt_finished
    spoken = [word for number in whole for word in rows[number].prompt.split()]
    assert len(set(spoken)) > 0.7 * len(plain_tokens(tiny.tokenizer))
    assert not set(spoken) & set(tiny.tokenizer.all_special_tokens)


def test_plain_tokens_are_text_by_themselves() -> None:
    tokenizer = byte_tokenizer(QWEN3)
    texts = [tokenizer.decode([token]) for token in plain_tokens(tokenizer)]
    assert {"a", " ", "?"} <= set(texts)
    assert not any("\ufffd" in text or text in SPECIAL for text in texts)


def test_just_whole_turns_are_answered_through_the_chat_template(tiny: TransformersBackend) -> None:
    rows = generate_anchors(range(80), tiny, with_settings(answer_temperature=0))
    whole = [row for row in rows if row.prompt_finished and row.prompt]
    assert 5 < len(whole) < 80
    for row in rows:
        if row not in whole:
            assert (row.answer, row.answer_finished) == ("", False)
    greedy = SamplingParams(temperature=0, max_tokens=12)
    answers = tiny.generate([row.prompt for row in whole], greedy, [0] * len(whole))
    assert [row.answer for row in whole] == [answer.text.strip() for answer in answers]
    assert [row.answer_finished for row in whole] == [answer.finished for answer in answers]


def test_a_turn_that_does_not_fit_is_an_error(tiny: TransformersBackend) -> None:
    with pytest.raises(InputError, match=r"prompt 0 needs 201 tokens"):
        generate_anchors([0], tiny, with_settings(max_new_tokens=200))


def test_the_pocket_model_generates_what_it_can_do() -> None:
    base = TransformersBackend(POCKET)
    tasks = ROOT / "raft_tasks/evaluation/tasks"
    held_out = [
        json.loads(line)["question"]
        for path in sorted(tasks.glob("pocket_*/items.jsonl"))
        for line in path.read_text().splitlines()
    ]
    settings = with_settings(max_new_tokens=160, answer_max_new_tokens=80, batch_size=64)
    kept, rejected, statistics = clean_anchors(
        generate_anchors(range(64), base, settings), Cleaning(settings, held_out)
    )
    assert statistics.well_formed > 0.8
    assert statistics.kept > 40
    assert statistics.warning is None
    prompts = "\n".join(anchor.prompt for anchor in kept)
    for said in ("Background reference knowledge:", "Question:", "Answer", " of "):
        assert said in prompts
    assert not {row.prompt for row in kept} & set(held_out)
    assert "<|" not in prompts + "".join(row.answer for row in kept)
    assert len(kept) + len(rejected) == 64
