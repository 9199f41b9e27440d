"""The plain LSTM decoder: the image is the first word that it reads (Show and Tell: Vinyals et al., 2015)."""

from typing import NamedTuple

import torch
from torch import nn

from config import DecoderConfig
from models.decoder import Decoder, DecoderState, WordOutput, open_forget_gate, pack_inputs, unpack


class NoImage(NamedTuple):
    """Once the LSTM has read the image, its own state is all it has of it."""


class LSTMSequence(NamedTuple):
    hidden: torch.Tensor  # (B, layers, H)
    cell: torch.Tensor  # (B, layers, H)


class LSTMDecoder(Decoder):
    """An LSTM of one or more layers over the mean of the grid, then the words."""

    name = "lstm"

    def __init__(self, grid_dim: int, vocab_size: int, config: DecoderConfig):
        super().__init__(grid_dim, vocab_size, config)
        embed_dim = self.embedding.embedding_dim
        self.project_image = nn.Sequential(nn.Linear(grid_dim, embed_dim), nn.LayerNorm(embed_dim))
        between_layers = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(
            embed_dim, config.hidden_dim, config.layers, batch_first=True, dropout=between_layers
        )
        for name, bias in self.lstm.named_parameters():
            if name.startswith("bias_ih"):
                open_forget_gate(bias)
        self.output = WordOutput(config.hidden_dim, self.embedding, config.tie_embeddings)

    def start(self, grid: torch.Tensor) -> DecoderState:
        """The state after the image. Its output would predict `<sos>`, a constant, and is not computed."""
        _, (hidden, cell) = self.lstm(self.project_image(grid.mean(dim=1)).unsqueeze(1))
        return DecoderState.first(NoImage(), LSTMSequence(hidden.transpose(0, 1), cell.transpose(0, 1)))

    def step(self, tokens: torch.Tensor, state: DecoderState):
        memory = layers_first(state.sequence)
        out, (hidden, cell) = self.lstm(self.embed(tokens).unsqueeze(1), memory)
        sequence = LSTMSequence(hidden.transpose(0, 1), cell.transpose(0, 1))
        return self.output(self.dropout(out[:, 0])), state.with_sequence(sequence), None

    def forward(self, grid: torch.Tensor, captions: torch.Tensor, image_index: torch.Tensor):
        inputs = pack_inputs(captions, self.embed)
        memory = layers_first(x[image_index] for x in self.start(grid).sequence)
        out, _ = self.lstm(inputs, memory)
        return unpack(inputs, self.output(self.dropout(out.data)), captions.shape[1] - 1), None

    @property
    def critic_dim(self) -> int:
        return self.lstm.num_layers * self.lstm.hidden_size

    def critic_input(self, state: DecoderState) -> torch.Tensor:
        return state.sequence.hidden.flatten(1)


def layers_first(sequence) -> tuple[torch.Tensor, ...]:
    """(B, layers, H) -> (layers, B, H), as nn.LSTM takes its state."""
    return tuple(x.transpose(0, 1).contiguous() for x in sequence)
