"""A Transformer decoder (Vaswani et al., 2017) over the cells of the grid."""

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from config import DecoderConfig
from data.packing import PackedCaptions
from models.attention import DotAttention
from models.decoder import Decoder, WordOutput
from models.diagram import EXAMPLE, FROM_GRID, NEXT_WORD, Arrow, Box, Diagram, Note
from models.state import DecoderState
from models.transformer import DecoderLayer, positions, refinement


class TransformerImage(NamedTuple):
    keys: torch.Tensor  # (N, layers, heads, H / heads, L), of the cells
    values: torch.Tensor  # (N, layers, heads, L, H / heads)


class TransformerSequence(NamedTuple):
    hidden: torch.Tensor  # (B, H), what the last word was predicted from; at first the mean cell
    keys: torch.Tensor  # (B, layers, heads, t, H / heads), of the t words so far
    values: torch.Tensor  # (B, layers, heads, t, H / heads)


class WholeCaptions:
    """Attention in teacher forcing: all words of all captions at once. Rows are those of PackedCaptions."""

    def __init__(self, image: TransformerImage, captions: PackedCaptions):
        self.image, self.captions = image, captions

    def words(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """(P, heads, H / heads) each -> contexts (P, H)."""
        query, key, value = (self.captions.by_caption(x).transpose(1, 2) for x in (query, key, value))
        # A word attends to no word after it, so not to padding either.
        contexts = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.captions.by_token(contexts.transpose(1, 2)).flatten(1)

    def cells(self, layer: int, attention: DotAttention, rows: torch.Tensor):
        """(P, H) -> contexts (P, H) and alphas (P, L)."""
        keys, values = (x[:, layer] for x in self.image)
        return attention.of_captions(keys, values, rows, self.captions)


class NextWord:
    """Attention of the next word of B sequences: to itself and the words in the state, and to the cells."""

    def __init__(self, state: DecoderState):
        self.image, self.sequence = state.image_tensors(), state.sequence
        self.keys: list[torch.Tensor] = []  # of each layer, with the new word: (B, heads, t + 1, H / heads)
        self.values: list[torch.Tensor] = []

    def words(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """(B, heads, H / heads) each -> contexts (B, H)."""
        self.keys.append(torch.cat([self.sequence.keys[:, layer], key.unsqueeze(2)], dim=2))
        self.values.append(torch.cat([self.sequence.values[:, layer], value.unsqueeze(2)], dim=2))
        pair = self.keys[layer], self.values[layer]
        return F.scaled_dot_product_attention(query.unsqueeze(2), *pair).flatten(1)

    def cells(self, layer: int, attention: DotAttention, rows: torch.Tensor):
        """(B, H) -> contexts (B, H) and alphas (B, L)."""
        keys, values = (x[:, layer] for x in self.image)
        return attention.of_sequences(keys, values, rows)


class TransformerDecoder(Decoder):
    """Layers of attention to the words so far and to the cells.

    Under teacher forcing all words are computed at once. In `step`, the keys and values of earlier words come
    from the state. The alphas are the mean over the heads of the last layer.
    """

    name = "transformer"
    attends = True

    def __init__(self, grid_dim: int, vocab_size: int, config: DecoderConfig):
        super().__init__(grid_dim, vocab_size, config)
        dim = config.hidden_dim
        sizes = config.heads, config.feedforward_dim, config.dropout
        self.cells = nn.Sequential(nn.Linear(grid_dim, dim), nn.LayerNorm(dim))
        self.refine = refinement(dim, config.refine, *sizes)
        self.from_word = nn.Linear(self.embedding.embedding_dim, dim)
        self.layers: list[DecoderLayer] = nn.ModuleList(  # type: ignore[assignment]
            DecoderLayer(dim, *sizes) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.output = WordOutput(dim, self.embedding, config.tie_embeddings)

    def start(self, grid: torch.Tensor) -> DecoderState:
        cells = self.refine(self.dropout(self.cells(grid)))
        keys, values = zip(*(layer.cells.start(cells) for layer in self.layers), strict=True)
        image = TransformerImage(torch.stack(keys, dim=1), torch.stack(values, dim=1))
        no_words = image.values[:, :, :, :0]
        return DecoderState.first(image, TransformerSequence(cells.mean(dim=1), no_words, no_words))

    def step(self, tokens: torch.Tensor, state: DecoderState):
        attention = NextWord(state)
        steps = torch.full_like(tokens, state.sequence.keys.shape[3])
        hidden, alphas = self.hidden(tokens, steps, attention)
        words = torch.stack(attention.keys, dim=1), torch.stack(attention.values, dim=1)
        state = state.with_sequence(TransformerSequence(hidden, *words))
        return self.output(self.dropout(hidden)), state, alphas

    def forward(self, grid: torch.Tensor, captions: PackedCaptions):
        attention = WholeCaptions(self.start(grid).image, captions)
        hidden, alphas = self.hidden(captions.inputs, captions.steps, attention)
        return self.output(self.dropout(hidden)), alphas

    def hidden(self, tokens: torch.Tensor, steps: torch.Tensor, attention: WholeCaptions | NextWord):
        """Tokens and their steps (B,) -> what the next words are predicted from (B, H), and alphas (B, L)."""
        x = self.from_word(self.embed(tokens))
        x = x + positions(steps, x.shape[1])
        for i, layer in enumerate(self.layers):
            x, alphas = layer(x, partial(attention.words, i), partial(attention.cells, i))
        return self.norm(x), alphas

    @property
    def critic_dim(self) -> int:
        return self.norm.normalized_shape[0]

    def critic_input(self, state: DecoderState) -> torch.Tensor:
        return state.sequence.hidden

    def diagram(self, config: DecoderConfig, num_cells: int) -> Diagram:
        """The cells on the left; the words so far, the layers and the output on the right."""
        layers = [f"layers.{i}" for i in range(config.layers)]
        pairs = [f"{layer}.cells.{name}" for layer in layers for name in ("key", "value")]
        count = f"{config.layers} layers" if config.layers > 1 else "1 layer"
        refined = f"{config.refine} × self-attention"
        tied = "tied" if config.tie_embeddings else ""
        cells = Box(7, 40, 37, 13, "cells", f"each projected to {config.hidden_dim}", ("cells",))
        refine = Box(7, 23, 37, 13, "refined cells", refined, ("refine",))
        keys = Box(7, 6, 37, 13, "keys, values", f"for each of {count}", pairs)
        words = Box(62, 40, 34, 13, "words so far", f"“{' '.join(EXAMPLE[:3])}”", ("embedding", "from_word"))
        attend = Box(112, 19, 38, 34, count, "attend to words and cells", layers)
        output = Box(
            160, 40, 34, 13, "word scores", f"{self.output.vocab_size:,} logits", ("norm", "output"), tied
        )
        following = Box(160, 20, 34, 9, NEXT_WORD)
        column = [cells, refine, keys] if config.refine else [cells, keys]
        arrows = [
            Arrow((*FROM_GRID, (25.5, 64), cells.top)),
            *(Arrow((box.bottom, below.top)) for box, below in pairwise(column)),
            Arrow((keys.right, (131, 12.5), attend.bottom), "keys, values", (100, 14.7)),
            Arrow((words.right, (112, 46.5))),
            Arrow(((150, 46.5), output.left)),
            Arrow((output.bottom, following.top)),
            Arrow((following.right, (196.2, 24.5), (196.2, 8), (79, 8), words.bottom), dashed=True),
        ]
        notes = [Note(165, 15.5, f"{num_cells} weights α, one per cell: of the last layer")]
        boxes = [*column, words, attend, output, following]
        return Diagram("a Transformer", 51, boxes, arrows, notes)
