"""The Transformer decoder is that of the paper, and refined cells have attended to each other."""

import math

import pytest
import torch
from torch import nn

from models.transformer import positions, refinement
from tests.helpers import packed, small_decoder
from utils import EOS, PAD, SOS

LAYERS = {"layers": 2, "heads": 2}


def test_positions_are_the_sines_and_cosines_of_the_paper():
    found = positions(torch.tensor([0, 3]), 4)
    slow = 3 / 10_000**0.5  # of two wavelengths, the second is 100 times as long
    expected = [[0, 0, 1, 1], [math.sin(3), math.sin(slow), math.cos(3), math.cos(slow)]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))
    assert positions(torch.tensor([5]), 3).shape == (1, 3)


def torch_layer(layer) -> nn.TransformerDecoderLayer:
    """torch's own layer with the same weights."""
    dim, size = layer.feedforward[3].out_features, layer.feedforward[0].out_features
    own = nn.TransformerDecoderLayer(
        dim, layer.heads, size, 0.0, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    cells = layer.cells
    # torch has one matrix for queries, keys and values, and a bias for the keys, which changes nothing.
    weight = torch.cat([cells.query.weight, cells.key.weight, cells.value.weight])
    bias = torch.cat([cells.query.bias, torch.zeros(dim), cells.value.bias])
    own.load_state_dict({
        "self_attn.in_proj_weight": layer.words.weight,
        "self_attn.in_proj_bias": layer.words.bias,
        "self_attn.out_proj.weight": layer.from_words.weight,
        "self_attn.out_proj.bias": layer.from_words.bias,
        "multihead_attn.in_proj_weight": weight,
        "multihead_attn.in_proj_bias": bias,
        "multihead_attn.out_proj.weight": layer.from_cells.weight,
        "multihead_attn.out_proj.bias": layer.from_cells.bias,
        "linear1.weight": layer.feedforward[0].weight,
        "linear1.bias": layer.feedforward[0].bias,
        "linear2.weight": layer.feedforward[3].weight,
        "linear2.bias": layer.feedforward[3].bias,
        **{f"norm{i}.{key}": value for i, norm in enumerate(layer.norms, start=1)
           for key, value in norm.state_dict().items()},
    })  # fmt: skip
    return own


@torch.no_grad()
def test_it_computes_what_torch_s_own_layers_compute():
    decoder, grid = small_decoder("transformer", **LAYERS), torch.randn(1, 9, 6)
    for parameter in decoder.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))  # biases and norms are not trivial
    tokens = torch.tensor([[SOS, 4, 5, 6, 7]])
    cells = decoder.cells(grid)
    x = decoder.from_word(decoder.embedding(tokens)) + positions(torch.arange(5), 10)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    for layer in decoder.layers:
        x = torch_layer(layer)(x, cells, tgt_mask=mask, tgt_is_causal=True)
    expected = decoder.output(decoder.norm(x))[0]
    captions = torch.cat([tokens, torch.tensor([[EOS]])], dim=1)
    logits, _ = decoder(grid, packed(captions, torch.tensor([0]), 1))
    torch.testing.assert_close(logits, expected)


@torch.no_grad()
def test_alphas_are_those_of_the_last_layer():
    decoder, grid = small_decoder("transformer", **LAYERS), torch.randn(1, 9, 6)
    captions = packed(torch.tensor([[SOS, 4, EOS, PAD]]), torch.tensor([0]), 1)
    _, before = decoder(grid, captions)
    decoder.layers[0].cells.query.weight.mul_(3)
    decoder.layers[0].from_cells.weight.zero_()
    decoder.layers[0].from_cells.bias.zero_()
    _, unchanged_by_first = decoder(grid, captions)
    decoder.layers[1].cells.query.weight.zero_()
    decoder.layers[1].cells.query.bias.zero_()
    _, uniform = decoder(grid, captions)
    assert not torch.allclose(before, torch.full_like(before, 1 / 9))
    assert not torch.allclose(unchanged_by_first, torch.full_like(before, 1 / 9))
    torch.testing.assert_close(uniform, torch.full_like(before, 1 / 9))


@pytest.mark.parametrize("kind", ["attention", "dot_attention", "transformer"])
@torch.no_grad()
def test_refined_cells_depend_on_each_other(kind):
    plain, refined = small_decoder(kind), small_decoder(kind, refine=1)
    grid = torch.randn(2, 9, 6)
    changed = grid.clone()
    changed[0, 0] += 1

    def cells_of(decoder, grid):
        seen = []
        hook = decoder.refine.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        decoder.start(grid)
        hook.remove()
        return seen[0]

    for decoder, number in ((plain, 1), (refined, 9)):
        differ = (cells_of(decoder, grid) != cells_of(decoder, changed)).any(dim=2)
        assert differ.sum(dim=1).tolist() == [number, 0]


@torch.no_grad()
def test_a_layer_of_refinement_is_an_encoder_layer_of_the_transformer():
    refine, cells = refinement(8, 1, 2, 12, 0.5).eval(), torch.randn(3, 9, 8)
    [layer] = refine.layers
    x = layer.norm1(cells)
    x = cells + layer.self_attn(x, x, x)[0]
    x = x + layer.linear2(nn.functional.gelu(layer.linear1(layer.norm2(x))))
    torch.testing.assert_close(refine(cells), refine.norm(x))
    assert isinstance(refinement(8, 0, 2, 12, 0.5), nn.Identity)


def test_in_training_half_of_what_each_part_adds_is_dropped():
    decoder = small_decoder("transformer", layers=1).train()
    rows = torch.randn(400, 10)
    seen = []
    decoder.layers[0].dropout.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    zeros = torch.zeros(400, 10)
    decoder.layers[0](rows, lambda *_: zeros, lambda *_: (zeros, None))
    assert len(seen) == 3
    assert all(0.45 < (part == 0).float().mean() < 0.55 for part in seen)
