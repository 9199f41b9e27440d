"""LSTMDecoder and AttentionDecoder: grids of features in, words out.

Both offer one contract, and search knows nothing else of them:

    start(grid (N, L, C)) -> state, a NamedTuple of tensors whose first dimension is the sequence
    step(tokens (B,), state) -> logits (B, V), state, alphas (B, L) or None
    forward(grid, captions (M, T), image_index (M,)) -> logits (M, T - 1, V), alphas (M, T - 1, L) or None

`forward` is teacher forcing: step by step it reads the caption's own words, and its logits at t are for the
word t + 1. It equals repeated `step`, computed with everything outside the time loop that can be.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from models.attention import SoftAttention
from models.embedding import OneHotWords, WordEmbedding
from utils import PAD


class WordOutput(nn.Module):
    """Hidden state -> a logit per word, with the embeddings' own weights when tied (Press and Wolf, 2017)."""

    def __init__(self, hidden_dim: int, embedding: WordEmbedding | OneHotWords, tie: bool):
        super().__init__()
        words, embed_dim = embedding.num_embeddings, embedding.embedding_dim
        self.project = nn.Linear(hidden_dim, embed_dim) if tie else nn.Identity()
        self.score = nn.Linear(embed_dim if tie else hidden_dim, words)
        if tie:
            self.score.weight = embedding.weight
        nn.init.zeros_(self.score.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.score(self.project(hidden))


def pack_inputs(captions: torch.Tensor, embed: nn.Module) -> PackedSequence:
    """Captions (M, T) -> embeddings of all but each one's last token, longest caption first, no padding."""
    lengths = ((captions != PAD).sum(dim=1) - 1).clamp(min=1)
    return pack_padded_sequence(
        embed(captions[:, :-1]), lengths.cpu(), batch_first=True, enforce_sorted=False
    )


def unpack(like: PackedSequence, data: torch.Tensor, steps: int) -> torch.Tensor:
    """Rows in the packed order of `like` -> (M, steps, ...), zero where there was padding."""
    packed = PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)
    return pad_packed_sequence(packed, batch_first=True, total_length=steps)[0]


@torch.no_grad()
def open_forget_gate(bias: torch.Tensor) -> None:
    """Start the forget gate of an LSTM with bias 1 (Jozefowicz et al., 2015).

    With bias 0 half of the image would be forgotten at each word, until training has learned not to.
    """
    bias.chunk(4)[1].fill_(1.0)


class LSTMState(NamedTuple):
    hidden: torch.Tensor  # (B, layers, H)
    cell: torch.Tensor  # (B, layers, H)


class LSTMDecoder(nn.Module):
    """The image is the first word an LSTM reads (Show and Tell: Vinyals et al., 2015)."""

    def __init__(
        self,
        grid_dim: int,
        words: int,
        embed_dim: int,
        hidden_dim: int,
        layers: int,
        dropout: float,
        tie: bool,
        one_hot: bool = False,
        word_dropout: float = 0.0,
    ):
        super().__init__()
        self.embedding = OneHotWords(words) if one_hot else WordEmbedding(words, embed_dim)
        embed_dim = self.embedding.embedding_dim
        self.image = nn.Sequential(nn.Linear(grid_dim, embed_dim), nn.LayerNorm(embed_dim))
        self.dropout = nn.Dropout(dropout)
        self.hear = nn.Sequential(nn.Dropout1d(word_dropout), self.dropout)  # not all words, nor all of one
        self.lstm = nn.LSTM(
            embed_dim, hidden_dim, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0
        )
        for name, bias in self.lstm.named_parameters():
            if name.startswith("bias_ih"):
                open_forget_gate(bias)
        self.output = WordOutput(hidden_dim, self.embedding, tie)

    def start(self, grid: torch.Tensor) -> LSTMState:
        """The state after the image. What would be said there is `<sos>`, a constant, so not computed."""
        _, (hidden, cell) = self.lstm(self.image(grid.mean(dim=1)).unsqueeze(1))
        return LSTMState(hidden.transpose(0, 1), cell.transpose(0, 1))

    def step(self, tokens: torch.Tensor, state: LSTMState):
        memory = tuple(x.transpose(0, 1).contiguous() for x in state)
        out, (hidden, cell) = self.lstm(self.hear(self.embedding(tokens)).unsqueeze(1), memory)
        return (
            self.output(self.dropout(out[:, 0])),
            LSTMState(hidden.transpose(0, 1), cell.transpose(0, 1)),
            None,
        )

    def forward(self, grid: torch.Tensor, captions: torch.Tensor, image_index: torch.Tensor):
        inputs = pack_inputs(captions, lambda tokens: self.hear(self.embedding(tokens)))
        memory = tuple(x[image_index].transpose(0, 1).contiguous() for x in self.start(grid))
        out, _ = self.lstm(inputs, memory)
        return unpack(inputs, self.output(self.dropout(out.data)), captions.shape[1] - 1), None


class AttentionState(NamedTuple):
    hidden: torch.Tensor  # (B, H)
    memory: torch.Tensor  # (B, H), the LSTM's cell
    cells: torch.Tensor  # (B, L, D), the grid as attention reads it
    keys: torch.Tensor  # (B, L, A)


class AttentionDecoder(nn.Module):
    """Show, Attend and Tell (Xu et al., 2015), soft attention with the gate beta and the deep output layer.

    The grid is projected to the LSTM's size once per image, so the time loop never touches C channels.
    """

    def __init__(
        self,
        grid_dim: int,
        words: int,
        embed_dim: int,
        hidden_dim: int,
        attention_dim: int,
        dropout: float,
        tie: bool,
        one_hot: bool = False,
        word_dropout: float = 0.0,
    ):
        super().__init__()
        self.embedding = OneHotWords(words) if one_hot else WordEmbedding(words, embed_dim)
        embed_dim = self.embedding.embedding_dim
        self.dropout = nn.Dropout(dropout)
        self.hear = nn.Sequential(nn.Dropout1d(word_dropout), self.dropout)  # not all words, nor all of one
        self.cells = nn.Sequential(nn.Linear(grid_dim, hidden_dim), nn.LayerNorm(hidden_dim))
        self.init = nn.Linear(hidden_dim, 2 * hidden_dim)
        self.attention = SoftAttention(hidden_dim, hidden_dim, attention_dim)
        self.gate = nn.Linear(hidden_dim, hidden_dim)
        # The LSTM's four gates read the word, the context and the last state; the words' part is computed for
        # all steps at once.
        self.from_word = nn.Linear(embed_dim, 4 * hidden_dim)
        open_forget_gate(self.from_word.bias)
        self.from_context = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)
        self.from_hidden = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)
        self.deep = nn.Linear(2 * hidden_dim + embed_dim, hidden_dim)
        self.output = WordOutput(hidden_dim, self.embedding, tie)

    def start(self, grid: torch.Tensor) -> AttentionState:
        cells = self.dropout(self.cells(grid))
        hidden, memory = torch.tanh(self.init(cells.mean(dim=1))).chunk(2, dim=1)
        return AttentionState(hidden, memory, cells, self.attention.key(cells))

    def step(self, tokens: torch.Tensor, state: AttentionState):
        words = self.hear(self.embedding(tokens))
        hidden, memory, context, alphas = self.advance(
            self.from_word(words), state.hidden, state.memory, state.cells, state.keys
        )
        return self.speak(hidden, context, words), state._replace(hidden=hidden, memory=memory), alphas

    def forward(self, grid: torch.Tensor, captions: torch.Tensor, image_index: torch.Tensor):
        inputs = pack_inputs(captions, lambda tokens: self.hear(self.embedding(tokens)))
        from_words = self.from_word(inputs.data)
        state = self.start(grid)
        hidden, memory, cells, keys = (x.index_select(0, image_index[inputs.sorted_indices]) for x in state)
        hiddens, contexts, alphas, at = [], [], [], 0
        for active in inputs.batch_sizes.tolist():  # the captions that are not over yet: the first ones
            hidden, memory, context, alpha = self.advance(
                from_words[at : at + active], hidden[:active], memory[:active], cells[:active], keys[:active]
            )
            hiddens.append(hidden)
            contexts.append(context)
            alphas.append(alpha)
            at += active
        logits = self.speak(torch.cat(hiddens), torch.cat(contexts), inputs.data)
        steps = captions.shape[1] - 1
        return unpack(inputs, logits, steps), unpack(inputs, torch.cat(alphas), steps)

    def advance(self, from_words, hidden, memory, cells, keys):
        """One step of attention and LSTM; `from_words` (B, 4H) is the words' part of the gates' input."""
        context, alphas = self.attention(cells, keys, hidden)
        context = torch.sigmoid(self.gate(hidden)) * context
        gates = from_words + self.from_context(context) + self.from_hidden(hidden)
        write, forget, read, value = gates.chunk(4, dim=1)
        memory = torch.sigmoid(forget) * memory + torch.sigmoid(write) * torch.tanh(value)
        return torch.sigmoid(read) * torch.tanh(memory), memory, context, alphas

    def speak(self, hidden: torch.Tensor, context: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """The deep output layer (equation 7): state, context and last word -> logits."""
        return self.output(self.dropout(torch.tanh(self.deep(torch.cat([hidden, context, words], dim=1)))))
