"""Depthwise convolutions with a stride, with a backward pass that is fast in bfloat16 on a CPU."""

import torch
import torch.nn.functional as F
from torch import nn


def convolve(
    layer: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """What `layer` computes from x (N, C, H, W) with this weight and bias instead of its own.

    oneDNN 3.12 has no kernel of its own for the gradient with respect to the input of a depthwise convolution
    with a stride in bfloat16, and its general one takes 10 to 75 times as long as `StridedDepthwise`. That
    was half of the time of training a MobileNetV2. In float32 oneDNN is faster.
    """
    if x.device.type == "cpu" and x.dtype is torch.bfloat16 and is_strided_depthwise(layer):
        return StridedDepthwise.apply(x, weight, bias, layer.stride, layer.padding)
    return layer._conv_forward(x, weight, bias)


def is_strided_depthwise(layer: nn.Conv2d) -> bool:
    """Whether `StridedDepthwise` computes what the layer does."""
    return (
        layer.groups == layer.in_channels == layer.out_channels
        and max(layer.stride) > 1
        and max(layer.dilation) == 1
        and isinstance(layer.padding, tuple)
        and layer.padding_mode == "zeros"
        and all(p < k for p, k in zip(layer.padding, layer.kernel_size, strict=True))
    )


class StridedDepthwise(torch.autograd.Function):
    """x (N, C, H, W), weight (C, 1, h, w), bias (C,), stride, padding -> (N, C, H', W').

    A convolution with stride s is one with stride 1 of which every s-th output is kept. So the gradient with
    respect to its input is that of stride 1, with zeros as the gradient of the outputs that are not kept: a
    convolution with the filters turned by 180 degrees.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding):
        ctx.save_for_backward(x, weight)
        ctx.bias_shape = None if bias is None else bias.shape
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        weight = weight.to(grad.dtype)
        kernel, channels = weight.shape[2:], x.shape[1]
        grad_x = None
        if ctx.needs_input_grad[0]:
            size = [n + 2 * p - k + 1 for n, p, k in zip(x.shape[2:], ctx.padding, kernel, strict=True)]
            shape = x.shape[0], channels, *size
            every = torch.zeros_like(grad.new_empty(shape), memory_format=torch.channels_last)
            every[:, :, :: ctx.stride[0], :: ctx.stride[1]] = grad
            padding = [k - 1 - p for p, k in zip(ctx.padding, kernel, strict=True)]
            grad_x = F.conv2d(every, weight.flip(2, 3), None, 1, padding, groups=channels)
        _, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad, x, weight, ctx.bias_shape, ctx.stride, ctx.padding, (1, 1), False, (0, 0), channels,
            (False, *ctx.needs_input_grad[1:3]),
        )  # fmt: skip
        return grad_x, grad_weight, grad_bias, None, None
