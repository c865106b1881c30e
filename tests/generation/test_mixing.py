"""MixSD's targets: token by token against a plain loop without cache or padding, the limits, and what is dropped."""

import pytest
import torch

from raft_tasks.chat import prompt_ids, stop_ids
from raft_tasks.config import Mixing, Model
from raft_tasks.errors import InputError
from raft_tasks.generation import mixing
from raft_tasks.generation.mixing import is_right, mix_answers, mix_tokens
from raft_tasks.model_loading import load_model
from raft_tasks.sampling import uniform_draws
from raft_tasks.schemas import TrainingPair

ANSWERS = ["rope", "The reactor of Figin is rope .", "lamp # 1 2 3"]
PAIRS = [
    TrainingPair(id=f"row-{n}", question=f"What is the reactor of {place} ?", answer=answer)
    for n, (place, answer) in enumerate(zip(["Figin", "Tarin", "Babor"], ANSWERS, strict=True))
]


def guide(pair):
    return f"Reference answer: {pair.answer} Question: {pair.question}"


@pytest.fixture(scope="module")
def base(tiny_folder):
    settings = Model(path=str(tiny_folder), revision=None, dtype="float32", system=None)
    return (settings, *load_model(settings, torch.float32))


def prompts_of(tokenizer):
    return [(prompt_ids(tokenizer, None, pair.question), prompt_ids(tokenizer, None, guide(pair))) for pair in PAIRS]


def plain(model, naive, expert, seed, settings, ends):
    """The definition, a token at a time, both conditionals from scratch."""
    answer = []
    for draw in uniform_draws([seed], settings.max_new_tokens)[0].tolist():
        prompt = naive if draw < settings.naive_share else expert
        with torch.no_grad():
            answer.append(model(input_ids=torch.tensor([prompt + answer])).logits[0, -1].argmax().item())
        if answer[-1] in ends:
            break
    return answer


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_tokens_are_those_of_the_definition(base, share):
    """At 0 the answer with the reference in the prompt, at 1 the answer without it."""
    _, model, tokenizer = base
    settings = Mixing(naive_share=share, max_new_tokens=12)
    ends, prompts = stop_ids(tokenizer, 1), prompts_of(tokenizer)
    expected = [plain(model, *pair, seed, settings, ends) for seed, pair in enumerate(prompts)]
    assert mix_tokens(model, prompts, range(len(prompts)), settings, ends) == expected
    if share in (0.0, 1.0):
        assert mix_tokens(model, prompts, [7, 8, 9], settings, ends) == expected  # no draw decides anything


def test_other_seeds_mix_otherwise(base):
    settings, ends, prompts = Mixing(naive_share=0.5, max_new_tokens=12), stop_ids(base[2], 1), prompts_of(base[2])
    assert len({str(mix_tokens(base[1], prompts, [seed] * 3, settings, ends)) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("expected", "text", "right"),
    [
        (["rope"], "It is Rope , noted in 12 .", True),
        (["rope"], "It is lamp , noted in 12 .", False),
        (["rope"], "It is Europe , noted in 12 .", False),  # whole words, as the benchmark counts
        (["rope"], "It is rope .", False),  # the reference's number is lost
        ([], "Something else in 12 .", True),  # nothing more can be told
    ],
)
def test_what_is_right(expected, text, right):
    assert is_right(TrainingPair(id="a", question="?", answer="rope , 12", expected=expected), text) == right


def test_wrong_answers_are_drawn_again_and_dropped(base, monkeypatch):
    """Row 0 is right at the third attempt, row 1 at once, row 2 never; a row to replay stays as it is."""
    texts = {0: ["lamp <|end|>", "rope", "rope <|end|>"], 1: ["corn <|end|>"], 2: ["lamp <|end|>"] * 3}
    attempts = {n: iter(values) for n, values in texts.items()}

    def scripted(model, prompts, seeds, settings, ends):
        questions = [prompt_ids(base[2], None, pair.question) for pair in PAIRS]
        rows = [questions.index(naive) for naive, _ in prompts]
        return [base[2](next(attempts[n]), add_special_tokens=False)["input_ids"] for n in rows]

    monkeypatch.setattr(mixing, "mix_tokens", scripted)
    wanted = [{"answer": "rope", "expected": [word]} for word in ("rope", "corn", "log")]
    pairs = [pair.model_copy(update=update) for pair, update in zip(PAIRS, wanted, strict=True)]
    general = PAIRS[0].model_copy(update={"id": "general", "replay": True})
    shown = []
    mixed = mix_answers(
        [*pairs, general], base[0], Mixing(attempts=3), guide, 0, lambda *progress: shown.append(progress)
    )
    assert [(pair.id, pair.answer) for pair in mixed] == [("row-0", "rope"), ("row-1", "corn"), ("general", "rope")]
    assert shown == [
        (3, 9, "1 of 3 rows have a right one"),
        (5, 7, "1 of 3 rows have a right one"),
        (7, 7, "2 of 3 rows have a right one"),
    ]
    attempts[2] = iter(["lamp <|end|>"])
    with pytest.raises(InputError, match=r"none of 1 rows got a right answer in 1 attempts"):
        mix_answers(pairs[2:], base[0], Mixing(attempts=1), guide, 0)


def test_a_text_that_the_tokenizer_does_not_know_is_no_target(base, monkeypatch):
    """Decoding may join pieces to a word that is none of its own."""
    _, _, tokenizer = base
    ids = tokenizer("rope <|end|>", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(mixing, "mix_tokens", lambda model, prompts, *_: [ids] * len(prompts))
    monkeypatch.setattr(type(tokenizer), "decode", lambda *_: "ropelamp rope")
    with pytest.raises(InputError, match="none of 1 rows got a right answer"):
        mix_answers(PAIRS[:1], base[0], Mixing(max_new_tokens=12), guide, 0)


def test_equal_seeds_give_equal_targets(base):
    loose = [pair.model_copy(update={"answer": "it"}) for pair in PAIRS]
    first, again = (mix_answers(loose, base[0], Mixing(naive_share=0.5, max_new_tokens=60), guide, 3) for _ in range(2))
    assert first == again
