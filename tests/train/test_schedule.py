"""Warm-up, plateau and decay of the learning rate, and the decay that time brings forward."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.train.schedule import DECAY_SHARE, Schedule


@given(total=st.integers(1, 5000), warmup=st.integers(1, 100))
@settings(max_examples=25, deadline=None)
def test_factors_rise_stay_and_fall_to_almost_zero(total: int, warmup: int) -> None:
    schedule = Schedule(total, warmup)
    factors = [schedule.factor(step) for step in range(total)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[:warmup] == sorted(factors[:warmup])
    decay = factors[max(warmup, schedule.decay_start) :]
    assert decay == sorted(decay, reverse=True)


def test_the_decay_follows_one_minus_square_root() -> None:
    schedule = Schedule(400, 10)
    assert schedule.factor(299) == 1.0
    assert schedule.factor(325) == pytest.approx(0.5)
    assert schedule.factor(399) == pytest.approx(1 - 0.99**0.5)


def test_late_runs_decay_at_once_and_last_a_third_longer() -> None:
    schedule = Schedule(10_000, 10)
    assert not schedule.decay_if_late(300, 70.0, 100.0)
    assert schedule.decay_if_late(300, 75.0, 100.0)
    assert schedule.total_steps == 300 / (1 - DECAY_SHARE)
    assert schedule.decay_start == 300
    assert not schedule.decay_if_late(301, 76.0, 100.0)
    assert schedule.total_steps == 400


def test_without_a_time_limit_nothing_changes() -> None:
    schedule = Schedule(1000)
    assert not schedule.decay_if_late(10, 1e9, None)
    assert schedule.total_steps == 1000
