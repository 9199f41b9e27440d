"""Dropout: as torch's, but with cheaper masks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.dropout import Dropout, dropout


@given(st.integers(0, 9), st.integers(1, 9), st.floats(0, 1))
def test_elements_are_zero_or_divided_by_the_probability_of_keeping_them(rows, columns, p):
    x = torch.ones(rows, columns)
    values = {round(value, 3) for value in dropout(x, p, training=True).flatten().tolist()}
    assert values <= {0.0, round(1 / (1 - round(p * 2**16) / 2**16), 3) if p < 1 - 2**-17 else 0.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_as_many_elements_are_dropped_as_asked_and_the_mean_stays(p, dtype):
    torch.manual_seed(0)
    dropped = Dropout(p).train()(torch.ones(300, 1001, dtype=dtype))
    assert abs((dropped == 0).float().mean() - p) < 0.003
    assert abs(dropped.float().mean() - 1) < 0.02


def test_neighbours_are_dropped_independently():
    """Four of them share a random number."""
    torch.manual_seed(0)
    zero = (dropout(torch.ones(100_000, 4), 0.5, training=True) == 0).float()
    assert (torch.corrcoef(zero.t()) - torch.eye(4)).abs().max() < 0.02


def test_the_gradient_has_the_mask_of_the_output():
    x = torch.ones(50, 3, requires_grad=True)
    y = Dropout(0.3).train()(x)
    y.sum().backward()
    assert torch.equal(x.grad, y)


def test_the_seed_determines_the_mask_and_evaluation_changes_nothing():
    x, layer = torch.rand(20, 5), Dropout(0.5)
    torch.manual_seed(1)
    first = layer.train()(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)
    assert torch.equal(layer.eval()(x), x)
