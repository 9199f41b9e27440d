"""The attention decoder of Show, Attend and Tell (Xu et al., 2015)."""

from typing import NamedTuple

import torch
from torch import nn

from config import DecoderConfig
from models.attention import SoftAttention
from models.decoder import Decoder, DecoderState, WordOutput, open_forget_gate, pack_inputs, unpack
from models.diagram import EXAMPLE, FROM_GRID, NEXT_WORD, Arrow, Box, Diagram, Note
from utils import UserError


class AttentionImage(NamedTuple):
    cells: torch.Tensor  # (N, L, H), the grid projected to the size of the LSTM
    keys: torch.Tensor  # (N, L, A), compared with the query of each step


class AttentionSequence(NamedTuple):
    hidden: torch.Tensor  # (B, H)
    memory: torch.Tensor  # (B, H), the LSTM's cell state


class AttentionDecoder(Decoder):
    """An LSTM with soft attention, the gate beta (section 4.2.1) and the deep output layer (equation 7).

    The grid is projected to the size of the LSTM once per image, so the time loop does not depend on C.
    """

    name = "attention"
    attends = True

    def __init__(self, grid_dim: int, vocab_size: int, config: DecoderConfig):
        """Raises UserError for more than one layer."""
        if config.layers > 1:
            raise UserError(
                "decoder.layers: the attention decoder has 1 layer; use decoder.kind=lstm for more"
            )
        super().__init__(grid_dim, vocab_size, config)
        embed_dim, hidden_dim = self.embedding.embedding_dim, config.hidden_dim
        self.cells = nn.Sequential(nn.Linear(grid_dim, hidden_dim), nn.LayerNorm(hidden_dim))
        self.init = nn.Linear(hidden_dim, 2 * hidden_dim)
        self.attention = SoftAttention(hidden_dim, hidden_dim, config.attention_dim)
        self.gate = nn.Linear(hidden_dim, hidden_dim)
        # The four gates of the LSTM read the word, the context and the last state. The contribution of the
        # words is computed for all steps at once.
        self.from_word = nn.Linear(embed_dim, 4 * hidden_dim)
        open_forget_gate(self.from_word.bias)
        self.from_context = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)
        self.from_hidden = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)
        self.deep = nn.Linear(2 * hidden_dim + embed_dim, hidden_dim)
        self.output = WordOutput(hidden_dim, self.embedding, config.tie_embeddings)

    def start(self, grid: torch.Tensor) -> DecoderState:
        cells = self.dropout(self.cells(grid))
        hidden, memory = torch.tanh(self.init(cells.mean(dim=1))).chunk(2, dim=1)
        image = AttentionImage(cells, self.attention.key(cells))
        return DecoderState.first(image, AttentionSequence(hidden, memory))

    def step(self, tokens: torch.Tensor, state: DecoderState):
        embedded = self.embed(tokens)
        hidden, memory, context, alphas = self.advance(
            self.from_word(embedded), state.sequence, *state.image_tensors()
        )
        state = state.with_sequence(AttentionSequence(hidden, memory))
        return self.to_logits(hidden, context, embedded), state, alphas

    def forward(self, grid: torch.Tensor, captions: torch.Tensor, image_index: torch.Tensor):
        inputs = pack_inputs(captions, self.embed)
        from_words = self.from_word(inputs.data)
        state = self.start(grid).select(image_index[inputs.sorted_indices])
        (hidden, memory), (cells, keys) = state.sequence, state.image_tensors()
        hiddens, contexts, alphas, first = [], [], [], 0
        # The longest caption is first, so the captions that have not ended are the first `active` ones.
        for active in inputs.batch_sizes.tolist():
            sequence = AttentionSequence(hidden[:active], memory[:active])
            hidden, memory, context, alpha = self.advance(
                from_words[first : first + active], sequence, cells[:active], keys[:active]
            )
            hiddens.append(hidden)
            contexts.append(context)
            alphas.append(alpha)
            first += active
        logits = self.to_logits(torch.cat(hiddens), torch.cat(contexts), inputs.data)
        steps = captions.shape[1] - 1
        return unpack(inputs, logits, steps), unpack(inputs, torch.cat(alphas), steps)

    def advance(self, from_words: torch.Tensor, sequence: AttentionSequence, cells, keys):
        """One step of attention and LSTM.

        Args:
            from_words: (B, 4H), the contribution of the words to the gates.
            cells: (N, L, H), where N is B or a divisor of it; see SoftAttention.
            keys: (N, L, A).

        Returns:
            hidden (B, H), memory (B, H), the gated context (B, H) and alphas (B, L).
        """
        hidden, memory = sequence
        context, alphas = self.attention(cells, keys, hidden)
        context = torch.sigmoid(self.gate(hidden)) * context
        gates = from_words + self.from_context(context) + self.from_hidden(hidden)
        write, forget, read, value = gates.chunk(4, dim=1)
        memory = torch.sigmoid(forget) * memory + torch.sigmoid(write) * torch.tanh(value)
        return torch.sigmoid(read) * torch.tanh(memory), memory, context, alphas

    def to_logits(self, hidden: torch.Tensor, context: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """The deep output layer (equation 7): state, context and previous word (B, ...) -> logits (B, V)."""
        return self.output(self.dropout(torch.tanh(self.deep(torch.cat([hidden, context, embedded], dim=1)))))

    @property
    def critic_dim(self) -> int:
        return self.gate.out_features

    def critic_input(self, state: DecoderState) -> torch.Tensor:
        return state.sequence.hidden

    def diagram(self, config: DecoderConfig, num_cells: int) -> Diagram:
        """The cells on the left; one step of attention, LSTM and output on the right."""
        tied = "tied" if config.tie_embeddings else ""
        gates = ("from_word", "from_context", "from_hidden")
        cells = Box(
            7, 38, 37, 14, "cells", f"each projected to {config.hidden_dim}", ("cells", "attention.key")
        )
        init = Box(7, 20, 37, 14, "first state", "from the cells’ mean", ("init",))
        weights = f"{num_cells} weights α, one per cell"
        attention = Box(68, 38, 38, 14, "soft attention", weights, ("attention", "gate"))
        lstm = Box(68, 20, 38, 14, "LSTM", f"a state of {config.hidden_dim}", gates)
        previous = Box(68, 5, 38, 11, f"previous word: “{EXAMPLE[2]}”", modules=("embedding",))
        deep = Box(121, 20, 28, 14, "deep output", "joins all three", ("deep",))
        output = Box(160, 20, 34, 14, "word scores", f"{self.output.vocab_size:,} logits", ("output",), tied)
        following = Box(160, 40.5, 34, 9, NEXT_WORD)
        arrows = [
            Arrow((*FROM_GRID, (25.5, 64), cells.top)),
            Arrow((cells.right, attention.left), "cells, keys", (60, 47)),
            Arrow((cells.bottom, init.top)),
            Arrow((init.right, lstm.left), "at the start", (60, 29)),
            Arrow(((80, 38), (80, 34)), "context", (74, 36.2)),
            Arrow(((94, 34), (94, 38)), "state", (98.4, 36.2)),
            Arrow((previous.top, lstm.bottom)),
            Arrow((lstm.right, deep.left), "state", (113, 29)),
            Arrow((attention.right, (135, 45), deep.top), "context × gate β", (120.5, 47)),
            Arrow(((106, 12.5), (135, 12.5), deep.bottom), "word", (113, 14.5)),
            Arrow((deep.right, output.left)),
            Arrow((output.top, following.bottom)),
            Arrow((following.right, (196.2, 45), (196.2, 8), (106, 8)), dashed=True),
        ]
        boxes = [cells, init, attention, lstm, previous, deep, output, following]
        notes = [Note(165, 5.4, "in training, the caption’s own next word")]
        return Diagram("an LSTM with soft attention", 51, boxes, arrows, notes)
