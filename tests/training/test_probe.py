import pytest
import torch
from tiny import tiny_llama

from raft_tasks.training.completion_forward import output_head
from raft_tasks.training.losses import head_logits
from raft_tasks.training.probe import base_top_k, kl_to_base, token_log_probs


@pytest.fixture
def sides():
    """Hidden states and heads of base and student, and their whole-vocabulary log-probabilities."""
    torch.manual_seed(0)
    base, student = (output_head(tiny_llama(40, seed=seed)) for seed in (0, 1))
    hidden = torch.randn(7, 32), torch.randn(7, 32)
    log_q, log_p = (head_logits(h, head).log_softmax(-1) for h, head in zip(hidden, (base, student), strict=True))
    return (hidden[0], base, log_q.detach()), (hidden[1], student, log_p.detach())


def test_kl_over_the_whole_vocabulary_is_the_plain_one_and_over_top_k_no_more(sides):
    (base_hidden, base, log_q), (hidden, student, log_p) = sides
    plain = (log_q.exp() * (log_q - log_p)).sum(-1)
    whole = kl_to_base(hidden, student, base_top_k(base_hidden, base, 40))
    assert torch.allclose(whole, plain, atol=1e-5)
    some = kl_to_base(hidden, student, base_top_k(base_hidden, base, 10))
    top = log_q.topk(10).indices
    q, p = (side.exp().gather(-1, top) for side in (log_q, log_p))
    rest_q, rest_p = 1 - q.sum(-1), 1 - p.sum(-1)
    expected = (q * (q / p).log()).sum(-1) + rest_q * (rest_q / rest_p).log()
    assert torch.allclose(some, expected, atol=1e-5)
    assert (some <= plain + 1e-6).all()
    assert torch.allclose(kl_to_base(base_hidden, base, base_top_k(base_hidden, base, 10)), torch.zeros(7), atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_at_the_sampling_temperature(sides, temperature):
    _, (hidden, student, _) = sides
    tokens = torch.tensor([0, 5, 39, 7, 7, 1, 20])
    expected = (head_logits(hidden, student) / temperature).log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    assert torch.allclose(token_log_probs(hidden, student, tokens, temperature), expected, atol=1e-5)
