import json
import math

import pytest

from raft_tasks.config import LossSpike
from raft_tasks.training.loss_spike import FIRST, LossSpikeGuard


def guard(factor=5.0, steps=3):
    return LossSpikeGuard(LossSpike(factor=factor, steps=steps))


def test_only_a_lasting_rise_counts():
    watch = guard()
    assert not any(watch.update(loss) for loss in [2.0] * FIRST)
    assert watch.bound == 10.0
    assert [watch.update(loss) for loss in (11.0, 30.0, 9.0, 11.0, 12.0)] == [
        False
    ] * 5  # 9 is calm: the count restarts
    assert watch.streak == 2
    assert watch.update(1e6)


def test_nothing_is_said_before_there_is_a_beginning():
    watch = guard(steps=1)
    assert watch.bound == math.inf
    assert not any(watch.update(10.0**number) for number in range(FIRST))


def test_an_explosion_does_not_raise_its_own_bound():
    watch = guard(steps=100)
    for _ in range(FIRST):
        watch.update(1.0)
    for _ in range(60):
        watch.update(50.0)
    assert watch.bound == 5.0
    assert watch.streak == 60


def test_small_losses_may_jump_as_far_as_where_training_began():
    watch = guard()
    for number in range(100):
        watch.update(2.0 * 0.9**number)
    assert watch.calm[-1] < 1e-3
    assert not any(watch.update(1.2) for _ in range(20))
    assert watch.streak == 0


def test_noisy_falling_losses_raise_no_alarm():
    watch = guard(factor=10.0, steps=5)
    losses = [3.0 * math.exp(-step / 40) * (1 + 0.9 * math.sin(step * 1.7)) + 0.01 for step in range(400)]
    assert not any(watch.update(loss) for loss in losses)


@pytest.mark.parametrize("after", [3, FIRST + 2])
def test_its_state_survives_a_resumption(after):
    losses = [2.0] * FIRST + [11.0, 12.0, 13.0]
    whole, first, second = guard(), guard(), guard()
    expected = [whole.update(loss) for loss in losses]
    for loss in losses[:after]:
        first.update(loss)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second.update(loss) for loss in losses[after:]] == expected[after:]
    assert expected[-1]
