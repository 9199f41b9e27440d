"""The attention decoder of Show, Attend and Tell (Xu et al., 2015)."""

from typing import NamedTuple

import torch
from torch import nn

from config import DecoderConfig
from data.packing import PackedCaptions
from models.attending import AttendingDecoder, Parts
from models.attention import SoftAttention
from models.lstm import LSTMCell, open_forget_gate
from models.recurrence import AttentionRecurrence
from models.state import DecoderState
from utils import UserError


class AttentionImage(NamedTuple):
    cells: torch.Tensor  # (N, L, H), the grid projected to the size of the LSTM
    keys: torch.Tensor  # (N, L, A), compared with the query of each step


class AttentionSequence(NamedTuple):
    hidden: torch.Tensor  # (B, H)
    memory: torch.Tensor  # (B, H), the LSTM's cell state


class AttentionDecoder(AttendingDecoder):
    """An LSTM with soft attention and the gate beta (section 4.2.1)."""

    name = "attention"
    attention: SoftAttention
    parts = Parts(
        "soft attention",
        cells=("cells", "attention.key"),
        init=("init",),
        attention=("attention", "gate"),
        lstm=("from_word", "from_context", "from_hidden"),
    )
    reads_context = True

    def __init__(self, grid_dim: int, vocab_size: int, config: DecoderConfig):
        """Raises UserError for more than one layer."""
        if config.layers > 1:
            raise UserError(
                "decoder.layers: the attention decoder has 1 layer; use decoder.kind=lstm for more"
            )
        super().__init__(grid_dim, vocab_size, config)

    def make_attention(self, config: DecoderConfig) -> nn.Module:
        return SoftAttention(config.hidden_dim, config.hidden_dim, config.attention_dim)

    def add_lstm(self, config: DecoderConfig) -> None:
        # The four gates of the LSTM read the word, the context and the last state. The contribution of the
        # words is computed for all steps at once.
        hidden_dim = config.hidden_dim
        self.from_word = nn.Linear(self.embedding.embedding_dim, 4 * hidden_dim)
        open_forget_gate(self.from_word.bias)
        self.from_context = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)
        self.from_hidden = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)

    def start(self, grid: torch.Tensor) -> DecoderState:
        cells = self.read_grid(grid)
        keys = self.attention.key(cells)
        hidden, memory = self.first_state(cells.mean(dim=1))
        image = AttentionImage(cells.to(keys.dtype), keys)  # under autocast, a layer norm returns float32
        return DecoderState.first(image, AttentionSequence(hidden, memory))

    def step(self, tokens: torch.Tensor, state: DecoderState):
        embedded = self.embed(tokens)
        (hidden, memory), (cells, keys) = state.sequence, state.image_tensors()
        context, alphas = self.attention(cells, keys, hidden)
        context = torch.sigmoid(self.gate(hidden)) * context
        gates = self.from_word(embedded) + self.from_context(context) + self.from_hidden(hidden)
        write, forget, read, value = gates.chunk(4, dim=1)
        _, hidden, memory = LSTMCell.of(memory, write, forget, value, read)
        state = state.with_sequence(AttentionSequence(hidden, memory))
        return self.to_logits(hidden, context, embedded), state, alphas

    def forward(self, grid: torch.Tensor, captions: PackedCaptions):
        state, embedded = self.start(grid), self.embed(captions.inputs)
        # Three layers read the state, in one product.
        weights = self.attention.query.weight, self.gate.weight, self.from_hidden.weight
        sizes = [len(weight) for weight in weights]
        bias = nn.functional.pad(self.gate.bias, (sizes[0], sizes[2]))  # the other two have none
        hiddens, contexts, alphas = AttentionRecurrence.apply(
            self.from_word(embedded),
            *(x.index_select(0, captions.images) for x in state.sequence),
            *state.image,
            self.attention.score.weight[0],
            torch.cat(weights),
            bias,
            sizes,
            self.from_context.weight,
            captions,
        )
        return self.to_logits(hiddens, contexts, embedded), alphas
