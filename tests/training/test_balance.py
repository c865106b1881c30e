import json

import pytest
from tiny import ANCHORED, distillation, method

from raft_tasks.training.balance import AnchorWeight, EmaBalance, FixedBalance, make_balance


def test_worked_numbers():
    """m^_SFT = 2.0, m^_KL = 0.5: lambda 4. At the first step the bias correction returns the losses themselves."""
    assert EmaBalance(beta=0.9, bound=10).update(2.0, 0.5) == pytest.approx(4.0)


def test_averages_are_bias_corrected():
    balance = EmaBalance(beta=0.9, bound=10)
    balance.update(2.0, 0.5)
    sft = (0.9 * 0.1 * 2.0 + 0.1 * 1.0) / (1 - 0.9**2)
    kl = (0.9 * 0.1 * 0.5 + 0.1 * 1.5) / (1 - 0.9**2)
    assert balance.update(1.0, 1.5) == pytest.approx(sft / kl)


def test_constant_losses_give_their_ratio_at_every_step():
    balance = EmaBalance(beta=0.9, bound=10)
    assert [balance.update(3.0, 1.5) for _ in range(5)] == pytest.approx([2.0] * 5)


@pytest.mark.parametrize("kl", [0.0, 1e-12, -1e-9])
def test_lambda_is_bounded_where_teacher_and_student_agree(kl):
    assert EmaBalance(beta=0.9, bound=3.0).update(4.0, kl) == 3.0


def test_state_survives_json():
    first, second = EmaBalance(0.9, 10), EmaBalance(0.9, 10)
    for step in range(3):
        first.update(2.0 + step, 0.7)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert first.update(1.0, 0.9) == second.update(1.0, 0.9)


def test_fixed_number():
    balance = FixedBalance(0.1)
    assert [balance.update(2.0, kl) for kl in (0.0, 5.0)] == [0.1, 0.1]
    balance.load_state_dict(balance.state_dict())
    assert balance.update(1.0, 1.0) == 0.1


def test_the_anchors_weight_is_the_balance_of_the_steps_before():
    weight, balance = AnchorWeight(ANCHORED.model_copy(update={"weight": "ema"})), EmaBalance(0.9, 2.0)
    assert weight.value == 1.0  # the first step's
    for sft, anchor in ((2.0, 1e-6), (2.0, 4.0), (1.0, 3.0)):
        weight.update(sft, anchor)
        assert weight.value == balance.update(sft, anchor)
    assert weight.value < 1.0
    again = AnchorWeight(ANCHORED.model_copy(update={"weight": "ema"}))
    again.load_state_dict(json.loads(json.dumps(weight.state_dict())))
    weight.update(0.5, 1.0)
    again.update(0.5, 1.0)
    assert again.value == weight.value
    assert AnchorWeight(ANCHORED.model_copy(update={"weight": "ema", "weight_max": 0.3})).value == 0.3


def test_a_number_stays_the_anchors_weight():
    weight = AnchorWeight(ANCHORED)
    weight.update(2.0, 1.0)
    assert weight.value == 0.5


def test_a_methods_row_chooses():
    settings = {"teacher": "plain", "ema_beta": 0.5, "kl_weight_max": 7.0}
    ema = make_balance(method(distillation=distillation(**settings, kl_weight="ema")))
    assert isinstance(ema, EmaBalance)
    assert (ema.beta, ema.bound) == (0.5, 7.0)
    assert isinstance(make_balance(method(distillation=distillation(**settings, kl_weight=0.1))), FixedBalance)
    assert make_balance(method()) is None
