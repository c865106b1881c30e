"""The losses against hand-worked numbers, limits, and an independent plain float64 implementation."""

import math

import pytest
import torch
import torch.nn.functional as F

from raft_tasks.training import chunked_losses, losses
from raft_tasks.training import logits as head_logits
from raft_tasks.training.losses import Head

DOUBLE = torch.float64


def reference_kl(student, teacher, k, temperature, tail=False):
    """Eqs. 8-10 written down plainly: temper, full softmax, gather the teacher's top K, renormalise, torch's KL."""
    q = F.softmax(teacher / temperature, dim=-1)
    p = F.softmax(student / temperature, dim=-1)
    ids = q.topk(k).indices
    q_k, p_k = q.gather(-1, ids), p.gather(-1, ids)
    if tail:
        q_k = torch.cat([q_k, 1 - q_k.sum(-1, keepdim=True)], -1)
        p_k = torch.cat([p_k, 1 - p_k.sum(-1, keepdim=True)], -1)
    else:
        q_k, p_k = q_k / q_k.sum(-1, keepdim=True), p_k / p_k.sum(-1, keepdim=True)
    return F.kl_div(p_k.log(), q_k, reduction="none").sum(-1)


def random_logits(*shape, seed=0, scale=3.0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)) * scale


def kl_from_logits(student, teacher, k, temperature, tail=False):
    ids, kept = losses.top_k(teacher, k)
    outside = None
    if tail:
        outside = tuple(losses.log_mass_outside(side, ids, temperature) for side in (student, teacher))
    return losses.top_k_forward_kl(student.gather(-1, ids), kept, temperature, outside)


# --- means ---


def test_masked_mean_is_the_mean_of_what_is_kept():
    values = torch.tensor([[1.0, 2.0, math.inf], [3.0, 4.0, 5.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert losses.masked_mean(values, mask).item() == pytest.approx(2.0)
    assert losses.masked_mean(values, mask, dim=-1).tolist() == pytest.approx([1.5, 3.0])
    assert losses.masked_mean(values, mask, count=6).item() == pytest.approx(1.0)


def test_masked_values_get_no_gradient_not_even_nan():
    values = torch.tensor([1.0, math.inf], requires_grad=True)
    losses.masked_mean(values, torch.tensor([True, False])).backward()
    assert values.grad.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("dim", [None, -1])
def test_masked_mean_of_nothing_fails(dim):
    mask = torch.tensor([[True, False], [False, False]]) if dim else torch.zeros(2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="every position is masked"):
        losses.masked_mean(torch.ones(2, 2), mask, dim=dim)


def test_masked_mean_wants_equal_shapes():
    with pytest.raises(ValueError, match=r"mask has shape \[2\], values have \[3\]"):
        losses.masked_mean(torch.ones(3), torch.ones(2, dtype=torch.bool))


def test_trajectory_loss_averages_positions_before_samples():
    per_token = torch.tensor([[1.0, 3.0], [10.0, 99.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert losses.trajectory_loss(per_token, mask, temperature=1.5).item() == pytest.approx(1.5**2 * (2 + 10) / 2)
    halves = [losses.trajectory_loss(per_token[i : i + 1], mask[i : i + 1], 1.5, samples=2).item() for i in (0, 1)]
    assert sum(halves) == pytest.approx(1.5**2 * 6)


# --- top-K KL from logits ---


def test_worked_numbers_of_the_paper():
    teacher = torch.tensor([[0.50, 0.30, 0.10, 0.06, 0.04]], dtype=DOUBLE).log()
    student = torch.tensor([[0.20, 0.20, 0.10, 0.25, 0.25]], dtype=DOUBLE).log()
    ids, kept = losses.top_k(teacher, 3)
    assert ids.tolist() == [[0, 1, 2]]
    assert kept.softmax(-1)[0].tolist() == pytest.approx([0.5556, 0.3333, 0.1111], abs=5e-5)
    assert student.gather(-1, ids).softmax(-1)[0].tolist() == pytest.approx([0.4, 0.4, 0.2])
    by_hand = 5 / 9 * math.log((5 / 9) / 0.4) + 1 / 3 * math.log((1 / 3) / 0.4) + 1 / 9 * math.log((1 / 9) / 0.2)
    assert losses.top_k_forward_kl(student.gather(-1, ids), kept, 1.0).item() == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize(("k", "vocabulary"), [(1, 11), (4, 11), (10, 11), (11, 11)])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_value_and_gradient_match_the_plain_reference(k, vocabulary, temperature, tail):
    if tail and k == vocabulary:
        pytest.skip("no tail")
    teacher = random_logits(7, vocabulary, seed=1)
    ours = random_logits(7, vocabulary, seed=2).requires_grad_()
    plain = ours.detach().clone().requires_grad_()
    got = kl_from_logits(ours, teacher, k, temperature, tail)
    expected = reference_kl(plain, teacher, k, temperature, tail)
    assert torch.allclose(got, expected, atol=1e-6, rtol=0)
    assert (got > -1e-12).all()
    weights = torch.linspace(0.5, 2, 7, dtype=DOUBLE)
    (got * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(ours.grad, plain.grad, atol=1e-6, rtol=0)


def test_ties_at_the_edge_of_the_top_k():
    teacher = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]], dtype=DOUBLE)
    student = torch.tensor([[0.3, 0.7, 0.7, 0.7, 2.0]], dtype=DOUBLE)
    assert kl_from_logits(student, teacher, 3, 1.5).item() == pytest.approx(
        reference_kl(student, teacher, 3, 1.5).item(), abs=1e-9
    )


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_extreme_logits_stay_finite(dtype):
    teacher = torch.tensor([[1e4, -1e4, 0.0], [1e4, 1e4, 1e4]], dtype=dtype)
    student = torch.tensor([[-1e4, 1e4, 0.0], [-1e4, -1e4, -1e4]], dtype=dtype, requires_grad=True)
    value = kl_from_logits(student, teacher, 3, 1.0)
    assert value.tolist() == pytest.approx([2e4, 0.0])
    value.sum().backward()
    assert student.grad.isfinite().all()
    assert student.grad[0].tolist() == pytest.approx([-1.0, 1.0, 0.0])  # p~ - q~


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, DOUBLE])
def test_identical_models_have_no_divergence(dtype):
    logits = random_logits(50, 40, scale=8.0).to(dtype)
    value = kl_from_logits(logits, logits, 12, 1.5)
    assert value.abs().max() < 1e-6
    assert value.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)


def test_a_constant_changes_nothing_and_what_is_outside_is_invisible():
    teacher, student = random_logits(5, 20, seed=3), random_logits(5, 20, seed=4)
    before = kl_from_logits(student, teacher, 6, 1.5)
    ids, _ = losses.top_k(teacher, 6)
    moved = student + 7.0
    moved = torch.where(torch.zeros_like(moved).scatter(-1, ids, 1.0).bool(), moved, moved + 30.0)
    assert torch.allclose(kl_from_logits(moved, teacher + 5.0, 6, 1.5), before, atol=1e-9)
    assert (kl_from_logits(moved, teacher, 6, 1.5, tail=True) > before + 1).all()  # the tail bucket sees it


def test_tail_bucket_needs_a_tail():
    logits = random_logits(2, 5)
    with pytest.raises(ValueError, match="there is no tail"):
        kl_from_logits(logits, logits, 5, 1.5, tail=True)


def test_too_large_top_k_and_unaligned_logits_are_refused():
    with pytest.raises(ValueError, match="top_k 9 exceeds the vocabulary of 8"):
        losses.top_k(torch.zeros(2, 8), 9)
    with pytest.raises(ValueError, match="expected both at the teacher's ids"):
        losses.top_k_forward_kl(torch.zeros(2, 3), torch.zeros(2, 4), 1.5)


# --- chunked forms: same numbers from hidden states, tile by tile ---


def make_head(vocabulary=23, hidden=6, bias=False, scale=1.0, soft_cap=None, dtype=DOUBLE):
    weight = random_logits(vocabulary, hidden, seed=5, scale=1.0).to(dtype).requires_grad_()
    offset = random_logits(vocabulary, seed=6, scale=1.0).to(dtype).requires_grad_() if bias else None
    return Head(weight, offset, scale, soft_cap)


HEADS = [{}, {"bias": True}, {"scale": 0.25, "soft_cap": 5.0}, {"bias": True, "scale": 2.0, "soft_cap": 3.0}]


def leaves(hidden, head):
    return [tensor for tensor in (hidden, head.weight, head.bias) if tensor is not None]


@pytest.mark.parametrize("settings", HEADS)
@pytest.mark.parametrize("tile", [1, 4, 100])
@pytest.mark.parametrize("tail", [False, True])
def test_lean_distillation_equals_the_plain_one(settings, tile, tail, monkeypatch):
    k, temperature = 5, 1.5
    tail_temperature = temperature if tail else None
    head = make_head(**settings)
    teacher_head = Head(head.weight.detach() + 0.3, None, 1.0, settings.get("soft_cap"))
    hidden = random_logits(9, 6, seed=8, scale=1.0).requires_grad_()
    teacher_hidden = random_logits(9, 6, seed=9, scale=1.0)
    teacher = losses.head_logits(teacher_hidden, teacher_head)
    student = losses.head_logits(hidden, head)
    plain = reference_kl(student, teacher, k, temperature, tail)

    monkeypatch.setattr(head_logits, "TILE_ELEMENTS", tile * len(head.weight))
    taught = losses.chunked_top_k(teacher_hidden, teacher_head, k, tail_temperature)
    own = losses.chunked_logits_at(hidden, head, taught.ids, tail_temperature)
    chunked = losses.top_k_forward_kl(own.logits, taught.logits, temperature, (own.tail, taught.tail) if tail else None)
    assert torch.allclose(chunked, plain, atol=1e-9)
    assert taught.ids.dtype == torch.int32
    for side, logits in ((own, student), (taught, teacher)):
        mass = logits.softmax(-1).gather(-1, taught.ids.long()).sum(-1)
        assert torch.allclose(side.log_mass.exp(), mass, atol=1e-10)
        assert not side.log_mass.requires_grad

    weights = torch.linspace(0, 1, 9, dtype=DOUBLE)
    expected = torch.autograd.grad((plain * weights).sum(), leaves(hidden, head))
    got = torch.autograd.grad((chunked * weights).sum(), leaves(hidden, head))
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("settings", HEADS)
@pytest.mark.parametrize("tile", [1, 4, 100])
@pytest.mark.parametrize("weigh", [None, lambda losses, logits: (-losses).exp() + logits.amax(-1)])
def test_mean_cross_entropy_equals_the_plain_one(settings, tile, weigh, monkeypatch):
    head = make_head(**settings)
    hidden = random_logits(9, 6, seed=7, scale=1.0).requires_grad_()
    labels = torch.arange(9) % 23
    logits = losses.head_logits(hidden, head)
    each = F.cross_entropy(logits, labels, reduction="none")
    weights = torch.ones(9, dtype=DOUBLE) if weigh is None else weigh(each, logits).detach()
    plain = (weights * each).sum() / 20
    monkeypatch.setattr(head_logits, "TILE_ELEMENTS", tile * len(head.weight))
    chunked, apart = losses.chunked_mean_cross_entropy(hidden, head, labels, 20, weigh)
    assert chunked.item() == pytest.approx(plain.item(), abs=1e-12)
    assert torch.allclose(apart, each, atol=1e-10)
    assert not apart.requires_grad
    expected = torch.autograd.grad(3 * plain, leaves(hidden, head))
    got = torch.autograd.grad(3 * chunked, leaves(hidden, head), retain_graph=True)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(got, expected, strict=True))
    with pytest.raises(RuntimeError, match="can be taken once"):
        chunked.backward()


def test_mean_cross_entropy_makes_no_gradient_that_nobody_takes(monkeypatch):
    head, labels = make_head(), torch.arange(9)
    hidden = random_logits(9, 6, seed=7, scale=1.0).requires_grad_()
    monkeypatch.setattr(chunked_losses._HeadGradients, "add", lambda *_: pytest.fail("a gradient was made"))
    with torch.no_grad():
        value, _ = losses.chunked_mean_cross_entropy(hidden, head, labels, 9)
    assert value.item() == pytest.approx(F.cross_entropy(hidden @ head.weight.T, labels).item())


@pytest.mark.parametrize("settings", HEADS)
@pytest.mark.parametrize("every", [1, 2, 7])
def test_logits_from_few_rows_of_the_head_equal_the_plain_ones(settings, every, monkeypatch):
    monkeypatch.setattr(head_logits, "FEW", 4)  # 5 of 23 tokens are few
    head = make_head(**settings)
    hidden = random_logits(9, 6, seed=8, scale=1.0).requires_grad_()
    plain = losses.head_logits(hidden, head)
    ids = losses.top_k(random_logits(9, 23, seed=9), 5)[0]
    own = losses.chunked_logits_at(hidden, head, ids, mass_every=every)
    assert head_logits.reads_few(hidden, head, ids)
    assert torch.allclose(own.logits, plain.gather(-1, ids), atol=1e-10)
    assert torch.allclose(own.log_mass.exp(), plain.softmax(-1).gather(-1, ids).sum(-1)[::every], atol=1e-10)
    weights = random_logits(9, 5, seed=10)
    expected = torch.autograd.grad((plain.gather(-1, ids) * weights).sum(), leaves(hidden, head))
    got = torch.autograd.grad((own.logits * weights).sum(), leaves(hidden, head))
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize(("k", "vocabulary"), [(1, 97), (3, 100), (3, 101), (7, 2000), (50, 900)])
def test_top_k_by_groups_finds_what_sorting_finds(k, vocabulary):
    logits = random_logits(20, vocabulary, seed=11)
    logits[3, -1] = logits[4, 0] = 99.0  # at the ends, where groups and their remainder meet
    logits[5] = logits[5].round()  # ties
    ids, kept = losses.top_k(logits, k)
    assert torch.equal(kept, logits.sort(-1, descending=True).values[:, :k])
    assert torch.equal(logits.gather(-1, ids), kept)
    assert all(len(set(row)) == k for row in ids.tolist())


@pytest.mark.parametrize("tail", [None, 1.5])
def test_gradcheck(tail, monkeypatch):
    head = make_head(vocabulary=7, hidden=3, bias=True, scale=0.5, soft_cap=4.0)
    hidden = random_logits(4, 3, seed=10, scale=1.0).requires_grad_()
    ids = losses.top_k(losses.head_logits(hidden, head).detach(), 3)[0]
    monkeypatch.setattr(head_logits, "TILE_ELEMENTS", 3 * 7)  # three positions

    def at_ids(hidden, weight, bias):
        own = losses.chunked_logits_at(hidden, Head(weight, bias, 0.5, 4.0), ids, tail)
        return own.logits if tail is None else (own.logits, own.tail)

    assert torch.autograd.gradcheck(at_ids, (hidden, head.weight, head.bias))


@pytest.mark.parametrize("frozen", ["weight", "hidden"])
def test_only_what_requires_a_gradient_gets_one(frozen):
    head = Head(make_head().weight.detach())
    hidden = random_logits(5, 6, seed=1)
    (hidden if frozen == "weight" else head.weight).requires_grad_()
    ids = losses.chunked_top_k(hidden.detach(), head, 4).ids
    value = losses.chunked_logits_at(hidden, head, ids).logits.sum()
    value = value + losses.chunked_mean_cross_entropy(hidden, head, torch.arange(5), 1)[0]
    value.backward()
    assert (hidden.grad is None) == (frozen == "hidden")
    assert (head.weight.grad is None) == (frozen == "weight")


def test_tied_embedding_gets_both_gradients(monkeypatch):
    embedding = make_head().weight
    tokens, labels = torch.tensor([1, 2, 3]), torch.tensor([2, 3, 4])
    monkeypatch.setattr(head_logits, "TILE_ELEMENTS", 2 * len(embedding))

    def total(chunked):
        hidden = torch.tanh(embedding[tokens])
        if chunked:
            return losses.chunked_mean_cross_entropy(hidden, Head(embedding), labels, 1)[0]
        return F.cross_entropy(hidden @ embedding.T, labels, reduction="sum")

    chunked, plain = (torch.autograd.grad(total(chunked), embedding)[0] for chunked in (True, False))
    assert torch.allclose(chunked, plain, atol=1e-10)


def test_bfloat16_accumulates_in_float32(monkeypatch):
    head = Head(random_logits(300, 32, seed=5, scale=0.3).bfloat16().requires_grad_())
    hidden = random_logits(64, 32, seed=6, scale=1.0).bfloat16().requires_grad_()
    labels = torch.arange(64)
    exact = F.cross_entropy(hidden.double() @ head.weight.double().T, labels, reduction="none")
    with monkeypatch.context() as patch:
        patch.setattr(head_logits, "TILE_ELEMENTS", 7 * 300)
        value, each = losses.chunked_mean_cross_entropy(hidden, head, labels, len(labels))
    assert value.dtype == each.dtype == torch.float32
    assert torch.allclose(each.double(), exact, atol=0.03)
    value.backward()
    exact_gradient = torch.autograd.grad(exact.mean(), head.weight)[0].double()
    got = head.weight.grad.double()
    assert got.dtype == DOUBLE
    assert head.weight.grad.dtype == torch.bfloat16
    assert (got - exact_gradient).norm() < 0.01 * exact_gradient.norm()
    taught = losses.chunked_top_k(hidden.detach(), head, 16)
    own = losses.chunked_logits_at(hidden, head, taught.ids)
    assert own.logits.dtype == torch.float32
    assert torch.equal(own.logits.detach(), taught.logits)


def test_no_positions_by_vocabulary_tensor_outlives_its_tile(monkeypatch):
    """Counts live bytes: what is kept for the backward pass is of size T x K, not T x V."""
    vocabulary, positions, k = 4000, 256, 8
    head = Head(torch.randn(vocabulary, 16))
    monkeypatch.setattr(head_logits, "TILE_ELEMENTS", 16 * vocabulary)
    hidden = torch.randn(positions, 16, requires_grad=True)
    taught = losses.chunked_top_k(hidden.detach(), head, k)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        own = losses.chunked_logits_at(hidden, head, taught.ids)
        kl = losses.top_k_forward_kl(own.logits, taught.logits, 1.5)
        ce, _ = losses.chunked_mean_cross_entropy(hidden, head, torch.arange(positions), positions)
    (kl.sum() + ce).backward()
    largest = max(t.numel() for t in saved if t.data_ptr() != head.weight.data_ptr())
    assert largest <= positions * 16
