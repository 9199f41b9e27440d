"""A run killed at any moment and resumed ends, bit for bit, like the run that was left alone."""

import random

import pytest

from tests.killing.killer import SETTINGS, draw_moments, kill_and_resume, prepare, run_alone

KILLED_RUNS = 1  # of each setting, because a run takes seconds; .ci/run kills 20


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_run_killed_at_random_moments_ends_like_the_run_left_alone(setting, tmp_path, record_property):
    draw = random.Random(random.SystemRandom().getrandbits(32))
    whole = run_alone(prepare(tmp_path / "whole", setting))
    kills = 0
    for i in range(KILLED_RUNS):
        kills += kill_and_resume(whole, tmp_path / str(i), draw_moments(whole, draw))
    record_property("kills", kills)
