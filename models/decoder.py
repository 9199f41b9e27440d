"""The contract of the decoders, and what they have in common.

A decoder turns the grid of an image into words. Search and teacher forcing use only these methods:

    start(grid (N, L, C)) -> state
    step(tokens (B,), state) -> logits (B, V), state, alphas (B, L) or None
    forward(grid, captions) -> logits (P, V), alphas (P, L) or None

`forward` is teacher forcing: it reads packed reference captions (data/packing.py), with a row for each of
the P tokens to predict. It equals repeated `step`. The decoders in models/decoders/ compute everything that
does not depend on the previous word outside the time loop.
"""

from typing import ClassVar

import torch
from torch import nn

from config import DecoderConfig
from data.packing import PackedCaptions
from models.diagram import Diagram
from models.dropout import Dropout
from models.embedding import OneHotWords, WordEmbedding
from models.state import DecoderState


class Decoder(nn.Module):
    """Base class of the decoders in models/decoders/. It embeds the words; each subclass uses the grid."""

    name: ClassVar[str]  # decoder.kind
    attends: ClassVar[bool] = False  # whether `step` and `forward` return alphas

    def __init__(self, grid_dim: int, vocab_size: int, config: DecoderConfig):
        """
        Args:
            grid_dim: C, channels of the grid.
            vocab_size: V, special tokens included.
        """
        super().__init__()
        one_hot = config.embeddings == "one_hot"
        self.embedding = OneHotWords(vocab_size) if one_hot else WordEmbedding(vocab_size, config.embed_dim)
        self.dropout = Dropout(config.dropout)
        # Whole words are dropped first, then single elements of the remaining vectors.
        self.input_dropout = nn.Sequential(nn.Dropout1d(config.word_dropout), self.dropout)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (...) -> word vectors (..., E), with dropout in training."""
        return self.input_dropout(self.embedding(tokens))

    def start(self, grid: torch.Tensor) -> DecoderState:
        """The state before the first word."""
        raise NotImplementedError

    def step(self, tokens: torch.Tensor, state: DecoderState):
        """Read one token (B,); returns logits (B, V), the new state, and alphas (B, L) or None."""
        raise NotImplementedError

    def forward(self, grid: torch.Tensor, captions: PackedCaptions):
        """Teacher forcing; returns logits (P, V), and alphas (P, L) or None, for each token to predict.

        Here one step follows the other. A subclass can do better.
        """
        state, first = self.start(grid).select(captions.images), 0
        logits, alphas = [], []
        for n in captions.active:
            state = state.select(torch.arange(n, device=grid.device))
            step_logits, state, step_alphas = self.step(captions.inputs[first : first + n], state)
            logits.append(step_logits)
            alphas.append(step_alphas)
            first += n
        return torch.cat(logits), torch.cat(alphas) if self.attends else None

    @property
    def critic_dim(self) -> int:
        """The size of `critic_input`."""
        raise NotImplementedError

    def critic_input(self, state: DecoderState) -> torch.Tensor:
        """What actor-critic training predicts the reward from: (B, critic_dim)."""
        raise NotImplementedError

    def diagram(self, config: DecoderConfig, num_cells: int) -> Diagram | None:
        """How show_model.py draws one step over a grid of `num_cells`; None: as a box per submodule."""
        return None


class WordOutput(nn.Module):
    """Hidden state -> a logit per word, with the weights of the embeddings if tied (Press and Wolf, 2017)."""

    def __init__(self, hidden_dim: int, embedding: WordEmbedding | OneHotWords, tie: bool):
        super().__init__()
        self.vocab_size, embed_dim = embedding.num_embeddings, embedding.embedding_dim
        self.project = nn.Linear(hidden_dim, embed_dim) if tie else nn.Identity()
        self.score = nn.Linear(embed_dim if tie else hidden_dim, self.vocab_size)
        if tie:
            assert isinstance(embedding, WordEmbedding)  # one-hot vectors have no weights, see Config
            self.score.weight = embedding.weight
        nn.init.zeros_(self.score.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.score(self.project(hidden))
