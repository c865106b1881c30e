"""The chunked losses of real architectures: values and gradients of the model's own logits, and no logits kept."""

import pytest
import torch
import torch.nn.functional as F
from test_adapters import lora_trainer
from test_completion_forward import COMPLETIONS, PROMPTS, small
from tiny import METHODS, distillation, save_tiny
from torch.utils._python_dispatch import TorchDispatchMode
from trainer_runs import ROLLOUTS

from raft_tasks.config import Model
from raft_tasks.training.completion_forward import CompletionForward, enable_completion_forward
from raft_tasks.training.losses import (
    chunked_logits_at,
    chunked_mean_cross_entropy,
    chunked_top_k,
    head_logits,
    top_k_forward_kl,
)

LABELS = torch.tensor([token for completion in COMPLETIONS for token in completion])
K, TEMPERATURE = 6, 1.5
ARCHITECTURES = [
    ("SmolLM3", {"tie_word_embeddings": True}),
    ("Llama", {"tie_word_embeddings": True}),
    ("Phi3", {"tie_word_embeddings": True}),
    ("Qwen3", {"tie_word_embeddings": False}),
    ("Gemma2", {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8}),
    ("Granite", {"logits_scaling": 8.0}),
    ("Cohere", {"logit_scale": 0.25}),
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Of three positions or fewer."""
    monkeypatch.setattr("raft_tasks.training.logits.TILE_ELEMENTS", 3 * 50)


def own_logits(model):
    """The model's own logits [T, V] at the completions, row by row."""
    rows = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
        rows.append(logits[len(prompt) - 1 : -1])
    return torch.cat(rows).float()


def plain_losses(model, teacher, tail):
    v, u = own_logits(model), own_logits(teacher).detach()
    q, p = (u / TEMPERATURE).softmax(-1), (v / TEMPERATURE).softmax(-1)
    ids = u.topk(K).indices
    q, p = q.gather(-1, ids), p.gather(-1, ids)
    if tail:
        q, p = (torch.cat([side, 1 - side.sum(-1, keepdim=True)], -1) for side in (q, p))
    else:
        q, p = (side / side.sum(-1, keepdim=True) for side in (q, p))
    return F.cross_entropy(v, LABELS) + (q * (q / p).log()).sum(-1).mean()


def forward(model, head_fn):
    return model(completion_forward=CompletionForward(PROMPTS, COMPLETIONS, head_fn))


def chunked_losses(model, teacher, tail):
    tempered = TEMPERATURE if tail else None
    with torch.no_grad():
        top = forward(teacher, lambda hidden, head: chunked_top_k(hidden, head, K, tempered))
    assert (top.ids.dtype, top.logits.dtype) == (torch.int32, torch.float32)

    def head_fn(hidden, head):
        student = chunked_logits_at(hidden, head, top.ids, tempered)
        kl = top_k_forward_kl(student.logits, top.logits, TEMPERATURE, (student.tail, top.tail) if tail else None)
        return chunked_mean_cross_entropy(hidden, head, LABELS, len(LABELS))[0] + kl.mean()

    return forward(model, head_fn)


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("kind", "settings"), ARCHITECTURES, ids=[kind for kind, _ in ARCHITECTURES])
def test_values_and_gradients_are_those_of_the_models_own_logits(kind, settings, frozen, tail):
    model, plain, teacher = (small(kind, **settings) for _ in range(3))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    for network in (model, plain):
        network.get_output_embeddings().weight.requires_grad_(not frozen)
    expected = plain_losses(plain, teacher, tail)
    expected.backward()
    for network in (model, teacher):
        enable_completion_forward(network)
    loss = chunked_losses(model, teacher, tail)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    gradients = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        other = gradients[name].grad
        assert (parameter.grad is None) == (other is None), name
        if other is not None:
            assert torch.allclose(parameter.grad, other, atol=1e-4 * max(1.0, other.abs().max().item())), name


@pytest.mark.parametrize(("kind", "settings"), ARCHITECTURES, ids=[kind for kind, _ in ARCHITECTURES])
def test_bfloat16_accumulates_in_float32(kind, settings):
    model, teacher = small(kind, **settings).bfloat16(), small(kind, **settings).bfloat16()
    exact = plain_losses(model, teacher, tail=False).item()
    for network in (model, teacher):
        enable_completion_forward(network)
    loss = chunked_losses(model, teacher, tail=False)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.03)


class Largest(TorchDispatchMode):
    """Fails if more than `bound` elements of something as wide as the vocabulary are made at once."""

    def __init__(self, vocabulary, bound):
        super().__init__()
        self.vocabulary, self.bound, self.seen = vocabulary, bound, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if not isinstance(tensor, torch.Tensor) or tensor.shape == (32, self.vocabulary):
                continue  # the head itself, turned: [H, V]
            if tensor.ndim and tensor.shape[-1] == self.vocabulary:
                self.seen = max(self.seen, tensor.numel())
                assert tensor.numel() <= self.bound, f"{function} made {list(tensor.shape)}"
        return result


@pytest.mark.parametrize("name", ["sft", "raft", "raft_lora"])
def test_no_tensor_of_positions_by_vocabulary_in_a_whole_step(tmp_path, monkeypatch, name):
    """Teacher, student, forward and backward, of a step whose positions are many tiles; only tiles are ever made."""
    folder = save_tiny(tmp_path / "model", vocab_size=4096)
    model = Model(path=str(folder), revision=None, dtype="float32", system=None)
    monkeypatch.setattr("raft_tasks.training.logits.TILE_ELEMENTS", 2 * 4096)  # two positions
    row = METHODS[name]
    if row.distillation is not None:
        row = row.model_copy(update={"distillation": distillation(sampling_logprob_tolerance=9.0)})
    trainer = lora_trainer(model, tmp_path, row)
    rows = trainer.rows[:4]
    positions = min(sum(len(row.completion_ids) for row in rows), sum(len(rollout.tokens) for rollout in ROLLOUTS))
    assert positions > 10
    with Largest(4096, bound=2 * 4096) as largest:
        trainer.training_step(trainer.model, rows)
    assert largest.seen > 0


@pytest.mark.parametrize(("kind", "settings"), ARCHITECTURES, ids=[kind for kind, _ in ARCHITECTURES])
@torch.no_grad()
def test_right_padded_forward_as_left_padded_generation(kind, settings):
    """`generate` sees left-padded rows with mask and positions; student and teacher see them right-padded."""
    model = small(kind, **settings)
    rows = [prompt + completion for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    logits = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
    padded = torch.cat([logits[row, -len(completion) - 1 : -1] for row, completion in enumerate(COMPLETIONS)])
    enable_completion_forward(model)
    right_padded = forward(model, head_logits)
    assert torch.allclose(right_padded, padded, atol=1e-4)
