"""An LSTM whose states attend to the cells by multi-head dot-product attention."""

from typing import NamedTuple

import torch
from torch import nn

from config import DecoderConfig
from data.packing import PackedCaptions
from models.attending import AttendingDecoder, Parts
from models.attention import DotAttention
from models.lstm import LSTMSequence, PackedLSTM
from models.state import DecoderState


class DotAttentionImage(NamedTuple):
    keys: torch.Tensor  # (N, heads, A / heads, L)
    values: torch.Tensor  # (N, heads, L, H / heads)
    inputs: torch.Tensor  # (N, E), what the image adds to each word that the LSTM reads


class DotAttentionDecoder(AttendingDecoder):
    """The LSTM reads words and the mean cell; its new state attends, and the context helps to predict a word.

    Unlike in Show, Attend and Tell, the LSTM does not read the context (Lu et al., 2017, section 2.2). So
    under teacher forcing no query depends on an earlier context, and the attention of all words is computed
    at once, outside the time loop.
    """

    name = "dot_attention"
    attention: DotAttention
    parts = Parts(
        "dot-product attention",
        cells=("cells", "attention.key", "attention.value"),
        init=("init", "from_image"),
        attention=("attention", "gate"),
        lstm=("lstm",),
    )
    reads_context = False

    def make_attention(self, config: DecoderConfig) -> nn.Module:
        return DotAttention(config.hidden_dim, config.hidden_dim, config.attention_dim, config.heads)

    def add_lstm(self, config: DecoderConfig) -> None:
        embed_dim = self.embedding.embedding_dim
        self.from_image = nn.Linear(config.hidden_dim, embed_dim)
        self.lstm = PackedLSTM(embed_dim, config.hidden_dim, config.layers, config.dropout)

    def start(self, grid: torch.Tensor) -> DecoderState:
        cells = self.read_grid(grid)
        mean = cells.mean(dim=1)
        shape = self.lstm.num_layers, self.lstm.hidden_size
        hidden, memory = (x.unflatten(1, shape) for x in self.first_state(mean))
        image = DotAttentionImage(*self.attention.start(cells), self.from_image(mean))
        return DecoderState.first(image, LSTMSequence(hidden, memory))

    def step(self, tokens: torch.Tensor, state: DecoderState):
        embedded = self.embed(tokens)
        keys, values, from_image = state.image_tensors()
        inputs = embedded.unflatten(0, (len(keys), -1)) + from_image.unsqueeze(1)
        hidden, memory = self.lstm(inputs.flatten(0, 1), *state.sequence)
        last = hidden[:, -1]
        contexts, alphas = self.attention.of_sequences(keys, values, last)
        logits = self.to_logits(last, self.gated(last, contexts), embedded)
        return logits, state.with_sequence(LSTMSequence(hidden, memory)), alphas

    def forward(self, grid: torch.Tensor, captions: PackedCaptions):
        state = self.start(grid)
        embedded = self.embed(captions.inputs)
        inputs = embedded + state.image.inputs.index_select(0, captions.row_images)
        hidden, memory = (x.index_select(0, captions.images) for x in state.sequence)
        hiddens = self.lstm.read(inputs, hidden, memory, captions)
        contexts, alphas = self.attention.of_captions(state.image.keys, state.image.values, hiddens, captions)
        return self.to_logits(hiddens, self.gated(hiddens, contexts), embedded), alphas

    def gated(self, hidden: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """The context (B, H), each number times a gate that depends on the state (B, H)."""
        return torch.sigmoid(self.gate(hidden)) * context
