import pytest
import torch
from tiny import tiny_llama

from raft_tasks.training.speed import ModelFlops, peak_flops

CPU = torch.device("cpu")


@pytest.mark.parametrize("tied", [True, False])
def test_flops_of_a_forward_pass_by_hand(tied):
    """Per layer q, o: 32 x 32, k, v: 32 x 16, three of 32 x 48, two norms; a last norm; the head 40 x 32."""
    flops = ModelFlops(tiny_llama(40, tie_word_embeddings=tied), CPU, torch.float32)
    body = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32) + 32
    assert flops.forward(tokens=10, scored=4) == 2 * (10 * body + 4 * 40 * 32)
    assert flops.training(10, 4) == 3 * flops.forward(10, 4)


def test_frozen_weights_have_no_gradient_to_compute():
    model = tiny_llama(40)
    model.requires_grad_(False)
    flops = ModelFlops(model, CPU, torch.float32)
    assert flops.training(10, 4) == 2 * flops.forward(10, 4)


def test_utilisation_is_a_share_of_a_plausible_peak():
    peak = peak_flops(CPU, torch.float32)
    assert 1e8 < peak < 1e14
    flops = ModelFlops(tiny_llama(40), CPU, torch.float32)
    assert flops.utilisation(peak * 3.0, seconds=2.0, devices=3) == pytest.approx(0.5)
