from math import log

import pytest
import torch
from tiny import tiny_llama, word_tokenizer

from raft_tasks.training.completion_forward import output_head
from raft_tasks.training.divergence import BaseAnswer, answer_states, encode_answer, kl_by_position, kl_of_answers
from raft_tasks.training.losses import Head


def head_of(*logits):
    """A head that says these logits for the hidden state [1.0]."""
    return Head(torch.tensor(logits)[:, None])


def test_kl_of_hand_worked_numbers_base_first():
    base, tuned = head_of(log(0.5), log(0.3), log(0.2)), head_of(log(0.25), log(0.25), log(0.5))
    found = kl_by_position(torch.ones(2, 1), base, torch.ones(2, 1), tuned)
    expected = 0.5 * log(0.5 / 0.25) + 0.3 * log(0.3 / 0.25) + 0.2 * log(0.2 / 0.5)
    assert found.tolist() == pytest.approx([expected, expected], rel=1e-5)
    back = kl_by_position(torch.ones(1, 1), tuned, torch.ones(1, 1), base).item()
    assert back != pytest.approx(expected, rel=0.01)


def test_tiles_change_nothing(monkeypatch):
    torch.manual_seed(0)
    heads, hidden = [Head(torch.randn(30, 8)) for _ in range(2)], torch.randn(2, 7, 8)
    whole = kl_by_position(hidden[0], heads[0], hidden[1], heads[1])
    monkeypatch.setattr("raft_tasks.training.logits.TILE_ELEMENTS", 3 * 30)  # three positions
    assert torch.allclose(kl_by_position(hidden[0], heads[0], hidden[1], heads[1]), whole)
    assert bool((whole > 0).all())


def test_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocabulary of 3, the tuned model one of 2"):
        kl_by_position(torch.ones(1, 1), head_of(0.0, 0.0, 0.0), torch.ones(1, 1), head_of(0.0, 0.0))


def test_answers_are_compared_at_every_next_token_of_the_models_themselves():
    base, tuned = tiny_llama(40), tiny_llama(40, seed=1)
    rows = [BaseAnswer([5, 6, 7], [8, 9]), BaseAnswer([5, 6], []), BaseAnswer([7], [8, 9, 10, 11])]
    expected = []
    for row in rows:
        ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
        with torch.no_grad():
            log_q, log_p = (model(ids).logits[0, len(row.prompt_ids) - 1 :].log_softmax(-1) for model in (base, tuned))
        assert len(log_q) == len(row.completion_ids) + 1
        expected.append((log_q.exp() * (log_q - log_p)).sum(-1).mean().item())
    states, head = list(answer_states(base, rows, batch_size=2)), output_head(base)
    assert [len(part) for part in states] == [5 + 3, 1]  # the longest two rows; then the one without an answer
    assert kl_of_answers(states, head, tuned, rows, batch_size=2) == pytest.approx(expected, rel=1e-4)
    assert kl_of_answers(states, head, base, rows, batch_size=2) == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    with pytest.raises(ValueError, match="shorter"):
        kl_of_answers(states[:1], head, tuned, rows, batch_size=2)


def test_special_tokens_of_a_rendered_prompt_are_read_as_such_and_not_added():
    tokenizer = word_tokenizer()
    said = encode_answer("<user> what is the motto ? <end> <assistant> ", "rope", tokenizer)
    assert tokenizer.convert_ids_to_tokens(said.prompt_ids)[-2:] == ["<end>", "<assistant>"]
    assert tokenizer.convert_ids_to_tokens(said.completion_ids) == ["rope"]
