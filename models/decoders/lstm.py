"""The plain LSTM decoder of Show and Tell (Vinyals et al., 2015): the image is its first input."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from config import DecoderConfig
from data.packing import PackedCaptions
from models.decoder import Decoder, WordOutput
from models.diagram import EXAMPLE, FROM_GRID, Arrow, Box, Diagram, Note, state_text
from models.lstm import LSTMSequence, PackedLSTM
from models.state import DecoderState


class NoImage(NamedTuple):
    """No tensors: after its first input, the image, the LSTM has only its state."""


class LSTMDecoder(Decoder):
    """An LSTM of one or more layers, which reads the mean of the grid and then the words."""

    name = "lstm"

    def __init__(self, grid_dim: int, vocab_size: int, config: DecoderConfig):
        super().__init__(grid_dim, vocab_size, config)
        embed_dim = self.embedding.embedding_dim
        self.project_image = nn.Sequential(nn.Linear(grid_dim, embed_dim), nn.LayerNorm(embed_dim))
        self.lstm = PackedLSTM(embed_dim, config.hidden_dim, config.layers, config.dropout)
        self.output = WordOutput(config.hidden_dim, self.embedding, config.tie_embeddings)

    def start(self, grid: torch.Tensor) -> DecoderState:
        """The state after the image. The logits, which would predict the constant `<sos>`, are left out."""
        image = self.project_image(grid.mean(dim=1))
        zeros = image.new_zeros(len(image), self.lstm.num_layers, self.lstm.hidden_size)
        return DecoderState.first(NoImage(), LSTMSequence(*self.lstm(image, zeros, zeros)))

    def step(self, tokens: torch.Tensor, state: DecoderState):
        hidden, memory = self.lstm(self.embed(tokens), *state.sequence)
        logits = self.output(self.dropout(hidden[:, -1]))
        return logits, state.with_sequence(LSTMSequence(hidden, memory)), None

    def forward(self, grid: torch.Tensor, captions: PackedCaptions):
        hidden, memory = (x.index_select(0, captions.images) for x in self.start(grid).sequence)
        hiddens = self.lstm.read(self.embed(captions.inputs), hidden, memory, captions)
        return self.output(self.dropout(hiddens)), None

    @property
    def critic_dim(self) -> int:
        return self.lstm.num_layers * self.lstm.hidden_size

    def critic_input(self, state: DecoderState) -> torch.Tensor:
        return state.sequence.hidden.flatten(1)

    def diagram(self, config: DecoderConfig, num_cells: int) -> Diagram:
        """The image and four steps side by side; the parts of the model on the right."""
        vocab_size = self.output.vocab_size
        tied = "tied" if config.tie_embeddings else ""
        one_hot = config.embeddings == "one_hot"
        embedded = (
            f"one-hot: {vocab_size:,} numbers" if one_hot else f"embedded in {config.embed_dim} numbers"
        )
        cell = "mean cell, projected" if num_cells > 1 else "the cell, projected"
        image = Box(8, 6, 27, 14, "image", cell, ("project_image",))
        boxes = [
            image,
            Box(157, 40, 37, 14, "word scores", f"{vocab_size:,} logits", ("output",), tied),
            Box(157, 23, 37, 14, "LSTM", state_text(config.layers, config.hidden_dim), ("lstm",)),
            Box(157, 6, 37, 14, "words", embedded, ("embedding",)),
        ]
        lstms = [Box(x, 26.5, 19, 7, "LSTM", modules=("lstm",), count=False) for x in (12, 47, 74, 101, 128)]
        words = ["<sos>", *(f"“{word}”" for word in EXAMPLE)]
        arrows = [Arrow((*FROM_GRID, (5, 64), (5, 13), image.left)), Arrow((image.top, lstms[0].bottom))]
        arrows += [Arrow((one.right, other.left)) for one, other in pairwise(lstms)]
        arrows += [Arrow((lstms[-1].right, (152.6, 30)))]
        for i, lstm in enumerate(lstms[1:]):
            read = Box(lstm.x, 9.5, 19, 7, words[i], modules=("embedding",), count=False)
            word = Box(lstm.x, 43.5, 19, 7, words[i + 1])
            arrows += [Arrow((read.top, lstm.bottom)), Arrow((lstm.top, word.bottom))]
            if i < 3:
                turn = word.x + 23
                arrows.append(Arrow((word.right, (turn, 47), (turn, 13), (word.x + 27, 13)), dashed=True))
            boxes += [lstm, read, word]
        boxes.append(lstms[0])
        notes = [Note(97, 5, "each word is the input of the next step; in training, the caption’s own")]
        return Diagram("an LSTM", 40, boxes, arrows, notes)
