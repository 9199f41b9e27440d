"""Attention over the cells of a grid: additive, and multi-head dot-product attention."""

import torch
from torch import nn

from data.packing import PackedCaptions


class SoftAttention(nn.Module):
    """Additive attention: e_i = v . tanh(W a_i + U h), alpha = softmax(e), context = sum_i alpha_i a_i.

    Bahdanau et al., 2015, as Show, Attend and Tell (Xu et al., 2015, section 3.1.2) applies it to images.
    """

    def __init__(self, cell_dim: int, hidden_dim: int, attention_dim: int):
        super().__init__()
        self.key = nn.Linear(cell_dim, attention_dim)
        self.query = nn.Linear(hidden_dim, attention_dim, bias=False)
        self.score = nn.Linear(attention_dim, 1, bias=False)

    def forward(self, cells: torch.Tensor, keys: torch.Tensor, hidden: torch.Tensor):
        """Attend once, for B = N K sequences; the K sequences of an image are neighbours and share its cells.

        Args:
            cells: (N, L, D), what the context is the weighted mean of.
            keys: (N, L, A), `self.key(cells)`; it does not depend on the words, so callers compute it once.
            hidden: (B, H), the state of the decoder.

        Returns:
            context (B, D), and alphas (B, L) that sum to one.
        """
        query = self.query(hidden).unflatten(0, (len(cells), -1)).unsqueeze(2)  # (N, K, 1, A)
        energy = self.score(torch.tanh(keys.unsqueeze(1) + query)).squeeze(3)  # (N, K, L)
        alphas = energy.float().softmax(dim=2)
        context = torch.bmm(alphas.to(cells.dtype), cells)
        return context.flatten(0, 1), alphas.flatten(0, 1)


class DotAttention(nn.Module):
    """Multi-head attention: softmax(q k_i / sqrt(d)) over the cells i, d numbers for each head.

    Vaswani et al., 2017, section 3.2.2, without the last projection: the layer that reads the context has its
    own. Keys and values are computed once per image; all queries of an image are one matrix product.
    """

    def __init__(self, cell_dim: int, hidden_dim: int, attention_dim: int, heads: int):
        """`heads` divides `attention_dim`, the size of keys and queries, and `cell_dim`, that of values."""
        super().__init__()
        self.heads = heads
        self.key = nn.Linear(cell_dim, attention_dim, bias=False)  # softmax would ignore a bias
        self.value = nn.Linear(cell_dim, cell_dim)
        self.query = nn.Linear(hidden_dim, attention_dim)

    def start(self, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cells (N, L, D) -> keys (N, heads, d, L) and values (N, heads, L, D / heads)."""
        keys = self.key(cells).unflatten(2, (self.heads, -1)).permute(0, 2, 3, 1).contiguous()
        return keys, self.value(cells).unflatten(2, (self.heads, -1)).transpose(1, 2).contiguous()

    def forward(self, keys: torch.Tensor, values: torch.Tensor, hidden: torch.Tensor):
        """Attend Q times to the cells of each image.

        Args:
            hidden: (N, Q, H), states of the decoder.

        Returns:
            contexts (N, Q, D), and alphas (N, Q, L), the mean over the heads.
        """
        queries = self.query(hidden).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (N, heads, Q, d)
        energy = queries * keys.shape[2] ** -0.5 @ keys  # (N, heads, Q, L)
        alphas = energy.float().softmax(dim=3)
        contexts = alphas.to(values.dtype) @ values
        return contexts.transpose(1, 2).flatten(2), alphas.mean(dim=1)

    def of_captions(self, keys, values, hidden: torch.Tensor, captions: PackedCaptions):
        """Attend once for each row of packed captions: hidden (P, H) -> contexts (P, D), alphas (P, L)."""
        return [captions.by_row(x) for x in self(keys, values, captions.by_image(hidden))]

    def of_sequences(self, keys, values, hidden: torch.Tensor):
        """Attend once for each of B = N K sequences: hidden (B, H) -> contexts (B, D), alphas (B, L)."""
        return [x.flatten(0, 1) for x in self(keys, values, hidden.unflatten(0, (len(keys), -1)))]
