"""Dropout (Srivastava et al., 2014) whose masks cost a CPU little."""

import torch
from torch import nn

from compute import BLOCK

_VALUES = 2**16  # of the random number that decides about an element


class Dropout(nn.Dropout):
    """`nn.Dropout`, five times as fast on a CPU.

    There, torch draws 64 random bits for each element. Here they decide about four, so that the probability
    is a multiple of 2^-16; kept elements are divided by that of keeping them, so that the mean stays exact.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropout(x, self.p, self.training)


def dropout(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """`x` with each element zero with probability `p`, and else divided by 1 - p; without `training`, `x`."""
    dropped = round(p * _VALUES)
    if not training or not dropped or dropped == _VALUES or x.device.type != "cpu":
        return nn.functional.dropout(x, p, training)
    mask = torch.empty_like(x, memory_format=torch.contiguous_format)
    draws = torch.empty(min(x.numel() + 3, BLOCK) // 4, dtype=torch.int64)
    for part in mask.view(-1).split(BLOCK):
        numbers = draws.random_(-(2**63), None).view(torch.int16)[: len(part)]
        part.copy_(numbers >= dropped - _VALUES // 2).mul_(_VALUES / (_VALUES - dropped))
    return x * mask
