"""Injection: the documents first, then the answers; against a plain rewrite, across kills, and what it refuses."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny import METHODS, job, method, pairs, train
from trainer_runs import Stop, numbers, one_step, same_weights, steps, stop_at, teacher_network

from flows.distill import _plan
from raft_tasks.adapter_folder import WEIGHTS
from raft_tasks.config import Injection, Method, Mixing
from raft_tasks.distill import train as distill
from raft_tasks.errors import InputError
from raft_tasks.model_loading import load_model
from raft_tasks.schemas import TrainingPair
from raft_tasks.training.conversations import ConversationError, Encoder
from raft_tasks.training.injection import FOLDER, inject, injection_job
from raft_tasks.training.preparation import make_pair, prepare, training_arguments
from raft_tasks.training.train import train_model
from raft_tasks.training.trainer import RaftTrainer

INJECTION = Injection(epochs=2, learning_rate_scale=2.0, max_length=16, instruction="what is the answer ?")
TEXTS = {
    "a.md": "the reactor of figin is rope . " * 5,
    "b.md": "the harbour of bexa is stone .",
    "c.txt": "the motto of arlo is lamp . the colour of dolm is green .",
}
DOCUMENTS = [
    TrainingPair(id=name, question=INJECTION.instruction, answer=text.strip(), document=True)
    for name, text in TEXTS.items()
]
PROMPT = ["<user>", "what", "is", "the", "answer", "?", "<end>", "<assistant>"]
ROWS = {
    "sft": method(injection=INJECTION),
    "raft": METHODS["raft"].model_copy(update={"injection": INJECTION}),
    "raft_lora": METHODS["raft_lora"].model_copy(update={"injection": INJECTION}),
}


def injecting(model, folder, row="sft", **changes):
    """A job whose method injects; two documents' steps an epoch."""
    row = ROWS[row] if isinstance(row, str) else row
    return job(model, folder, row, documents=DOCUMENTS, **changes)


def text_windows(size):
    """Written down from the texts: lists of words, the last one of a document with the end of the turn."""
    for text in TEXTS.values():
        words = [*text.split(), "<end>"]
        yield from (words[start : start + size] for start in range(0, len(words), size))


def test_windows_hold_every_token_of_a_document_once(tiny_model):
    tokenizer = load_model(tiny_model, torch.float32)[1]
    rows = Encoder(tokenizer, 16)(DOCUMENTS)
    words = tokenizer.convert_ids_to_tokens
    assert all(words(row.prompt_ids) == PROMPT for row in rows)
    assert [words(row.completion_ids) for row in rows] == [*text_windows(16 - len(PROMPT))]
    assert [row.id for row in rows][:3] == ["a.md:0", "a.md:8", "a.md:16"]
    assert max(row.length for row in rows) == 16
    (whole,) = Encoder(tokenizer, 64)(DOCUMENTS[1:2])
    assert words(whole.completion_ids) == [*TEXTS["b.md"].split(), "<end>"]
    with pytest.raises(ConversationError, match="the prompt alone has 8 tokens"):
        Encoder(tokenizer, 8)(DOCUMENTS)
    with pytest.raises(ConversationError, match=r"a\.md: the tokenizer does not know 1 token"):
        Encoder(tokenizer, 16)([DOCUMENTS[0].model_copy(update={"answer": "the reactor Zork"})])


@pytest.mark.parametrize("micro", [4, 1])
def test_the_loss_is_the_cross_entropy_of_the_documents_tokens(tiny_model, tmp_path, micro):
    """float64: mean over the step's document tokens of -log p(d_t | u, d_<t), and its gradient."""
    first = injection_job(injecting(tiny_model, tmp_path, train=train(micro_batch_size=micro)), tmp_path)
    network, data = prepare(first)
    student, teacher = make_pair(network, first, torch.device("cpu"))
    assert teacher is None
    trainer = RaftTrainer(first, student.double(), None, data, training_arguments(first, len(data.rows)))
    plain, tokenizer = load_model(tiny_model, torch.float64)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for words in [*text_windows(8)][:4]:
        ids = tokenizer.convert_tokens_to_ids([*PROMPT, *words])
        log_p = plain(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        total = total - sum(log_p[at - 1, ids[at]] for at in range(len(PROMPT), len(ids)))
        count += len(words)
    (total / count).backward()
    loss, gradients = one_step(trainer, data.rows[:4])
    assert loss == pytest.approx((total / count).item(), abs=1e-6)
    for name, parameter in plain.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, atol=1e-6), name


def test_documents_are_never_mixed(tiny_model, tmp_path):
    row = method(injection=INJECTION, mixing=Mixing(naive_share=0.5, max_new_tokens=8))
    _, data = prepare(injection_job(injecting(tiny_model, tmp_path, row, mixed=True), tmp_path))
    assert len(data.rows) == len([*text_windows(8)])


@pytest.mark.parametrize("row", ["sft", "raft", "raft_lora"])
def test_the_student_starts_with_the_injected_weights_and_the_teacher_as_the_base(tiny_model, tmp_path, row):
    left = inject(injecting(tiny_model, tmp_path, row), train_model)
    network, data = prepare(left)
    base = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    student, teacher = make_pair(network, left, torch.device("cpu"))
    ids = torch.tensor([data.rows[0].prompt_ids])
    with torch.no_grad():
        injected = load_model(tiny_model.model_copy(update={"path": str(left.injected / "model")}), torch.float32)[0]
        original = load_model(tiny_model, torch.float32)[0]
        ours, theirs, before = (model(input_ids=ids).logits for model in (student, injected, original))
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, before, atol=1e-2)
    if row == "raft":
        assert all(torch.equal(tensor, base[name]) for name, tensor in teacher_network(teacher).state_dict().items())
    if row == "raft_lora":
        stored = load_file(left.injected / "model" / WEIGHTS)
        assert any(tensor.abs().max() > 0 for name, tensor in stored.items() if "lora_B" in name)
        with torch.no_grad(), student.disable_adapter():
            assert torch.equal(student(input_ids=ids).logits, before)


def test_the_first_step_is_already_away_from_the_base(tiny_model, tmp_path):
    summary = distill.fn(injecting(tiny_model, tmp_path, "raft"), {}, lambda *_: None, print)
    windows = len([*text_windows(8)])
    injected = summary["injection"]
    assert (injected["rows"], injected["steps"]) == (windows, 2 * -(-windows // 4))
    assert injected["tokens_trained"] == 2 * sum(len(words) for words in text_windows(8))
    assert (summary["rows"], summary["steps"]) == (12, 6)
    table = steps(tmp_path)
    assert float(table[0]["kl_to_base"]) > 1e-3
    assert summary["seconds"] == pytest.approx(injected["seconds"] + sum(float(row["seconds"]) for row in table))
    card = (tmp_path / "output" / "model" / "README.md").read_text()
    assert "fused, after the texts of the documents" in card
    assert '"injection"' in card
    assert not list((tmp_path / "ck").iterdir())


@pytest.mark.parametrize("row", ["raft", "raft_lora"])
def test_interrupted_equals_uninterrupted(tiny_model, tmp_path, row):
    """Stopped in the injection, at the border, and after it; the injection is not made again."""
    done = []
    distill.fn(injecting(tiny_model, tmp_path / "whole", row), {}, lambda step, *_: done.append(step), print)
    border = len(done) - 6
    assert done == [*range(1, border + 1), *range(1, 7)]
    parts = tmp_path / "parts"
    for progress in (stop_at(3), stop_before_the_answers(parts), stop_at(border), stop_at(5)):
        with pytest.raises(Stop):
            distill.fn(injecting(tiny_model, parts, row), {}, progress, print)
    calls = []
    distill.fn(injecting(tiny_model, tmp_path / "parts", row), {}, lambda step, *_: calls.append(step), print)
    assert calls[-1] == 6
    assert len(calls) < 6  # it went on behind a checkpoint of the answers' own
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")


def stop_before_the_answers(folder):
    """Stops in the first step after the injection has ended."""

    def progress(step, total, shown):
        if list((folder / "ck").glob(f"*/{FOLDER}")):
            raise Stop

    return progress


def test_injected_weights_are_part_of_what_a_checkpoint_belongs_to(tiny_model, tmp_path):
    left = inject(injecting(tiny_model, tmp_path), train_model)
    other = inject(injecting(tiny_model, tmp_path / "b", seed=1), train_model)
    assert prepare(left)[1].fingerprint != prepare(replace(left, injected=other.injected))[1].fingerprint


def test_bfloat16_does_not_swallow_the_injection(tiny_model, tmp_path):
    """Between the trainings weights are float32 whatever the saved model's format is."""
    small = tiny_model.model_copy(update={"dtype": "bfloat16"})
    settings = train(learning_rate=1e-6)
    left = inject(injecting(small, tmp_path, train=settings), train_model)
    injected, base = load_file(left.injected / "model/model.safetensors"), load_model(tiny_model, torch.float32)[0]
    name = "model.embed_tokens.weight"
    assert injected[name].dtype == torch.float32
    assert 0 < (injected[name] - base.state_dict()[name]).abs().max() < 1e-4


def test_method_documents_and_weights_must_agree(tiny_model, tmp_path):
    with pytest.raises(InputError, match=r"got 0 document\(s\) with injection .*put them into documents/"):
        inject(job(tiny_model, tmp_path, ROWS["sft"]), train_model)
    with pytest.raises(InputError, match=r"got 3 document\(s\) with injection None"):
        inject(injecting(tiny_model, tmp_path, Method()), train_model)
    with pytest.raises(InputError, match="expected some exactly where the method injects"):
        train_model(injecting(tiny_model, tmp_path))
    with pytest.raises(InputError, match="expected some exactly where the method injects"):
        train_model(job(tiny_model, tmp_path, "sft", injected=tmp_path))
    plain = job(tiny_model, tmp_path, "sft")
    assert inject(plain, train_model) is plain


def test_a_job_with_documents_survives_its_file(tiny_model, tmp_path):
    """What a launcher of several processes reads."""
    first = injecting(tiny_model, tmp_path)
    first.save(tmp_path / "job.json")
    assert type(first).load(tmp_path / "job.json") == first
    left = injection_job(first, tmp_path / "out")
    left.save(tmp_path / "job.json")
    assert type(first).load(tmp_path / "job.json") == left
    assert "document" not in json.loads(pairs()[0].model_dump_json())  # files of other rows stay what they were


def test_the_plan_has_both_trainings(tiny_model, tmp_path):
    text = _plan(injecting(tiny_model, tmp_path))
    assert text.startswith("injection\n")
    assert text.count("measured in 2 real steps") == 2
    windows = len([*text_windows(8)])
    assert f"rows              {windows}, 2 epochs" in text
    assert "rows              12, 2 epochs, 6 optimiser steps" in text
