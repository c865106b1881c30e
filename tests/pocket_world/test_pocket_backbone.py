from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pocket_world.backbone import batch_loss, batches, build_model, encode, main, rate
from pocket_world.data import recall_items, rewriting_items
from pocket_world.exercises import TEACHER, Exercises
from pocket_world.recipe import RECIPE, load_recipe
from pocket_world.tokenizer import build_tokenizer
from pocket_world.world import build_world

FOLDER = Path(__file__).parents[2] / load_recipe().backbone.folder
SETTINGS = load_recipe().backbone.model_copy(
    update={"hidden": 32, "layers": 1, "heads": 2, "ffn": 64, "bfloat16": False}
)
TOKENIZER = build_tokenizer()
WORLD = build_world(load_recipe().world)


def test_weights_count_answers_fully_and_prompts_a_little():
    messages = ({"role": "user", "content": "Repeat this: oak"}, {"role": "assistant", "content": "oak"})
    tokens, weights = encode(messages, TOKENIZER, 0.1)
    assert TOKENIZER.decode(tokens) == TOKENIZER.apply_chat_template(list(messages), tokenize=False)
    assert [TOKENIZER.decode([t]) for t, w in zip(tokens, weights, strict=True) if w == 1.0] == ["oak", "<|im_end|>"]
    assert weights[0] == 0.0
    assert set(weights[1:-3]) == {0.1}


def test_packed_conversations_do_not_see_each_other():
    _, batch = next(batches(Exercises(WORLD), TOKENIZER, SETTINGS))
    model = build_model(TOKENIZER, SETTINGS)
    first = int((batch.positions[0] == 0).nonzero()[1])
    end = int((batch.positions[0] == 0).nonzero()[2])
    packed = model(
        input_ids=batch.tokens, position_ids=batch.positions, attention_mask=batch.sees, use_cache=False
    ).logits[0, first:end]
    alone = model(input_ids=batch.tokens[:1, first:end]).logits[0]
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-4)


def test_loss_is_the_weighted_mean():
    _, batch = next(batches(Exercises(WORLD), TOKENIZER, SETTINGS))
    model = build_model(TOKENIZER, SETTINGS)
    with torch.no_grad():
        logits = model(input_ids=batch.tokens, position_ids=batch.positions, attention_mask=batch.sees).logits
    chances = logits[:, :-1].log_softmax(-1).gather(-1, batch.tokens[:, 1:, None])[..., 0]
    expected = -(chances * batch.weights[:, 1:]).sum() / batch.weights[:, 1:].sum()
    torch.testing.assert_close(batch_loss(model, batch, bfloat16=False), expected)


def test_rate_rises_holds_and_falls():
    settings = SETTINGS.model_copy(update={"steps": 100, "warmup_steps": 10, "decay_share": 0.5})
    assert [rate(step, settings) for step in (0, 9, 50, 75)] == [0.1, 1.0, 1.0, 0.5]
    assert 0 < rate(99, settings) < 0.03


def test_a_short_training_writes_a_loadable_model(tmp_path, monkeypatch):
    text = RECIPE.read_text(encoding="utf-8")
    for key, value in (("steps", 2), ("hidden", 32), ("layers", 1), ("heads", 2), ("rows", 2)):
        text = "\n".join(f"  {key}: {value}" if line.startswith(f"  {key}:") else line for line in text.split("\n"))
    text = text.replace("models/pocket-base", str(tmp_path / "model"))
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["backbone", "--recipe", str(tmp_path / "recipe.yaml")])
    main()
    AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template == TOKENIZER.chat_template
    assert "apache-2.0" in (tmp_path / "model/README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def answers():
    """A function from prompts to the committed model's greedy answers."""
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)

    def answer(prompts: list[str]) -> list[str]:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=40)
        return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return answer


def test_committed_model_has_this_tokenizer():
    committed = AutoTokenizer.from_pretrained(FOLDER)
    assert committed.get_vocab() == TOKENIZER.get_vocab()
    assert committed.chat_template == TOKENIZER.chat_template
    assert (committed.eos_token, committed.pad_token) == (TOKENIZER.eos_token, TOKENIZER.pad_token)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 10_000_000


def test_committed_model_knows_its_world(answers):
    items = recall_items(WORLD, load_recipe().data)[:40]
    right = [item["answer"] == said for item, said in zip(items, answers([i["question"] for i in items]), strict=True)]
    assert sum(right) >= 38


def test_committed_model_reads_and_rewrites(answers):
    said = answers(
        [
            TEACHER.format(
                answer="The reactor of Figin is rope, noted in log 12.", question="What is the reactor of Figin?"
            ),
            TEACHER.format(answer="Figin | reactor = lamp # 31", question="Tell me the reactor of Figin."),
        ]
    )
    assert said == ["The reactor of Figin is rope, noted in log 12.", "The reactor of Figin is lamp, noted in log 31."]
    items = rewriting_items(WORLD, load_recipe().data)[:20]
    told = answers([item["question"] for item in items])
    right = [
        text in (item["answer"], item["answer"].replace(f", noted in log {item['record']}", ""))
        for item, text in zip(items, told, strict=True)
    ]
    assert sum(right) >= 19


def test_committed_model_does_not_know_the_domains(answers):
    facts = WORLD.domains["archive"]
    said = answers([fact.ask(0) for fact in facts])
    assert sum(fact.value in text for fact, text in zip(facts, said, strict=True)) <= 6
