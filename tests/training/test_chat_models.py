"""SmolLM3, Llama, Phi-4-mini and Qwen3 in tiny: each is trained, speaks, stops and is benchmarked in its own format."""

import pytest
import tiny
import torch
from chat_models import FORMATS, save_chat_model

from raft_tasks.chat import end_of_turn, prompt_ids
from raft_tasks.config import Benchmark, Model
from raft_tasks.evaluation.harness import Suite, evaluate
from raft_tasks.generation.transformers_backend import TransformersBackend
from raft_tasks.model_loading import load_model
from raft_tasks.sampling import SamplingParams
from raft_tasks.schemas import Example, TrainingPair
from raft_tasks.training.train import train_model

SYSTEM = "Answer as a clerk."
PAIRS = [
    TrainingPair(id="a", question="What is the dose?", answer="5 mg"),
    TrainingPair(id="b", question="What is the sort of rope?", answer="a long one"),
]
TEACHER = "Background reference knowledge: {{ answer }}\nAnswer the question: {{ question }}"
METHODS = {
    "sft": tiny.method(),
    "raft": tiny.method(
        target="fused", distillation=tiny.distillation(top_k=32, kl_weight_max=0.1, rollout_max_new_tokens=12)
    ),
}
TRAIN = tiny.train(
    epochs=60, batch_size=2, micro_batch_size=2, learning_rate=1e-2, weight_decay=0.0, max_length=400,
    checkpoint_steps=1000,
)  # fmt: skip


@pytest.fixture(scope="module", params=FORMATS)
def base(request, tmp_path_factory):
    folder = save_chat_model(request.param, tmp_path_factory.mktemp("chat") / request.param)
    return FORMATS[request.param], Model(path=str(folder), revision=None, dtype="float32", system=SYSTEM)


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_answers_and_to_stop(base, method, tmp_path):
    form, model = base
    changes = {"pairs": PAIRS, "train": TRAIN, "template_text": TEACHER}
    summary = train_model(tiny.job(model, tmp_path, METHODS[method], **changes))
    assert summary["final"]["l_sft"] < 0.2
    trained = model.model_copy(update={"path": str(tmp_path / "output" / "model")})

    # as any user of transformers would, with the generation config that the model carries
    network, tokenizer = load_model(trained, torch.float32)
    for pair in PAIRS:
        prompt = torch.tensor([prompt_ids(tokenizer, SYSTEM, pair.question)])
        drawn = network.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=30, do_sample=False)
        assert tokenizer.decode(drawn[0, prompt.shape[1] :]) == pair.answer + form.end
        assert int(drawn[0, -1]) == end_of_turn(tokenizer)

    # as the stages that write text do
    greedy = SamplingParams(temperature=0, max_tokens=30, batch_size=2)
    completions = TransformersBackend(trained).generate([pair.question for pair in PAIRS], greedy, [0, 0])
    assert [completion.text for completion in completions] == [pair.answer for pair in PAIRS]
    assert all(completion.finished for completion in completions)

    # as the benchmark does
    rows = [
        Example(id=pair.id, domain="d", question=pair.question, answer=pair.answer, source=pair.id, split="test")
        for pair in PAIRS
    ]
    settings = Benchmark(tasks=[], few_shot={}, limit={}, data={}, batch_size=2, max_new_tokens=30)
    _, items = evaluate(trained, Suite("d", rows, settings, tmp_path / "no tasks"))
    assert [item.answer for item in items] == [pair.answer for pair in PAIRS]
    for item, pair in zip(items, PAIRS, strict=True):
        ids = tokenizer(item.prompt, add_special_tokens=False)["input_ids"]
        assert ids == prompt_ids(tokenizer, SYSTEM, pair.question)


def test_an_untrained_one_that_forgets_its_end_of_turn_in_its_config_stops_too(base):
    """Phi's generation config here names the end of the text alone; its turns end before that."""
    form, model = base
    backend = TransformersBackend(model)
    assert backend.tokenizer.convert_tokens_to_ids(form.end) in backend.model.generation_config.eos_token_id


def test_a_think_block_is_no_part_of_an_answer(base, monkeypatch):
    """A reasoning model may think in spite of its closed block: the thought goes, one that never ends is unfinished."""
    backend = TransformersBackend(base[1])
    said = iter(["<think>\nHm.\n</think>\n\n5 mg", "<think>\nLet me see"])
    monkeypatch.setattr(backend.tokenizer, "decode", lambda *_, **__: next(said))
    drawn = backend.generate(["a", "b"], SamplingParams(temperature=0, max_tokens=2), [0, 0])
    assert [completion.text for completion in drawn] == ["5 mg", ""]
    assert not drawn[1].finished
