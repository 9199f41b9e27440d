"""The gradients that are written out are those that autograd finds for the repeated step."""

import pytest
import torch

from models import recurrence
from models.decoder import Decoder
from models.decoders import DECODERS
from tests.helpers import packed, small_decoder
from utils import EOS, PAD, SOS

CAPTIONS = torch.tensor([
    [SOS, 4, 5, EOS, PAD, PAD],
    [SOS, 6, 7, 8, 9, EOS],
    [SOS, 7, EOS, PAD, PAD, PAD],
    [SOS, 10, 4, 4, EOS, PAD],
])  # fmt: skip
IMAGE_INDEX = torch.tensor([2, 0, 0, 1])


def gradients(decoder, grid: torch.Tensor, logits: torch.Tensor, alphas: torch.Tensor | None):
    """Of every weight and of the grid, for a loss that every logit and every alpha is part of."""
    loss = (logits.float() ** 2).sum() + (0 if alphas is None else 3 * (alphas.float() ** 2).sum())
    names, parameters = zip(*decoder.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, [grid, *parameters])
    return dict(zip(["grid", *names], found, strict=True))


@pytest.mark.parametrize("block", [1, 100, recurrence.BLOCK])  # one row, two rows, all rows of a step
@pytest.mark.parametrize("kind", DECODERS)
def test_gradients_are_those_of_autograd_through_repeated_steps(kind, block, monkeypatch):
    monkeypatch.setattr(recurrence, "BLOCK", block)
    layers = 1 if kind == "attention" else 2
    decoder = small_decoder(kind, layers=layers, tie_embeddings=False).double()
    grid = torch.randn(3, 9, 6, dtype=torch.float64, requires_grad=True)
    captions = packed(CAPTIONS, IMAGE_INDEX, 3)
    expected = gradients(decoder, grid, *Decoder.forward(decoder, grid, captions))
    found = gradients(decoder, grid, *decoder(grid, captions))
    assert len(expected) > 10
    for name, gradient in expected.items():  # attention weights are computed in float32
        message = f"the gradient of {name} differs"
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7, msg=message)


@pytest.mark.parametrize("kind", DECODERS)
def test_in_bfloat16_gradients_differ_by_rounding_alone(kind):
    decoder = small_decoder(kind, tie_embeddings=False)
    grid, captions = torch.randn(3, 9, 6, requires_grad=True), packed(CAPTIONS, IMAGE_INDEX, 3)
    expected = gradients(decoder, grid, *decoder(grid, captions))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = decoder(grid, captions)
    for name, gradient in gradients(decoder, grid, *outputs).items():
        assert gradient.dtype == torch.float32
        error = (gradient - expected[name]).norm() / (expected[name].norm() + 0.1)
        assert error < 0.05, name
