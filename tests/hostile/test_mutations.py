"""Valid files and configurations with random damage keep the promises of their doors."""

import pytest
from hypothesis import HealthCheck, given, settings

from tests.helpers import write_dataset
from tests.hostile.attempt import broken
from tests.hostile.mutations import DOORS


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about damaged files
@pytest.mark.parametrize("name", DOORS)
def test_random_damage_is_survived(name, tmp_path, record_property):
    write_dataset(tmp_path / "data")
    door, tried = DOORS[name], 0

    @settings(
        max_examples=door.examples,
        derandomize=True,  # the same damage every day; `python -m tests.hostile` looks for more
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(door.content)
    def is_survived(content):
        nonlocal tried
        tried += 1
        assert not broken([door.hostile(content)], tmp_path)

    is_survived()
    record_property("hostile inputs", tried)
