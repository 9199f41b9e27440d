"""Soft attention over the cells of a grid."""

import torch
from torch import nn


class SoftAttention(nn.Module):
    """Additive attention: e_i = v . tanh(W a_i + U h), alpha = softmax(e), context = sum_i alpha_i a_i.

    Bahdanau et al., 2015, as Show, Attend and Tell (Xu et al., 2015, section 3.1.2) uses it on images.
    """

    def __init__(self, cell_dim: int, hidden_dim: int, attention_dim: int):
        super().__init__()
        self.key = nn.Linear(cell_dim, attention_dim)
        self.query = nn.Linear(hidden_dim, attention_dim, bias=False)
        self.score = nn.Linear(attention_dim, 1, bias=False)

    def forward(self, cells: torch.Tensor, keys: torch.Tensor, hidden: torch.Tensor):
        """Look at the cells once.

        Args:
            cells: (B, L, D), what is looked at.
            keys: (B, L, A), `self.key(cells)`; it does not depend on the words, so callers compute it once.
            hidden: (B, H), the decoder's state.

        Returns:
            context (B, D) and alphas (B, L) that sum to one.
        """
        energy = self.score(torch.tanh(keys + self.query(hidden).unsqueeze(1))).squeeze(2)
        alphas = energy.float().softmax(dim=1)
        context = torch.bmm(alphas.to(cells.dtype).unsqueeze(1), cells).squeeze(1)
        return context, alphas
