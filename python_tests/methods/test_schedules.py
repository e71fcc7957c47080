import math
from itertools import pairwise

import pytest

from dynprune_rt.errors import TrainingError
from dynprune_rt.methods.schedules import KeepSchedule, learning_rate


def test_learning_rate_warms_up_and_ends_at_zero():
    rates = [learning_rate(step, 100, 0.1, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(0.1)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert all(b <= a for a, b in pairwise(rates[10:]))


def test_keep_rate_falls_once_and_stays():
    schedule = KeepSchedule(0.6, 0.5)
    rates = [schedule.at(p / 100) for p in range(101)]
    assert rates[0] == pytest.approx(1.0)
    assert rates[25] == pytest.approx(0.8)
    assert set(rates[50:]) == {0.6}
    assert KeepSchedule(0.6, 0.0).at(0.0) == 0.6


def test_the_published_schedule_of_manidp():
    """r(e) = (1 - t)/2 cos(pi (e + 1)/E) + (1 + t)/2 at the end of epoch e of E."""
    schedule = KeepSchedule(0.6, 1.0)
    for epoch in range(400):
        expected = 0.2 * math.cos(math.pi * (epoch + 1) / 400) + 0.8
        assert schedule.at((epoch + 1) / 400) == pytest.approx(expected)


def test_bad_values():
    with pytest.raises(TrainingError, match="keep rate"):
        KeepSchedule(0.0)
    with pytest.raises(TrainingError, match="end"):
        KeepSchedule(0.5, 2.0)
