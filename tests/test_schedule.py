"""The learning rate over a run."""

import pytest

from config import TrainConfig
from training.schedule import Schedule


def make(**keys) -> Schedule:
    return Schedule(TrainConfig(epochs=10, **keys), steps_per_epoch=100)


def test_the_rate_rises_over_the_warm_up_to_its_peak():
    schedule = make(warmup=0.5)
    assert schedule.factor(0) == pytest.approx(1 / 50)
    assert schedule.factor(24) == pytest.approx(0.5)
    assert schedule.factor(49) == 1


def test_cosine_falls_to_a_hundredth_at_the_end():
    schedule = make(schedule="cosine", warmup=0)
    rates = [schedule.factor(step) for step in range(1, 1000)]
    assert rates == sorted(rates, reverse=True)
    assert schedule.factor(501) == pytest.approx(0.505, abs=0.01)
    assert schedule.factor(1000) == pytest.approx(0.01)
    assert schedule.factor(5000) == pytest.approx(0.01)


def test_plateau_halves_after_its_patience_and_begins_to_wait_anew():
    schedule = make(schedule="plateau", plateau_patience=1, warmup=0)
    factors = []
    for better in (True, False, False, False, False, True, False):
        schedule.epoch_ended(better)
        factors.append(schedule.factor(999))
    assert factors == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_constant_stays():
    schedule = make(schedule="constant", warmup=0)
    for _ in range(5):
        schedule.epoch_ended(False)
    assert schedule.factor(999) == 1


def test_the_state_survives_a_resume():
    schedule, other = make(schedule="plateau"), make(schedule="plateau")
    for _ in range(4):
        schedule.epoch_ended(False)
    other.load_state_dict(schedule.state_dict())
    assert other.factor(999) == schedule.factor(999) < 1
