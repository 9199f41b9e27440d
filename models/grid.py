"""Grids of cells in the outputs of layers: how they are laid out, and those of several layers as one."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F


class Grid(NamedTuple):
    """A square grid of cells in the output of a layer."""

    layout: Literal[
        "channels first", "channels last", "tokens"
    ]  # (C, H, W), (H, W, C), or (P + L, C) with P prefix tokens
    channels: int
    side: int  # cells a side: H = W = side, L = side * side


def grid_of(shape: Sequence[int], prefix_tokens: int = 1) -> Grid | None:
    """The grid in the shape of a layer's output for one image, without the batch; None if it is not square.

    A cube, with as many channels as cells a side, is read as channels first.

    Args:
        prefix_tokens: how many tokens may come before those of the cells, such as the class token.
    """
    if len(shape) == 2:
        for cells in (shape[0] - prefix_tokens, shape[0]):
            if cells > 0 and math.isqrt(cells) ** 2 == cells:
                return Grid("tokens", shape[1], math.isqrt(cells))
    if len(shape) == 3 and shape[1] == shape[2]:
        return Grid("channels first", shape[0], shape[1])
    if len(shape) == 3 and shape[0] == shape[1]:
        return Grid("channels last", shape[2], shape[0])
    return None


def as_map(x: torch.Tensor, prefix_tokens: int = 1) -> torch.Tensor:
    """The output of a layer, in any layout of `Grid`, as a map (N, C, H, W)."""
    grid = grid_of(x.shape[1:], prefix_tokens)
    assert grid is not None  # `cut` has checked it
    if grid.layout == "channels first":
        return x
    if grid.layout == "tokens":
        x = x[:, x.shape[1] - grid.side**2 :].unflatten(1, (grid.side, grid.side))
    return x.permute(0, 3, 1, 2)


def join(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Maps (N, C_i, H_i, H_i) of one image -> one map (N, C, H, H) with the cells of the coarsest.

    A cell gets the channels of all maps at its place, as in hypercolumns (Hariharan et al., 2015). In a map
    with k times as many cells a side, k x k cells become the channels of one, so that no number is lost (the
    passthrough layer of YOLOv2: Redmon and Farhadi, 2017). If k is no whole number, cells are averaged.
    """
    if len(maps) == 1:
        return maps[0]
    side = min(x.shape[-1] for x in maps)
    return torch.cat([_with_side(x, side) for x in maps], dim=1)


def _with_side(x: torch.Tensor, side: int) -> torch.Tensor:
    factor, rest = divmod(x.shape[-1], side)
    return F.adaptive_avg_pool2d(x, side) if rest else F.pixel_unshuffle(x, factor)
