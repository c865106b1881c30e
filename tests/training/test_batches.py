"""The rows of a step depend on the seed alone; processes share them without remainder."""

import pytest

from raft_tasks.training.batches import GROUPED_STEPS, StepSampler, micro_batches, steps_of_epoch


@pytest.mark.parametrize("grouped", [False, True])
def test_an_epoch_has_every_row_once_and_epochs_differ(grouped):
    lengths = [number % 7 for number in range(23)]
    steps = steps_of_epoch(lengths, 4, seed=0, epoch=0, grouped=grouped)
    assert sorted(map(len, steps)) == [3, 4, 4, 4, 4, 4]
    assert sorted(row for step in steps for row in step) == list(range(23))
    assert steps == steps_of_epoch(lengths, 4, seed=0, epoch=0, grouped=grouped)
    assert steps != steps_of_epoch(lengths, 4, seed=0, epoch=1, grouped=grouped)
    assert steps != steps_of_epoch(lengths, 4, seed=7, epoch=0, grouped=grouped)


def test_grouped_steps_hold_like_lengths_in_random_order():
    lengths = [number * 37 % 101 for number in range(4 * GROUPED_STEPS)]
    spread = [max(lengths[i] for i in s) - min(lengths[i] for i in s) for s in steps_of_epoch(lengths, 4, 0, 0, True)]
    assert max(spread) < 12
    firsts = [lengths[step[0]] for step in steps_of_epoch(lengths, 4, 0, 0, True)]
    assert firsts != sorted(firsts)
    assert firsts != sorted(firsts, reverse=True)


def test_a_short_step_has_other_rows_in_each_epoch():
    lengths = range(100)
    short = [next(step for step in steps_of_epoch(lengths, 8, 0, epoch, True) if len(step) < 8) for epoch in range(5)]
    assert len({tuple(sorted(rows)) for rows in short}) > 1


def test_the_sampler_follows_the_epoch():
    sampler = StepSampler([1] * 10, 4, seed=3, grouped=False)
    first = list(sampler)
    sampler.set_epoch(1)
    assert len(sampler) == len(first) == 3
    assert list(sampler) == steps_of_epoch([1] * 10, 4, 3, 1, False) != first


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 2, 5, 8])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_shares_cover_the_step_once_with_equally_many_passes(processes, rows, size):
    shares = [micro_batches(list(range(rows)), size, process, processes) for process in range(processes)]
    assert len({len(share) for share in shares}) == 1
    batches = [batch for share in shares for batch in share]
    assert sorted(row for batch in batches if batch.counts for row in batch.rows) == list(range(rows))
    assert all(1 <= len(batch.rows) <= size for batch in batches)


def test_micro_batches_hold_like_lengths():
    assert [batch.rows for batch in micro_batches([5, 1, 6, 2], 2, 0, 1)] == [[2, 0], [3, 1]]
