"""What the decoders with attention have in common: the cells, the first state, and the output."""

from typing import ClassVar, NamedTuple

import torch
from torch import nn

from config import DecoderConfig
from models.decoder import Decoder, WordOutput
from models.diagram import EXAMPLE, FROM_GRID, NEXT_WORD, Arrow, Box, Diagram, Note, state_text
from models.state import DecoderState
from models.transformer import refinement


class Parts(NamedTuple):
    """The submodules of a decoder in each box of its figure, and the name of its attention."""

    name: str
    cells: tuple[str, ...]
    init: tuple[str, ...]
    attention: tuple[str, ...]
    lstm: tuple[str, ...]


class AttendingDecoder(Decoder):
    """Base class of the decoders with attention.

    The grid is projected to the size of the LSTM once per image, so the time loop does not depend on C. The
    first state comes from the mean cell, and words are predicted by a deep output layer (Xu et al., 2015).
    """

    attends = True
    parts: ClassVar[Parts]
    reads_context: ClassVar[bool]  # whether the LSTM reads what attention returns

    def __init__(self, grid_dim: int, vocab_size: int, config: DecoderConfig):
        super().__init__(grid_dim, vocab_size, config)
        embed_dim, hidden_dim = self.embedding.embedding_dim, config.hidden_dim
        self.cells = nn.Sequential(nn.Linear(grid_dim, hidden_dim), nn.LayerNorm(hidden_dim))
        self.refine = refinement(
            hidden_dim, config.refine, config.heads, config.feedforward_dim, config.dropout
        )
        self.init = nn.Linear(hidden_dim, 2 * config.layers * hidden_dim)
        self.attention = self.make_attention(config)
        self.gate = nn.Linear(hidden_dim, hidden_dim)
        self.add_lstm(config)
        self.deep = nn.Linear(2 * hidden_dim + embed_dim, hidden_dim)
        self.output = WordOutput(hidden_dim, self.embedding, config.tie_embeddings)

    def make_attention(self, config: DecoderConfig) -> nn.Module:
        """The layers that compare a state with the cells."""
        raise NotImplementedError

    def add_lstm(self, config: DecoderConfig) -> None:
        """Create the layers of the LSTM."""
        raise NotImplementedError

    def read_grid(self, grid: torch.Tensor) -> torch.Tensor:
        """The grid (N, L, C) -> the cells that attention reads (N, L, H)."""
        return self.refine(self.dropout(self.cells(grid)))

    def first_state(self, mean: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The mean cell (N, H) -> hidden state and memory, (N, layers H) each."""
        return torch.tanh(self.init(mean)).chunk(2, dim=1)

    def to_logits(self, hidden: torch.Tensor, context: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """The deep output layer (equation 7): state, context and previous word (B, ...) -> logits (B, V)."""
        joined = torch.cat([hidden, context, embedded], dim=1)
        return self.output(self.dropout(torch.tanh(self.deep(joined))))

    @property
    def critic_dim(self) -> int:
        return self.init.out_features // 2  # the other half is the memory

    def critic_input(self, state: DecoderState) -> torch.Tensor:
        return state.sequence.hidden.flatten(1)

    def diagram(self, config: DecoderConfig, num_cells: int) -> Diagram:
        """The cells on the left; one step of attention, LSTM and output on the right."""
        tied = "tied" if config.tie_embeddings else ""
        parts = self.parts
        text = f"each projected to {config.hidden_dim}"
        if config.refine:
            text = f"{config.hidden_dim} each, refined"
        cells = Box(7, 38, 37, 14, "cells", text, (*parts.cells, "refine"))
        init = Box(7, 20, 37, 14, "first state", "from the cells’ mean", parts.init)
        weights = f"{num_cells} weights α, one per cell"
        attention = Box(68, 38, 38, 14, parts.name, weights, parts.attention)
        lstm = Box(68, 20, 38, 14, "LSTM", state_text(config.layers, config.hidden_dim), parts.lstm)
        previous = Box(68, 5, 38, 11, f"previous word: “{EXAMPLE[2]}”", modules=("embedding",))
        deep = Box(121, 20, 28, 14, "deep output", "joins all three", ("deep",))
        output = Box(160, 20, 34, 14, "word scores", f"{self.output.vocab_size:,} logits", ("output",), tied)
        following = Box(160, 40.5, 34, 9, NEXT_WORD)
        moment = "at the start" if self.reads_context else "at each word"
        arrows = [
            Arrow((*FROM_GRID, (25.5, 64), cells.top)),
            Arrow((cells.right, attention.left), "cells, keys", (60, 47)),
            Arrow((cells.bottom, init.top)),
            Arrow((init.right, lstm.left), moment, (60, 29)),
            Arrow(((94, 34), (94, 38)), "state", (98.4, 36.2)),
            Arrow((previous.top, lstm.bottom)),
            Arrow((lstm.right, deep.left), "state", (113, 29)),
            Arrow((attention.right, (135, 45), deep.top), "context × gate β", (120.5, 47)),
            Arrow(((106, 12.5), (135, 12.5), deep.bottom), "word", (113, 14.5)),
            Arrow((deep.right, output.left)),
            Arrow((output.top, following.bottom)),
            Arrow((following.right, (196.2, 45), (196.2, 8), (106, 8)), dashed=True),
        ]
        if self.reads_context:
            arrows.append(Arrow(((80, 38), (80, 34)), "context", (74, 36.2)))
        boxes = [cells, init, attention, lstm, previous, deep, output, following]
        notes = [Note(165, 5.4, "in training, the caption’s own next word")]
        return Diagram(f"an LSTM with {parts.name}", 51, boxes, arrows, notes)
