"""Soft attention over the cells of a grid."""

import torch
from torch import nn


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
