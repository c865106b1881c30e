import pytest
import torch
from tiny import tiny_llama

from raft_tasks.training.completion_forward import completion_states, output_head
from raft_tasks.training.losses import head_logits
from raft_tasks.training.rollouts import Rollout, RolloutSampling
from raft_tasks.training.transformers_rollouts import ContinuousBatchingSampler, GenerateSampler

PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14], [15]]
SEEDS = [11, 12, 13, 14]
END = 2


@pytest.fixture
def model():
    return tiny_llama(40)


def make_sampler(model, temperature=1.0, length=8, batch_size=64):
    return GenerateSampler(model, RolloutSampling([END], temperature, length), batch_size)


def test_a_rollout_ends_with_its_first_stop_token():
    cut, chances = RolloutSampling([END], 1.0, 8).rollout, [-1.0, -2.0, -3.0]
    assert cut([END, END, END], chances) == Rollout([END], False, [-1.0])
    assert cut([END], chances).empty
    assert cut([3, END, 5], chances) == Rollout([3, END], False, [-1.0, -2.0])
    assert cut([3, 4], chances[:2]) == Rollout([3, 4], True, [-1.0, -2.0])
    assert not cut([3], [-1.0]).empty


def test_same_seeds_same_rollouts_and_the_global_generator_is_left_alone(model):
    sampler = make_sampler(model)
    before = torch.random.get_rng_state()
    first = sampler(PROMPTS, SEEDS)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    assert sampler(PROMPTS, SEEDS) == first
    assert sampler(PROMPTS, [21, 22, 23, 24]) != first
    assert all(1 <= len(rollout.tokens) <= 8 for rollout in first)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_rows_draw_is_its_own(model, batch_size):
    """Other companions, another order, smaller batches: the same rollout."""
    expected = dict(zip(SEEDS, make_sampler(model)(PROMPTS, SEEDS), strict=True))
    drawn = make_sampler(model, batch_size=batch_size)(PROMPTS[::-1], SEEDS[::-1])
    for seed, rollout in zip(SEEDS[::-1], drawn, strict=True):
        assert rollout.tokens == expected[seed].tokens
        assert rollout.log_probs == pytest.approx(expected[seed].log_probs, abs=1e-5)


def test_prompts_of_like_length_share_a_batch(model, monkeypatch):
    sampler, widths = make_sampler(model, batch_size=2), []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda **given: (widths.append([*given["input_ids"].shape]), forward(**given))[1]
    )
    rollouts = sampler(PROMPTS, SEEDS)
    assert [shape for shape in widths if shape[1] > 1] == [[2, 5], [2, 2]]
    monkeypatch.undo()
    assert [r.tokens for r in rollouts] == [sampler([p], [s])[0].tokens for p, s in zip(PROMPTS, SEEDS, strict=True)]


def test_immediate_end_is_an_empty_rollout_and_no_end_a_truncated_one(model):
    with torch.no_grad():
        model.lm_head.weight.zero_()  # tied: all logits are equal
    everything = GenerateSampler(model, RolloutSampling(list(range(40)), 1.0, 4), 64)
    assert all(rollout.empty for rollout in everything(PROMPTS, SEEDS))
    nothing = GenerateSampler(model, RolloutSampling([39], 1.0, 4), 64)
    rollouts = [r for r in nothing(PROMPTS, SEEDS) if 39 not in r.tokens]
    assert rollouts
    assert all(rollout.truncated and len(rollout.tokens) == 4 for rollout in rollouts)


@pytest.mark.parametrize("kind", [GenerateSampler, ContinuousBatchingSampler])
def test_the_models_own_generation_config_does_not_leak_in(model, kind):
    """A top-k of 1 in the folder's generation_config.json would make sampling greedy."""
    expected = kind(model, RolloutSampling([END], 1.0, 8), 4)(PROMPTS, SEEDS)
    model.generation_config.update(top_k=1, repetition_penalty=5.0, max_length=7)
    own = model.generation_config
    assert kind(model, RolloutSampling([END], 1.0, 8), 4)(PROMPTS, SEEDS) == expected
    assert model.generation_config is own


def test_sampling_happens_in_evaluation_mode_and_training_mode_returns():
    model = tiny_llama(40, attention_dropout=0.9).train()
    first = make_sampler(model)(PROMPTS, SEEDS)
    assert model.training
    assert make_sampler(model.eval())(PROMPTS, SEEDS) == first


@torch.no_grad()
@pytest.mark.parametrize("kind", [GenerateSampler, ContinuousBatchingSampler])
def test_rollouts_come_from_the_distribution_that_the_trainer_scores(model, kind):
    """Frequencies of the first token over many draws against the student's scored probabilities, at T = 1.3."""
    prompt, draws = [12, 13, 14], 4000 if kind is GenerateSampler else 1000
    rollouts = kind(model, RolloutSampling([END], 1.3, 1), draws)([prompt] * draws, list(range(draws)))
    counts = torch.bincount(torch.tensor([rollout.tokens[0] for rollout in rollouts]), minlength=40)
    logits = head_logits(completion_states(model, [prompt], [[0]]), output_head(model))[0]
    scored = (logits / 1.3).log_softmax(-1)
    assert (counts / draws - scored.exp()).abs().max() < 4 * (0.25 / draws) ** 0.5
    for rollout in rollouts[:50]:
        assert rollout.log_probs == pytest.approx([scored[rollout.tokens[0]].item()], abs=1e-4)


def test_left_padding_does_not_change_what_is_sampled(model):
    """Near-greedy rollouts of a batch of unequal prompts are those of the prompts alone."""
    sampler = make_sampler(model, temperature=1e-3)
    assert [r.tokens for r in sampler(PROMPTS, SEEDS)] == [sampler([p], [0])[0].tokens for p in PROMPTS]


def test_continuous_batching_gives_greedily_what_generate_gives_and_repeats_itself(model):
    """Two rows in flight for four prompts: rows must wait for room. It cannot seed rows apart, only calls."""
    model.train()
    sampler = ContinuousBatchingSampler(model, RolloutSampling([END], 1e-3, 8), 2)
    expected = make_sampler(model, temperature=1e-3)(PROMPTS, SEEDS)
    assert [r.tokens for r in sampler(PROMPTS, SEEDS)] == [r.tokens for r in expected]
    assert model.training
    free = ContinuousBatchingSampler(model, RolloutSampling([END], 1.0, 8), 2)
    before = torch.random.get_rng_state()
    first = free(PROMPTS, SEEDS)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert free(PROMPTS, SEEDS) == first
    assert free(PROMPTS, SEEDS[::-1]) != first
