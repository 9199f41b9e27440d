"""Depthwise convolutions with a stride have the gradients that torch computes."""

import pytest
import torch
from torch import nn

from models.depthwise import StridedDepthwise, convolve, is_strided_depthwise


@pytest.mark.parametrize("size", [(7, 7), (8, 8), (9, 6)])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 2, 1), (5, 2, 2), (3, 2, 0), ((3, 5), (1, 3), (2, 1)), (2, 2, 0)]
)
def test_gradients_of_input_weight_and_bias_are_those_of_torch(size, kernel, stride, padding):
    layer = nn.Conv2d(4, 4, kernel, stride, padding, groups=4, dtype=torch.float64)
    x = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    assert is_strided_depthwise(layer)
    expected = layer(x)
    found = StridedDepthwise.apply(x, layer.weight, layer.bias, layer.stride, layer.padding)
    torch.testing.assert_close(found, expected)
    weights, inputs = torch.randn_like(expected), [x, *layer.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, weights), torch.autograd.grad(expected, inputs, weights)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 1, "groups": 4},
        {"stride": 2, "groups": 2},
        {"stride": 2, "groups": 4, "dilation": 2},
        {"stride": 2, "groups": 4, "padding": 3},
        {"stride": 2, "groups": 4, "padding": 1, "padding_mode": "reflect"},
    ],
)
def test_other_convolutions_are_left_to_torch(options):
    assert not is_strided_depthwise(nn.Conv2d(4, 4, 3, **options))


@pytest.mark.parametrize("bias", [True, False])
def test_in_bfloat16_the_gradients_differ_by_rounding_only(monkeypatch, bias):
    calls, apply = [], StridedDepthwise.apply
    monkeypatch.setattr(StridedDepthwise, "apply", lambda *args: calls.append(args) or apply(*args))
    layer = nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=bias)
    x = torch.randn(2, 8, 10, 10, requires_grad=True)
    inputs = [x, *layer.parameters()]
    expected = torch.autograd.grad(convolve(layer, x, layer.weight, layer.bias).sum(), inputs)
    assert not calls  # float32
    with torch.autocast("cpu", torch.bfloat16):
        loss = convolve(layer, x.bfloat16(), layer.weight, layer.bias).float().sum()
    assert calls
    found = torch.autograd.grad(loss, inputs)
    assert [gradient.dtype for gradient in found] == [torch.float32] * len(inputs)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
