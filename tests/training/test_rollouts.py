import pytest
import torch
from tiny import tiny_llama

from raft_tasks.training.losses import head_logits
from raft_tasks.training.rollouts import GenerateSampler, Rollout, rollout_seed
from raft_tasks.training.scoring import completion_states, output_head

PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14], [15]]
SEEDS = [1, 2, 3, 4]
END = 2


@pytest.fixture
def model():
    return tiny_llama(40)


def make_sampler(model, temperature=1.0, length=8):
    return GenerateSampler(model, [END], temperature, length)


def test_cut():
    sampler = make_sampler(tiny_llama(10))
    assert sampler.cut([END, END, END]) == Rollout([END], truncated=False)
    assert sampler.cut([END]).empty
    assert sampler.cut([3, END, 5]) == Rollout([3, END], truncated=False)
    assert sampler.cut([3, 4]) == Rollout([3, 4], truncated=True)
    assert not sampler.cut([3]).empty


def test_same_seed_same_rollouts_and_the_global_generator_is_left_alone(model):
    sampler = make_sampler(model)
    before = torch.random.get_rng_state()
    first = sampler(PROMPTS, SEEDS)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    assert sampler(PROMPTS, SEEDS) == first
    assert sampler(PROMPTS, [5, 6, 7, 8]) != first
    assert all(1 <= len(rollout.tokens) <= 8 for rollout in first)
    assert len({rollout_seed(seed, step, row) for seed in range(3) for step in range(3) for row in ("a", "b")}) == 18


def test_immediate_end_is_an_empty_rollout_and_no_end_a_truncated_one(model):
    with torch.no_grad():
        model.lm_head.weight.zero_()  # tied: all logits are equal
    everything = GenerateSampler(model, list(range(40)), 1.0, 4)
    assert all(rollout.empty for rollout in everything(PROMPTS, SEEDS))
    nothing = GenerateSampler(model, [39], 1.0, 4)
    rollouts = [r for r in nothing(PROMPTS, SEEDS) if 39 not in r.tokens]
    assert rollouts
    assert all(rollout.truncated and len(rollout.tokens) == 4 for rollout in rollouts)


def test_the_models_own_generation_config_does_not_leak_in(model):
    """A top-k of 1 in the folder's generation_config.json would make sampling greedy."""
    expected = make_sampler(model)(PROMPTS, SEEDS)
    model.generation_config.update(top_k=1, repetition_penalty=5.0, max_length=7)
    own = model.generation_config
    assert make_sampler(model)(PROMPTS, SEEDS) == expected
    assert model.generation_config is own


def test_sampling_happens_in_evaluation_mode_and_training_mode_returns():
    model = tiny_llama(40, attention_dropout=0.9).train()
    first = make_sampler(model)(PROMPTS, SEEDS)
    assert model.training
    assert make_sampler(model.eval())(PROMPTS, SEEDS) == first


@torch.no_grad()
def test_rollouts_come_from_the_distribution_that_the_trainer_scores(model):
    """Frequencies of the first token over many draws against the student's scored probabilities, at T = 1.3."""
    prompt, draws = [12, 13, 14], 4000
    rollouts = make_sampler(model, temperature=1.3, length=1)([prompt] * draws, list(range(draws)))
    counts = torch.bincount(torch.tensor([rollout.tokens[0] for rollout in rollouts]), minlength=40)
    logits = head_logits(completion_states(model, [prompt], [[0]]), output_head(model))[0]
    probabilities = (logits / 1.3).softmax(-1)
    assert (counts / draws - probabilities).abs().max() < 4 * (0.25 / draws) ** 0.5


def test_left_padding_does_not_change_what_is_sampled(model):
    """Near-greedy rollouts of a batch of unequal prompts are those of the prompts alone."""
    sampler = make_sampler(model, temperature=1e-3)
    assert sampler(PROMPTS, SEEDS) == [sampler([prompt], [0])[0] for prompt in PROMPTS]


def test_a_rows_draws_do_not_depend_on_the_rows_beside_it(model):
    """At temperature 1, in any order and any company: what lets rollouts be divided among processes."""
    sampler = make_sampler(model)
    together = sampler(PROMPTS, SEEDS)
    assert sampler(PROMPTS[::-1], SEEDS[::-1]) == together[::-1]
    assert [sampler([prompt], [seed])[0] for prompt, seed in zip(PROMPTS, SEEDS, strict=True)] == together
