"""Every hostile input keeps its promise."""

import pytest

from tests.hostile.attempt import broken
from tests.hostile.place import build, copy_of
from tests.hostile.tables import GROUPS, INPUTS

_TOGETHER = 8  # inputs in one test: a test for each would take longer than the inputs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return build(tmp_path_factory.mktemp("hostile") / "place")


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow and matplotlib, about damaged files
@pytest.mark.parametrize("first", range(0, len(INPUTS), _TOGETHER), ids=lambda first: INPUTS[first].name)
def test_a_hostile_input_keeps_its_promise(first, place, tmp_path, record_property):
    inputs = INPUTS[first : first + _TOGETHER]
    record_property("hostile inputs", len(inputs))
    lines = []
    for i, hostile in enumerate(inputs):
        lines += broken([hostile], copy_of(place, tmp_path / str(i)))
    assert not lines


@pytest.mark.parametrize("key", GROUPS)
def test_a_value_is_used_or_refused(key, tmp_path, record_property):
    record_property("hostile inputs", len(GROUPS[key]))
    assert not broken(GROUPS[key], tmp_path)
