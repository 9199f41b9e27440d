"""One layer of a Transformer decoder, the positions of words, and layers that refine the cells."""

import math
from collections.abc import Callable

import torch
from torch import nn

from models.attention import DotAttention
from models.dropout import Dropout

# (B, heads, D / heads), three times -> (B, D)
WordAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
# A layer's attention and the rows that attend (B, D) -> contexts (B, D) and alphas (B, L)
CellAttention = Callable[[DotAttention, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class DecoderLayer(nn.Module):
    """Attention to the words so far, attention to the cells, and two linear layers (Vaswani et al., 2017).

    Each of the three reads its input through a layer norm, and adds to it (pre-norm: Xiong et al., 2020).
    """

    def __init__(self, dim: int, heads: int, feedforward_dim: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.words = nn.Linear(dim, 3 * dim)  # queries, keys and values
        self.from_words = nn.Linear(dim, dim)
        self.cells = DotAttention(dim, dim, dim, heads)
        self.from_cells = nn.Linear(dim, dim)
        self.feedforward = nn.Sequential(
            nn.Linear(dim, feedforward_dim), nn.GELU(), Dropout(dropout), nn.Linear(feedforward_dim, dim)
        )
        self.dropout = Dropout(dropout)

    def forward(self, x: torch.Tensor, attend_to_words: WordAttention, attend_to_cells: CellAttention):
        """
        Args:
            x: (B, D), a row for each word.
            attend_to_words: from the queries, keys and values of all rows to their contexts.
            attend_to_cells: the same for the cells; with `self.cells`.

        Returns:
            The new rows (B, D), and alphas (B, L).
        """
        context = attend_to_words(*self.words(self.norms[0](x)).unflatten(1, (3, self.heads, -1)).unbind(1))
        x = x + self.dropout(self.from_words(context))
        context, alphas = attend_to_cells(self.cells, self.norms[1](x))
        x = x + self.dropout(self.from_cells(context))
        return x + self.dropout(self.feedforward(self.norms[2](x))), alphas


def positions(steps: torch.Tensor, dim: int) -> torch.Tensor:
    """Sines and cosines of the steps (B,), of dim / 2 wavelengths: (B, dim).

    Vaswani et al., 2017, section 3.5. Unlike learned vectors, they have no last position.
    """
    exponents = torch.arange(0, dim, 2, device=steps.device) / dim
    angles = steps.unsqueeze(1) * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :dim]


def refinement(dim: int, layers: int, heads: int, feedforward_dim: int, dropout: float) -> nn.Module:
    """Layers of self-attention over the cells: (N, L, D) -> (N, L, D).

    Each cell learns about the others before the decoder reads them, as in the encoder of a Transformer
    (Vaswani et al., 2017; for captions: Cornia et al., 2020).
    """
    if not layers:
        return nn.Identity()
    layer = nn.TransformerEncoderLayer(
        dim, heads, feedforward_dim, dropout, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(dim), enable_nested_tensor=False)
