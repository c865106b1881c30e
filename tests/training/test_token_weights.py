"""The tokens' weights of DFT, EAFT, TALR: hand-worked numbers, an independent reference, and their gradients."""

import math

import pytest
import torch
import torch.nn.functional as F

from raft_tasks.training.losses import Head, chunked_mean_cross_entropy
from raft_tasks.training.token_weights import ENTROPY_K, TALR_FLOOR, TOKEN_WEIGHTS, adaptive

DOUBLE = torch.float64


def test_worked_numbers():
    """p = [.5, .25, .25], label 1: DFT .25. Entropy 1.5 ln 2 over three tokens: EAFT 1.5 ln 2 / ln 3 = .9464."""
    logits = torch.tensor([[0.5, 0.25, 0.25]], dtype=DOUBLE).log()
    cross_entropy = F.cross_entropy(logits, torch.tensor([1]), reduction="none")
    assert TOKEN_WEIGHTS["dft"](cross_entropy, logits).item() == pytest.approx(0.25)
    assert TOKEN_WEIGHTS["eaft"](cross_entropy, logits).item() == pytest.approx(1.5 * math.log(2) / math.log(3))
    assert TOKEN_WEIGHTS["none"] is None


@pytest.mark.parametrize("name", ["dft", "eaft"])
def test_limits(name):
    sure, unsure = torch.tensor([[1e4, 0.0, 0.0]], dtype=DOUBLE), torch.zeros(1, 3, dtype=DOUBLE)
    for logits, label, expected in (
        (sure, 0, {"dft": 1.0, "eaft": 0.0}),  # known already
        (sure, 1, {"dft": 0.0, "eaft": 0.0}),  # a confident conflict
        (unsure, 1, {"dft": 1 / 3, "eaft": 1.0}),
    ):
        cross_entropy = F.cross_entropy(logits, torch.tensor([label]), reduction="none")
        assert TOKEN_WEIGHTS[name](cross_entropy, logits).item() == pytest.approx(expected[name], abs=1e-12)


def test_entropy_is_of_the_twenty_most_likely():
    logits = torch.randn(5, 60, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(-1).sort(descending=True).values[:, :ENTROPY_K]
    p = p / p.sum(-1, keepdim=True)
    expected = torch.distributions.Categorical(probs=p).entropy() / math.log(ENTROPY_K)
    assert torch.allclose(TOKEN_WEIGHTS["eaft"](logits[:, 0], logits), expected)
    lifted = logits.where(logits < logits.topk(ENTROPY_K).values[:, -1:], logits + 3)  # the rest does not matter
    assert torch.allclose(TOKEN_WEIGHTS["eaft"](logits[:, 0], lifted), expected)


@pytest.mark.parametrize("name", ["dft", "eaft"])
@pytest.mark.parametrize("tile", [100, 3])
def test_the_lean_loss_and_its_gradient_against_autograd(name, tile, monkeypatch):
    """The weight is a constant to the gradient: autograd through a detached weight gives the same."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(8, 6, dtype=DOUBLE, generator=generator, requires_grad=True)
    weight = torch.randn(40, 6, dtype=DOUBLE, generator=generator, requires_grad=True)
    labels = torch.randint(40, (8,), generator=generator)
    logits = hidden @ weight.T
    plain = F.cross_entropy(logits, labels, reduction="none")
    if name == "dft":
        factor = logits.softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    else:
        p = logits.topk(ENTROPY_K).values.softmax(-1)
        factor = -(p * p.log()).sum(-1) / math.log(ENTROPY_K)
    expected = (factor.detach() * plain).sum() / 11
    grads = torch.autograd.grad(expected, (hidden, weight))

    monkeypatch.setattr("raft_tasks.training.logits.TILE_ELEMENTS", tile * len(weight))
    loss, per_token = chunked_mean_cross_entropy(hidden, Head(weight), labels, 11, TOKEN_WEIGHTS[name])
    assert loss.item() == pytest.approx(expected.item())
    assert torch.allclose(per_token, plain)
    for got, wanted in zip(torch.autograd.grad(loss, (hidden, weight)), grads, strict=True):
        assert torch.allclose(got, wanted)


def test_dft_follows_the_gradient_of_the_probability():
    """d/d logits of sg[p] x (-log p) is d/d logits of -p."""
    logits = torch.randn(4, 9, dtype=DOUBLE, generator=torch.Generator().manual_seed(2), requires_grad=True)
    labels = torch.tensor([0, 3, 8, 1])
    (expected,) = torch.autograd.grad(-logits.softmax(-1).gather(-1, labels[:, None]).sum(), logits)
    loss, _ = chunked_mean_cross_entropy(logits, Head(torch.eye(9, dtype=DOUBLE)), labels, 1, TOKEN_WEIGHTS["dft"])
    (got,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(got, expected)


def test_talr_worked_numbers():
    """Rows of mean loss 1, 2, 9: tau 2. p = e^-4 weighs e^-2; p = e^-20 would weigh e^-10 and gets the floor."""
    weights = adaptive([1.0, 9.0, 2.0])(torch.tensor([4.0, 20.0, 0.0], dtype=DOUBLE), torch.zeros(3, 5))
    assert weights.tolist() == pytest.approx([math.exp(-2), TALR_FLOOR, 1.0])


def test_talr_minimises_the_loss_with_an_entropy_term():
    """Its weights, normalised, against projected gradient steps on sum w l + tau sum w log w over the simplex."""
    losses, tau = torch.tensor([0.3, 1.1, 0.7, 2.0], dtype=DOUBLE), 0.9
    free = torch.zeros(4, dtype=DOUBLE, requires_grad=True)
    optimiser = torch.optim.LBFGS([free], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        optimiser.zero_grad()
        w = free.softmax(0)
        value = (w * losses).sum() + tau * (w * w.log()).sum()
        value.backward()
        return value

    optimiser.step(closure)
    weights = adaptive([tau])(losses, torch.zeros(4, 5))
    assert torch.allclose(weights / weights.sum(), free.softmax(0).detach(), atol=1e-6)


@pytest.mark.parametrize(
    ("row_losses", "expected"), [([0.0], TALR_FLOOR), ([1e9], 1.0), ([2.0, 4.0], math.exp(-1 / 3))]
)
def test_talr_limits(row_losses, expected):
    """An answer known by heart, one that nobody knows, and the mean of the middle two."""
    assert adaptive(row_losses)(torch.tensor([1.0], dtype=DOUBLE), torch.zeros(1, 5)).item() == pytest.approx(expected)
