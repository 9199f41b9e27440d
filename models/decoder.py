"""The contract of the decoders, and what they have in common.

A decoder turns the grid of an image into words. Search and teacher forcing use only these methods:

    start(grid (N, L, C)) -> state
    step(tokens (B,), state) -> logits (B, V), state, alphas (B, L) or None
    forward(grid, captions (M, T), image_index (M,)) -> logits (M, T - 1, V), alphas (M, T - 1, L) or None

`forward` is teacher forcing: it reads the reference captions, and its logits at t predict token t + 1. It
equals repeated `step`, but computes everything that does not depend on the previous word outside the time
loop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from config import DecoderConfig
from models.diagram import Diagram
from models.embedding import OneHotWords, WordEmbedding
from utils import PAD


@dataclass(frozen=True)
class DecoderState:
    """What a decoder keeps between two steps, for B sequences that describe N images.

    Each decoder defines two NamedTuples. `image` is computed once and never copied per beam; `sequence`
    changes with every word.
    """

    image: Any  # a NamedTuple of tensors (N, ...)
    sequence: Any  # a NamedTuple of tensors (B, ...)
    image_index: torch.Tensor  # (B,) int64, the image that each sequence describes
    is_even: bool  # whether each image has the same number of sequences, and they are adjacent

    @classmethod
    def first(cls, image: Any, sequence: Any) -> "DecoderState":
        """One sequence per image."""
        index = torch.arange(len(sequence[0]), device=sequence[0].device)
        return cls(image, sequence, index, is_even=True)

    def with_sequence(self, sequence: Any) -> "DecoderState":
        """The state of the same images after the next step."""
        return replace(self, sequence=sequence)

    def repeat(self, k: int) -> "DecoderState":
        """K adjacent copies of each sequence."""
        rows = torch.arange(len(self.image_index), device=self.image_index.device).repeat_interleave(k)
        return self.select(rows.view(-1, k) if self.is_even else rows)

    def select(self, rows: torch.Tensor) -> "DecoderState":
        """The sequences in these rows: (N, K) selects K of each image, (B,) any sequences in any order."""
        is_even, rows = rows.dim() == 2, rows.flatten()
        sequence = type(self.sequence)(*(x.index_select(0, rows) for x in self.sequence))
        return DecoderState(self.image, sequence, self.image_index.index_select(0, rows), is_even)

    def image_tensors(self) -> Sequence[torch.Tensor]:
        """The tensors of `image`, with a row per image if `is_even`, otherwise with a row per sequence."""
        if self.is_even:
            return self.image
        return [x.index_select(0, self.image_index) for x in self.image]


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
        self.dropout = nn.Dropout(config.dropout)
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

    def forward(self, grid: torch.Tensor, captions: torch.Tensor, image_index: torch.Tensor):
        """Teacher forcing; returns logits (M, T - 1, V), and alphas (M, T - 1, L) or None."""
        raise NotImplementedError

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


def pack_inputs(captions: torch.Tensor, embed: Callable[[torch.Tensor], torch.Tensor]) -> PackedSequence:
    """Captions (M, T) -> embeddings of all tokens but the last, longest caption first, without padding."""
    lengths = ((captions != PAD).sum(dim=1) - 1).clamp(min=1)
    return pack_padded_sequence(
        embed(captions[:, :-1]), lengths.cpu(), batch_first=True, enforce_sorted=False
    )


def unpack(like: PackedSequence, data: torch.Tensor, steps: int) -> torch.Tensor:
    """Rows in the packed order of `like` -> (M, steps, ...), with zeros for padding."""
    packed = PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)
    return pad_packed_sequence(packed, batch_first=True, total_length=steps)[0]


@torch.no_grad()
def open_forget_gate(bias: torch.Tensor) -> None:
    """Initialise the bias of an LSTM's forget gate to 1 (Jozefowicz et al., 2015).

    With bias 0, the untrained gate halves the state at every word.
    """
    bias.chunk(4)[1].fill_(1.0)
