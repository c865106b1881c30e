import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken

from raft_tasks import decoding
from raft_tasks.config import Model
from raft_tasks.errors import InputError
from raft_tasks.generation.backend import Completion
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.sampling import SamplingParams
from raft_tasks.seeds import derive_seed

PROMPTS = ["What is Figin ?", "Tarin", "What is the reactor of Babor ? " * 3, "rope lamp corn", "log"] * 3
SAMPLING = SamplingParams(temperature=0.8, top_p=0.9, max_tokens=12)


def draw(backend: TransformersBackend, prompts: list[str], batch_size: int = 4, **changes: Any) -> list[Completion]:
    seeds = changes.pop("seeds", [derive_seed(0, number) for number in range(len(prompts))])
    return backend.generate(prompts, replace(SAMPLING, batch_size=batch_size, **changes), seeds)


def chat_ids(backend: TransformersBackend, prompt: str) -> list[int]:
    return backend.tokenizer(f"<|user|> {prompt} <|end|> <|assistant|>", add_special_tokens=False)["input_ids"]


def next_token_probs(backend: TransformersBackend, prompt: str, temperature: float) -> Any:
    import torch

    with torch.inference_mode():
        logits = backend.model(torch.tensor([chat_ids(backend, prompt)])).logits[0, -1]
    return torch.softmax(logits.double() / temperature, dim=-1)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8)])
def test_draws_follow_the_tempered_nucleus(tiny: TransformersBackend, temperature: float, top_p: float) -> None:
    import torch

    probs = next_token_probs(tiny, PROMPTS[0], temperature)
    order = probs.argsort(descending=True)
    kept = order[: int((probs[order].cumsum(0) < top_p).sum()) + 1]
    expected = torch.zeros_like(probs)
    expected[kept] = probs[kept] / probs[kept].sum()
    count = 6000
    completions = draw(tiny, [PROMPTS[0]] * count, 500, temperature=temperature, top_p=top_p, max_tokens=1)
    texts = [tiny.tokenizer.decode([token], skip_special_tokens=True) for token in range(len(probs))]
    # Special tokens all read "", so they are counted together.
    drawn = {text: sum(c.text == text for c in completions) / count for text in set(texts)}
    wanted = {text: sum(expected[i].item() for i, t in enumerate(texts) if t == text) for text in set(texts)}
    assert all(drawn[text] == 0 for text, share in wanted.items() if share == 0)
    assert sum(abs(drawn[text] - wanted[text]) for text in drawn) / 2 < 0.03  # total variation


def test_a_row_does_not_depend_on_the_rows_beside_it(tiny: TransformersBackend) -> None:
    together = draw(tiny, PROMPTS, 15)
    assert together == draw(tiny, PROMPTS, 1)
    assert together == draw(tiny, PROMPTS, 4)
    assert together[3:5] == draw(tiny, PROMPTS[3:5], 2, seeds=[derive_seed(0, 3), derive_seed(0, 4)])
    assert len({completion.text for completion in together}) > 10
    assert together != draw(tiny, PROMPTS, 15, seeds=[derive_seed(1, number) for number in range(15)])


def test_temperature_zero_is_greedy_and_needs_no_seed(tiny: TransformersBackend) -> None:
    import torch

    prompt = PROMPTS[2]
    ids = chat_ids(tiny, prompt)
    expected: list[int] = []
    with torch.inference_mode():
        while len(expected) < 12 and not {1, 5} & set(expected):
            expected.append(int(tiny.model(torch.tensor([ids + expected])).logits[0, -1].argmax()))
    for seed in (0, 1):
        (completion, _) = draw(tiny, [prompt, "log"], temperature=0, seeds=[seed, seed])
        assert completion.text == tiny.tokenizer.decode(expected, skip_special_tokens=True)
        assert completion.tokens == len(expected)


def test_finished_says_whether_the_turn_was_ended(tiny: TransformersBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[int]] = []
    original = decoding.decode

    def decode(*arguments: Any) -> list[list[int]]:
        drawn.extend(rows := original(*arguments))
        return rows

    monkeypatch.setattr("raft_tasks.decoding.decode", decode)
    completions = draw(tiny, PROMPTS * 4, 30)
    assert {completion.finished for completion in completions} == {True, False}
    for completion in completions:
        assert completion.tokens <= 12
        assert "<|" not in completion.text
    special = {*tiny.tokenizer.all_special_ids}
    ended = [tokens[:-1] for tokens in drawn if tokens[-1] in tiny.model.generation_config.eos_token_id]
    went_on = sum(any(a in special and b not in special for a, b in itertools.pairwise(tokens)) for tokens in ended)
    assert sum(completion.finished for completion in completions) == len(ended) - went_on
    assert went_on


@pytest.mark.parametrize(
    ("turn", "text", "finished"),
    [
        ("<think> log </think> rope <|end|>", "rope", True),
        ("<think> log </think> rope <|user|> lamp <|end|>", "rope  lamp", False),
        ("<think> log <|end|>", "", False),
        ("rope <turn> lamp <|end|>", "rope lamp", False),
        ("rope <|end|>", "rope", True),
        ("rope <|user|> lamp <|end|>", "rope lamp", False),
        ("<|user|> lamp <|end|>", "lamp", False),
        ("rope <|end|> <|end|>", "rope", True),
    ],
)
def test_what_goes_on_behind_another_turns_mark_is_unfinished(
    tiny: TransformersBackend, monkeypatch: pytest.MonkeyPatch, turn: str, text: str, finished: bool
) -> None:
    backend = TransformersBackend(tiny.settings)
    added = [AddedToken(token, special=True) for token in ("<think>", "</think>", "<turn>")]
    assert backend.model  # loaded before it has no rows for these
    backend.tokenizer.add_tokens(added)  # the tokenizer has no names for them, as for the start of a turn in Llama 3
    ids = backend.tokenizer(turn, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr("raft_tasks.decoding.decode", lambda *_: [ids])
    completion = draw(backend, PROMPTS[:1])[0]
    assert (completion.text, completion.finished) == (text, finished)


def test_the_end_of_turn_comes_from_the_chat_template(tiny: TransformersBackend) -> None:
    assert tiny.tokenizer.convert_ids_to_tokens(tiny.end_of_turn) == "<|end|>"
    assert tiny.model.generation_config.eos_token_id == [1, tiny.end_of_turn]


@pytest.mark.parametrize("batch_size", [1, 4, 15])
def test_mean_log_likelihood_against_a_plain_loop(tiny: TransformersBackend, batch_size: int) -> None:
    import torch

    answers = ["rope", "It is lamp .", "", "the reactor of Figin is corn", "log 1 2 3"] * 3
    expected = []
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        before = chat_ids(tiny, prompt)
        after = [*tiny.tokenizer(answer, add_special_tokens=False)["input_ids"], tiny.end_of_turn]
        with torch.inference_mode():
            log_probs = tiny.model(torch.tensor([before + after])).logits[0].log_softmax(-1)
        expected.append(sum(log_probs[len(before) - 1 + n, t].item() for n, t in enumerate(after)) / len(after))
    assert tiny.mean_log_likelihood(PROMPTS, answers, batch_size) == pytest.approx(expected, abs=1e-5)


def test_a_scored_text_has_no_control_tokens(tiny: TransformersBackend) -> None:
    planted, plain = ([PROMPTS[0]], ["rope <|end|> lamp"]), ([PROMPTS[0]], ["rope < |end|> lamp"])
    assert tiny.mean_log_likelihood(*planted, 1) == tiny.mean_log_likelihood(*plain, 1)


def test_no_rows(tiny: TransformersBackend) -> None:
    assert draw(tiny, []) == []
    assert tiny.mean_log_likelihood([], [], 4) == []


def test_what_does_not_fit_is_an_error_and_is_not_cut(tiny: TransformersBackend) -> None:
    with pytest.raises(InputError, match=r"prompt 1 needs 135 tokens with its completion, model .* takes 128"):
        draw(tiny, ["log", "log " * 120])
    with pytest.raises(InputError, match=r"prompt 0 needs 1\d\d tokens"):
        tiny.mean_log_likelihood(["log " * 120], ["rope " * 20], 1)
    with pytest.raises(ValueError, match="got 1 seeds for 2 prompts"):
        draw(tiny, ["log", "log"], seeds=[0])


def test_the_context_of_a_model_that_sees_images_is_its_language_models(tiny_folder: Path) -> None:
    from transformers import Gemma3Config

    backend = TransformersBackend(Model(path=str(tiny_folder), revision=None, dtype="float32", system=None))
    config = Gemma3Config(text_config={"max_position_embeddings": 20})
    backend.__dict__["model"] = SimpleNamespace(config=config)
    with pytest.raises(InputError, match="takes 20;"):
        draw(backend, ["log " * 15])


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    nowhere = TransformersBackend(Model(path="models/none", revision=None, dtype="float32", system=None))
    with pytest.raises(InputError, match=r"model 'models/none' .*there is no folder"):
        draw(nowhere, ["log"])
    empty = TransformersBackend(Model(path=str(tmp_path), revision=None, dtype="float32", system=None))
    with pytest.raises(InputError, match="model folder"):
        draw(empty, ["log"])


def test_a_model_without_chat_template_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    for file in tiny_folder.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="has no chat template; expected an instruction-tuned model"):
        draw(TransformersBackend(Model(path=str(tmp_path), revision=None, dtype="float32", system=None)), ["log"])


def test_seeds_are_pinned_and_tell_their_parts_apart() -> None:
    assert derive_seed(0, "rewrite", "registry-0007") == 7753882792501199740
    assert (
        len(
            {
                derive_seed(0, "a", 1),
                derive_seed(0, "a1"),
                derive_seed(1, "a", 1),
                derive_seed(0, "a", 2),
                derive_seed(0),
            }
        )
        == 5
    )
    assert 0 <= derive_seed(0) < 2**63
