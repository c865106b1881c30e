import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from chat_models import FORMATS, chat_tokenizer, save_chat_model
from pydantic import ValidationError

from raft_tasks.chat import ChatError, prompt_ids
from raft_tasks.errors import InputError
from raft_tasks.generation.anchors import (
    ServedBase,
    answer,
    clean_anchors,
    degenerate,
    invent,
    plain_tokens,
    user_end,
    user_prefix,
)
from raft_tasks.generation.backend import Completion, Failure, row_seed
from raft_tasks.generation.encoding import SentenceEncoder
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.ngrams import jaccard, shingles
from raft_tasks.params import Anchors, Measured, Model
from raft_tasks.schemas import Anchor, Invented

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
SETTINGS = Anchors(
    model="base",
    count=400,
    turns="invented",
    hints=[],
    prompts=None,
    without=None,
    temperature=1.0,
    answer_temperature=1.0,
    top_p=1.0,
    max_new_tokens=24,
    answer_max_new_tokens=12,
    batch_size=8,
    chunk_rows=64,
    seed=0,
    duplicate_overlap=0.8,
    held_out_overlap=0.8,
    min_well_formed=0.5,
    top_k=64,
)


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


def with_settings(**changes: Any) -> Anchors:
    return Anchors(**{**dict(SETTINGS), **changes})


def drawn(*prompts: str, **changes: Any) -> list[Invented]:
    fields = {"answer": "Yes.", "prompt_finished": True, "answer_finished": True} | changes
    return [Invented(id=f"anchor-{n:05d}", prompt=prompt, **fields) for n, prompt in enumerate(prompts)]


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


def test_continuations_of_raw_tokens_against_a_plain_loop(tiny: TransformersBackend) -> None:
    import torch

    prefix = user_prefix(tiny.tokenizer, None)
    assert tiny.tokenizer.decode(prefix) == "<|user|>"
    specials = set(tiny.tokenizer.all_special_ids)
    for start in ([], [9], [12, 20]):
        ids = prefix + start
        while len(ids) < len(prefix + start) + 10 and not specials & set(ids[len(prefix + start) :]):
            with torch.inference_mode():
                ids.append(int(tiny.model(torch.tensor([ids])).logits[0, -1].argmax()))
        [completion] = tiny.continue_tokens(
            [prefix + start], temperature=0, top_p=1, max_new_tokens=10, batch_size=1, seeds=[0], stops=specials
        )
        added = ids[len(prefix + start) :]
        assert completion.text == tiny.tokenizer.decode(added, skip_special_tokens=True)
        assert completion.tokens == len(added)
        assert completion.finished == (added[-1] in (1, tiny.end_of_turn))


def test_further_ends_finish_and_stops_do_not(tiny: TransformersBackend) -> None:
    prefixes, lamp = [user_prefix(tiny.tokenizer, None)] * 60, tiny.tokenizer.convert_tokens_to_ids("lamp")
    options: dict[str, Any] = {
        "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 20, "batch_size": 60, "seeds": range(60),
    }  # fmt: skip
    plain = tiny.continue_tokens(prefixes, **options)
    ended = tiny.continue_tokens(prefixes, ends=[lamp], **options)
    stopped = tiny.continue_tokens(prefixes, stops=[lamp], **options)
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
    together = invent(range(40), tiny, SETTINGS)
    assert [row.id for row in together[:2]] == ["anchor-00000", "anchor-00001"]
    assert invent(range(40), tiny, with_settings(batch_size=40)) == together
    assert invent([31, 7], tiny, SETTINGS) == [together[31], together[7]]
    assert len({row.prompt for row in together}) > 30
    assert invent(range(40), tiny, with_settings(seed=1)) != together
    greedy = invent(range(40), tiny, with_settings(answer_temperature=0))
    assert [row.prompt for row in greedy] == [row.prompt for row in together]
    assert [row.answer for row in greedy] != [row.answer for row in together]
    assert invent([], tiny, SETTINGS) == []


def test_hints_go_into_the_system_prompt_in_turn_and_not_into_the_answers(tiny: TransformersBackend) -> None:
    hints = ["Keep every fact.", "Question: corn rope lamp"]
    plain, hinted = invent(range(20), tiny, SETTINGS), invent(range(20), tiny, with_settings(hints=hints))
    assert [row.prompt for row in hinted] != [row.prompt for row in plain]
    assert invent([3, 8], tiny, with_settings(hints=hints)) == [hinted[3], hinted[8]]
    assert invent([8], tiny, with_settings(hints=hints[:1])) == [hinted[8]]
    asked = [(row.id, row.prompt) for row in hinted if row.answer]
    assert asked
    assert answer(asked, tiny, SETTINGS) == [row for row in hinted if row.answer]


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
def test_models_of_these_architectures_invent_until_the_end_of_the_turn(name: str, tmp_path: Path) -> None:
    backend = TransformersBackend(
        Model(path=str(save_chat_model(name, tmp_path)), revision=None, dtype="float32", system=None)
    )
    settings, end = with_settings(max_new_tokens=40, hints=["Be brief."]), user_end(backend.tokenizer)
    prefix = user_prefix(backend.tokenizer, None, "Be brief.")
    rows = invent(range(24), backend, settings)
    raw = backend.continue_tokens(
        [prefix] * 24, temperature=1.0, top_p=1.0, max_new_tokens=40, batch_size=24, ends=[end],
        seeds=[row_seed(0, "anchor-prompt", row.id) for row in rows], stops=backend.tokenizer.all_special_ids,
    )  # fmt: skip
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

    def continue_texts(self, prompts: list[str], **_: Any) -> list[Completion]:
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
    [row] = invent([0], base, SETTINGS)
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
    rows = invent([0, 1], base, SETTINGS)
    assert [row.prompt_finished for row in rows] == [False, False]
    assert len(base.endpoint.asked) == 2  # neither is answered
    shown = served(tokenizer, Completion("What?<|im_end|>", True, 2))
    [row] = invent([0], shown, SETTINGS)
    assert (row.prompt, row.prompt_finished, row.answer, row.answer_finished) == ("What?", True, "What?", True)


def test_a_server_that_refuses_raw_text_stops_the_stage() -> None:
    refused = Completion("", False, 0, failure=Failure("rejected", "HTTP 400: messages is missing"))
    with pytest.raises(
        InputError, match=r"1 of 1 prompts have no continuation: rejected: HTTP 400.*POST <base_url>/compl"
    ):
        invent([0], served(chat_tokenizer("phi"), refused), SETTINGS)


def test_gibberish_has_as_many_tokens_as_the_turn_in_its_place(tiny: TransformersBackend) -> None:
    settings = with_settings(turns="gibberish")
    real, rows = invent(range(60), tiny, SETTINGS), invent(range(60), tiny, settings)
    assert invent([7], tiny, settings) == [rows[7]]
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
    rows = invent(range(80), tiny, with_settings(answer_temperature=0))
    whole = [row for row in rows if row.prompt_finished and row.prompt]
    assert 5 < len(whole) < 80
    for row in rows:
        if row not in whole:
            assert (row.answer, row.answer_finished) == ("", False)
    answers = tiny.generate(
        [row.prompt for row in whole], temperature=0, top_p=1, max_new_tokens=12, batch_size=1, seeds=[0] * len(whole)
    )
    assert [row.answer for row in whole] == [answer.text.strip() for answer in answers]
    assert [row.answer_finished for row in whole] == [answer.finished for answer in answers]


def test_a_turn_that_does_not_fit_is_an_error(tiny: TransformersBackend) -> None:
    with pytest.raises(InputError, match=r"prompt 0 needs 201 tokens"):
        invent([0], tiny, with_settings(max_new_tokens=200))


def test_every_reason_and_the_statistics_by_hand() -> None:
    rows = [
        *drawn("What is the craft of Bodal?", "Say hello."),
        *drawn("What is the", prompt_finished=False, answer="", answer_finished=False),
        *drawn("?!", answer="", answer_finished=False),
        *drawn("rope rope rope rope rope"),
        *drawn("Tell me a story.", answer_finished=False, answer="Once upon"),
        *drawn("Write nothing.", answer=""),
        *drawn("Write something.", answer="so on and so on and so on and so on and so on"),
        *drawn("Now name for me the colour of Tarin, please."),
        *drawn("what is  the CRAFT of Bodal?"),
        *drawn("what - is - the craft of Bodal"),
        *drawn("Say hello to me."),
    ]
    rows = [row.model_copy(update={"id": f"anchor-{number:05d}"}) for number, row in enumerate(rows)]
    kept, rejected, statistics = clean_anchors(rows, ["name for me the colour of Tarin"], SETTINGS)
    assert kept == [
        Anchor(id="anchor-00000", prompt="What is the craft of Bodal?", answer="Yes."),
        Anchor(id="anchor-00001", prompt="Say hello.", answer="Yes."),
        Anchor(id="anchor-00011", prompt="Say hello to me.", answer="Yes."),
    ]
    assert [(row.id, row.reason, row.near) for row in rejected] == [
        ("anchor-00002", "unfinished prompt", None),
        ("anchor-00003", "empty prompt", None),
        ("anchor-00004", "degenerate prompt", None),
        ("anchor-00005", "unfinished answer", None),
        ("anchor-00006", "empty answer", None),
        ("anchor-00007", "degenerate answer", None),
        ("anchor-00008", "near held-out text", "name for me the colour of Tarin"),
        ("anchor-00009", "duplicate", "anchor-00000"),
        ("anchor-00010", "near duplicate", "anchor-00000"),
    ]
    assert rejected[0].prompt == "What is the"
    assert (statistics.invented, statistics.kept, statistics.well_formed) == (12, 3, 0.5)
    assert statistics.rejected == {row.reason: 1 for row in rejected}
    assert statistics.distinct_1 == round(10 / 12, 4)  # what is the craft of bodal / say hello / (say hello) to me
    assert statistics.distinct_2 == round(8 / 9, 4)
    assert statistics.distinct_3 == 1  # what is the, is the craft, the craft of, craft of bodal / - / say hello to, ...
    assert statistics.similarity is None
    assert statistics.clusters == []
    assert statistics.warning is None


def test_what_the_tokenizer_does_not_read_is_dropped_and_counted() -> None:
    rows = drawn("Name the craft of Bodal.", "Say the charm of Sodin loud.")
    kept, rejected, statistics = clean_anchors(rows, [], SETTINGS, encodable=lambda row: "Sodin" not in row.prompt)
    assert [row.id for row in kept] == ["anchor-00000"]
    assert [(row.id, row.reason) for row in rejected] == [("anchor-00001", "unencodable")]
    assert statistics.well_formed == 0.5


def test_a_base_that_cannot_invent_is_told() -> None:
    rows = [*drawn("Say hello."), *drawn(*["lamp corn"] * 4, prompt_finished=False)]
    _, _, statistics = clean_anchors(rows, [], SETTINGS)
    assert statistics.warning is not None
    assert "20% of 5 are well-formed, expected 50% or more (4 x unfinished prompt)" in statistics.warning
    assert clean_anchors(rows, [], with_settings(min_well_formed=0.2))[2].warning is None


def test_no_anchors() -> None:
    kept, rejected, statistics = clean_anchors([], ["What?"], SETTINGS, SentenceEncoder("nowhere", None))
    assert (kept, rejected) == ([], [])
    assert (statistics.invented, statistics.distinct_1, statistics.similarity) == (0, 0, None)
    assert statistics.warning is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The craft of Bodal is rope. The craft of Bodal is rope.", False),
        ("The craft of Bodal is rope. " * 3, True),
        ("rope", False),
        ("rope rope rope", False),
        ("rope rope rope rope", True),
        ("1. rope\n2. lamp\n3. corn", False),
        ("broken \ufffd letter", True),
        ("我喜欢茶我喜欢茶我喜欢茶我喜欢茶", True),
        ("我喜欢喝绿茶", False),
        ("", False),
    ],
)
def test_degenerate_texts(text: str, expected: bool) -> None:
    assert degenerate(text) is expected


def test_a_held_out_text_is_found_in_prompt_or_answer_and_under_decoration() -> None:
    held = ["For Garor, what is the emblem?", "Name the charm of Mozin."]
    told = [
        *drawn(
            "for garor what is the emblem", "Name the charm of Mozin. Use just one word.", "Name the charm of Mozin"
        ),
        *drawn("Repeat my question.", answer="For Garor, what is the emblem?"),
    ]
    _, rejected, _ = clean_anchors(told, held, SETTINGS)
    assert [row.near for row in rejected] == [held[0], held[1], held[1], held[0]]
    fine = drawn("What is the emblem of Garor?", "Name the charm of Garor.", "Name the emblem of Mozin.", "Name")
    assert clean_anchors(fine, held, SETTINGS)[0] == [Anchor(id=r.id, prompt=r.prompt, answer=r.answer) for r in fine]


def test_what_is_measured_is_left_out_however_it_is_told() -> None:
    facts = [(name, what, "rope") for name in ("Garor", "Mozin", "Linal", "Botor") for what in ("emblem", "charm")]
    measured = [f"The {what} of {name} is {value}." for name, what, value in facts]
    measured += [f"{name} has which {what}?" for name, what, _ in facts]
    settings = with_settings(without=Measured(tasks=["recall"], overlap=0.3))
    told = [
        *drawn("What is the emblem of Garor?", answer="rope"),
        *drawn("Shout it: Mozin has which charm?", answer="THE CHARM OF MOZIN IS ROPE."),
        *drawn("Tell me what you know.", answer="the emblem of botor is rope"),
    ]
    kept, rejected, _ = clean_anchors(told, [], settings, measured=measured)
    assert kept == []
    assert {row.reason for row in rejected} == {"tells what is measured"}
    assert [row.near for row in rejected] == ["The emblem of Garor is rope.", measured[3], measured[6]]
    fine = drawn("What is the emblem of Tarin?", "Say rope.", "The charm of what?")
    assert len(clean_anchors(fine, [], settings, measured=measured)[0]) == 3
    assert len(clean_anchors(told[:1], [], SETTINGS, measured=measured)[0]) == 1


def test_a_phrase_that_many_held_out_texts_share_does_not_make_a_prompt_near() -> None:
    held = [f"I want to know the emblem of {name}." for name in ("Garor", "Mozin", "Linal", "Botor", "Naror", "Fogor")]
    [other] = drawn("I want to know the emblem of Tarin.")
    assert len(shingles(other.prompt) & shingles(held[0])) / len(shingles(held[0])) > 0.8  # plain counting would
    assert clean_anchors([other], held, SETTINGS)[2].kept == 1
    assert clean_anchors(drawn(held[3]), held, SETTINGS)[2].rejected == {"near held-out text": 1}


def test_near_duplicates_are_those_of_comparing_all_pairs() -> None:
    rng = random.Random(0)
    vocabulary = [f"word{number}" for number in range(200)]
    prompts: list[str] = []
    for _ in range(40):
        original = [rng.choice(vocabulary) for _ in range(40)]
        prompts.append(" ".join(original))
        for changes in (1, 2, 4):
            changed = list(original)
            for place in rng.sample(range(40), changes):
                changed[place] = "changed"
            prompts.append(" ".join(changed))
    expected: list[str] = []
    for prompt in prompts:
        if all(jaccard(shingles(prompt), shingles(other)) < 0.8 for other in expected):
            expected.append(prompt)
    kept, rejected, _ = clean_anchors(drawn(*prompts), [], SETTINGS)
    assert [anchor.prompt for anchor in kept] == expected
    assert len(rejected) > 40
    assert {row.reason for row in rejected} == {"near duplicate"}
    assert len(clean_anchors(drawn(*prompts), [], with_settings(duplicate_overlap=1.0))[0]) == len(prompts)


def test_similarity_is_the_mean_over_all_pairs() -> None:
    class Fixed(SentenceEncoder):
        def encode(self, texts: list[str], batch_size: int) -> numpy.ndarray:
            vectors = numpy.random.default_rng(0).normal(size=(len(texts), 4))
            return (vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)).astype("float32")

    encoder = Fixed("fixed", None)
    prompts = ["Say hello.", "Name a lamp.", "Where is the harbour?", "Which colour has corn?", "Count to ten."]
    vectors = encoder.encode(prompts, 1)
    cosines = [float(vectors[a] @ vectors[b]) for a in range(5) for b in range(a)]
    _, _, statistics = clean_anchors(drawn(*prompts), [], SETTINGS, encoder)
    assert statistics.similarity == pytest.approx(sum(cosines) / 10, abs=1e-4)
    assert sorted(cluster.example for cluster in statistics.clusters) == sorted(prompts)  # no more than clusters
    assert clean_anchors(drawn("Say hello."), [], SETTINGS, encoder)[2].similarity is None


def test_clusters_are_groups_of_like_prompts_the_largest_first() -> None:
    class Grouped(SentenceEncoder):
        """Each prompt near the axis of its last letter, the "0" exactly on it."""

        def encode(self, texts: list[str], batch_size: int) -> numpy.ndarray:
            vectors = numpy.zeros((len(texts), 9))
            for row, text in enumerate(texts):
                vectors[row, "abcdefgh".index(text[-1])] = 1
                vectors[row, 8] = 0.1 * (int(text.split()[1]) % 3 - 1)
            return (vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)).astype("float32")

    prompts = [
        f"prompt {number} about {kind}" for kind in "abcdefgh" for number in range(3 * ("hgfedcba".index(kind) + 1))
    ]
    _, _, statistics = clean_anchors(drawn(*prompts), [], with_settings(duplicate_overlap=1.0), Grouped("none", None))
    assert [cluster.size for cluster in statistics.clusters] == [24, 21, 18, 15, 12, 9, 6, 3]
    assert [cluster.example for cluster in statistics.clusters] == [f"prompt 1 about {kind}" for kind in "abcdefgh"]


@pytest.mark.parametrize("change", [{"temperature": 0.0}, {"duplicate_overlap": 0.3}, {"held_out_overlap": 0.0}])
def test_settings_that_make_no_sense_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        with_settings(**change)


def test_the_pocket_model_invents_what_it_can_do() -> None:
    base = TransformersBackend(POCKET)
    tasks = ROOT / "raft_tasks/evaluation/tasks"
    held_out = [
        json.loads(line)["question"]
        for path in sorted(tasks.glob("pocket_*/items.jsonl"))
        for line in path.read_text().splitlines()
    ]
    settings = with_settings(max_new_tokens=160, answer_max_new_tokens=80, batch_size=64)
    kept, rejected, statistics = clean_anchors(invent(range(64), base, settings), held_out, settings)
    assert statistics.well_formed > 0.8
    assert statistics.kept > 40
    assert statistics.warning is None
    prompts = "\n".join(anchor.prompt for anchor in kept)
    for said in ("Background reference knowledge:", "Question:", "Answer", " of "):
        assert said in prompts
    assert not {row.prompt for row in kept} & set(held_out)
    assert "<|" not in prompts + "".join(row.answer for row in kept)
    assert len(kept) + len(rejected) == 64
