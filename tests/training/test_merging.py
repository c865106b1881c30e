"""What is kept of a training: hand-worked numbers, peft's TIES as an independent reference, the rule of the choice."""

import math

import pytest
import torch
from scipy import integrate, optimize
from tiny import save_tiny

from raft_tasks.config import Interpolate, Model, Prune, SpectralThreshold, Ties
from raft_tasks.model_loading import load_model
from raft_tasks.training.merging import Candidate, Merger, choose, dg_hard, fapm, threshold_factor, ties, trim

CHOSEN = {"coefficients": [0.5, 1.0], "tasks": ["t"], "general_loss": 0.02}


def test_fapm_worked_numbers():
    """mean|W0| = 2; scores: .4 - 2 x .4/1 = -.4, .4 - 2 x .4/4 = .2, .1 - 2 x .1/2 = 0, .9 - 2 x .9/1 = -.9."""
    base = torch.tensor([[1.0, 4.0], [-2.0, 1.0]])
    delta = torch.tensor([[0.4, -0.4], [0.1, 0.9]])
    assert fapm(base, delta, 0.25).tolist() == [[0.0, pytest.approx(-0.4)], [0.0, 0.0]]
    assert fapm(base, delta, 0.5).tolist() == [[0.0, pytest.approx(-0.4)], [pytest.approx(0.1), 0.0]]
    assert torch.equal(trim(delta, 0.25), torch.tensor([[0.0, 0.0], [0.0, 0.9]]))  # magnitude alone chooses another


def test_fapm_drops_changes_of_weights_that_were_zero():
    base, delta = torch.tensor([0.0, 1.0, 0.0, 2.0]), torch.tensor([9.0, 0.1, 0.0, 0.1])
    assert fapm(base, delta, 0.5).tolist() == [0.0, pytest.approx(0.1), 0.0, pytest.approx(0.1)]


def test_ties_worked_numbers():
    """Signs: + (.9 against .2), - (.5 against .3), + alone, nobody."""
    one, other = torch.tensor([0.9, -0.5, 0.4, 0.01]), torch.tensor([-0.2, 0.3, 0.02, 0.01])
    assert ties([one, other], 0.75).tolist() == pytest.approx([0.9, -0.5, 0.21, 0.0])


def test_ties_of_one_is_its_trim():
    delta = torch.randn(30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ties([delta], 0.2), trim(delta, 0.2))
    assert (trim(delta, 0.2) != 0).sum() == 6


@pytest.mark.parametrize("count", [1, 2, 5])
def test_ties_against_peft(count):
    from peft.utils.merge_utils import ties as reference

    generator = torch.Generator().manual_seed(count)
    deltas = [torch.randn(8, 9, generator=generator) for _ in range(count)]
    assert torch.allclose(ties(deltas, 0.3), reference(deltas, torch.ones(count), 0.3))


def square(*values):
    """A 32 x 32 matrix with these singular values, and 1 for the rest."""
    left, right = (
        torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]
        for seed in (0, 1)
    )
    spectrum = torch.tensor([*values, *[1.0] * (32 - len(values))], dtype=torch.float64)
    return left @ spectrum.diag() @ right, (left, right)


def test_dg_hard_worked_numbers():
    """Square: tau = 2.858 x the median singular value, 1 here: 2.9 stays, 2.8 and the noise go."""
    delta, (left, right) = square(2.9, 2.8)
    assert torch.allclose(dg_hard(delta), 2.9 * torch.outer(left[:, 0], right[0]), atol=1e-12)
    assert torch.equal(dg_hard(1e-6 * delta).bool(), dg_hard(delta).bool())  # no absolute threshold


@pytest.mark.parametrize("beta", [1.0, 0.75, 0.5, 0.25, 0.05])
def test_the_threshold_against_an_integral_and_the_papers_polynomial(beta):
    """Marchenko-Pastur's density by quadrature, its median by bisection; and .56 b^3 - .95 b^2 + 1.82 b + 1.43."""
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2

    def mass(x):
        root = integrate.quad(lambda t: math.sqrt(high - t) / t if t else 0.0, low, x, weight="alg", wvar=(0.5, 0.0))
        return root[0] / (2 * math.pi * beta) - 0.5

    median = optimize.brentq(mass, low + 1e-9, high - 1e-9) if beta < 1 else 0.6528  # integrable pole at 0
    omega = math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1)))
    assert threshold_factor(beta) == pytest.approx(omega / math.sqrt(median), rel=1e-3)
    assert threshold_factor(beta) == pytest.approx(0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43, abs=0.02)


def test_dg_hard_takes_noise_away_and_leaves_the_signal():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(120, 200, generator=generator) / 200**0.5
    signal = 5 * torch.outer(
        torch.nn.functional.normalize(torch.randn(120, generator=generator), dim=0),
        torch.nn.functional.normalize(torch.randn(200, generator=generator), dim=0),
    )
    assert not dg_hard(noise).any()
    kept = dg_hard(signal + noise)
    assert torch.linalg.matrix_rank(kept) == 1
    assert (kept - signal).norm() < 0.5 * noise.norm()


def test_dg_hard_leaves_vectors_small_and_unchanged_matrices():
    vector, small, unchanged = torch.randn(2000), torch.randn(31, 33), torch.zeros(40, 40)
    for delta in (vector, small, unchanged):
        assert torch.equal(dg_hard(delta), delta)


@pytest.mark.parametrize(
    ("candidates", "coefficient", "met"),
    [
        ([(0.2, 0.5, 0.90), (0.6, 0.8, 0.86), (1.0, 0.9, 0.7)], 0.6, True),
        ([(0.2, 0.5, 0.90), (0.6, 0.8, 0.85), (1.0, 0.9, 0.86)], 1.0, True),  # domain first
        ([(0.2, 0.8, 0.87), (0.6, 0.8, 0.86), (1.0, 0.9, 0.7)], 0.2, True),  # equal: the better general score
        ([(0.2, 0.8, 0.87), (0.1, 0.8, 0.87), (1.0, 0.9, 0.7)], 0.1, True),  # still equal: the smaller change
        ([(0.2, 0.8, 0.80), (0.6, 0.9, 0.84), (1.0, 0.95, 0.7)], 0.6, False),  # none keeps the bound
        ([(0.2, 0.8, 0.86 - 1e-12), (1.0, 0.9, 0.7)], 0.2, True),  # rounding does not decide
    ],
)
def test_the_choice_is_domain_first_within_the_bound(candidates, coefficient, met):
    chosen, kept = choose([Candidate(*one) for one in candidates], base_general=0.88, general_loss=0.02)
    assert (chosen.coefficient, kept) == (coefficient, met)


@pytest.fixture
def models(tmp_path, tiny_model):
    for seed in (1, 2):
        save_tiny(tmp_path / str(seed), seed=seed)
    return tiny_model, [tmp_path / "1", tmp_path / "2"]


def parameters(folder):
    network, _ = load_model(Model(path=str(folder), revision=None, dtype="float32", system=None), torch.float32)
    return dict(network.named_parameters())


def test_written_models_lie_between_base_and_trained(models, tmp_path):
    base, trained = models
    recovery = Merger(base, trained[:1], Interpolate(kind="interpolate", **CHOSEN))
    original, whole = parameters(base.path), parameters(trained[0])
    total = recovery.write(1.0, tmp_path / "whole")["total"]
    for coefficient in (0.5, 0.0, 0.25):  # in any order: each starts from the base
        distance = recovery.write(coefficient, tmp_path / f"{coefficient}")
        assert distance["total"] == pytest.approx(coefficient * total, rel=1e-5)
        for name, value in parameters(tmp_path / f"{coefficient}").items():
            assert torch.allclose(value, original[name] + coefficient * (whole[name] - original[name]), atol=1e-6)
    assert all(torch.allclose(value, whole[name], atol=1e-6) for name, value in parameters(tmp_path / "whole").items())


def test_pruned_and_merged_models(models, tmp_path):
    base, trained = models
    original, first = parameters(base.path), parameters(trained[0])
    Merger(base, trained[:1], Prune(kind="prune", keep=0.1)).write(1.0, tmp_path / "pruned")
    Merger(base, trained, Ties(kind="ties", keep=0.2, **CHOSEN)).write(1.0, tmp_path / "ties")
    for name, value in parameters(tmp_path / "pruned").items():
        assert torch.allclose(
            value - original[name], fapm(original[name], first[name] - original[name], 0.1), atol=1e-6
        )
        assert (value != original[name]).sum() <= max(1, int(0.1 * value.numel()))
    Merger(base, trained[:1], SpectralThreshold(kind="dg_hard")).write(1.0, tmp_path / "dg_hard")
    for name, value in parameters(tmp_path / "dg_hard").items():
        assert torch.allclose(value - original[name], dg_hard(first[name] - original[name]), atol=1e-5)
    second = parameters(trained[1])
    for name, value in parameters(tmp_path / "ties").items():
        expected = ties([one[name] - original[name] for one in (first, second)], 0.2)
        assert torch.allclose(value - original[name], expected, atol=1e-6), name


def test_half_precision_is_written_as_the_base_is(models, tmp_path):
    base, trained = models
    recovery = Merger(
        base.model_copy(update={"dtype": "bfloat16"}), trained[:1], Interpolate(kind="interpolate", **CHOSEN)
    )
    recovery.write(0.5, tmp_path / "a")
    recovery.write(0.5, tmp_path / "b")  # the first one's rounding is not in the second
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b
    from safetensors.torch import load_file

    assert {value.dtype for value in load_file(tmp_path / "a" / "model.safetensors").values()} == {torch.bfloat16}
