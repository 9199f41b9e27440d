"""Choices by name."""

import pytest

from utils import UserError, look_up


def test_a_choice_is_found_by_its_name():
    assert look_up({"lstm": 1, "attention": 2}, "attention", "decoder.kind") == 2


@pytest.mark.parametrize(("name", "hint"), [("atention", "; did you mean 'attention'?"), ("gru", "")])
def test_an_unknown_name_is_answered_with_the_right_ones(name, hint):
    with pytest.raises(UserError) as error:
        look_up({"lstm": 1, "attention": 2}, name, "decoder.kind")
    assert str(error.value) == f"decoder.kind={name}: it must be one of lstm, attention{hint}"
