"""The decoders as a textbook writes them: what the speed of the real ones is compared with.

The project's decoders do the same work in another order. Here the image's projection is computed again for
every word, the vocabulary's scores are part of the time loop, each caption has its own copy of the grid, and
search captions one image at a time. The references use the modules of a real decoder, and tests show that
logits, losses, gradients and captions are the same. `TutorialDecoder` is another model: the one of the
best-known tutorial (a-PyTorch-Tutorial-to-Image-Captioning by sgrvinod), written from the equations of Show,
Attend and Tell (Xu et al., 2015).

All compute in float32. Dropout is drawn in other places than by the real decoders, so that only without it
the numbers agree.
"""

import torch
import torch.nn.functional as F
from torch import nn

from models.attending import AttendingDecoder
from models.decoder import Decoder
from models.decoders.attention import AttentionDecoder
from models.decoders.dot_attention import DotAttentionDecoder
from models.decoders.lstm import LSTMDecoder
from utils import EOS, PAD, SOS, UNK

State = tuple[torch.Tensor, torch.Tensor]  # of an LSTM: hidden and memory, both (B, H)


class Textbook(nn.Module):
    """A decoder that is given by its first state and one step; B captions have B copies of a grid."""

    vocab_size: int

    def first(self, grids: torch.Tensor) -> State:
        """The state before the first word, from grids (B, L, C)."""
        raise NotImplementedError

    def step(self, tokens: torch.Tensor, grids: torch.Tensor, state: State):
        """Read a token (B,); returns logits (B, V), the new state, and alphas (B, L) or None."""
        raise NotImplementedError

    def forward(self, grid: torch.Tensor, captions: torch.Tensor, image_index: torch.Tensor):
        """Teacher forcing of captions (M, T), padded with <pad>.

        Returns:
            logits (M, T - 1, V), and alphas (M, T - 1, L) or None, both zero for padding; and the order (M,)
            of the captions in them, longest first.
        """
        steps, order = ((captions != PAD).sum(dim=1) - 1).sort(descending=True)
        grids, captions = grid[image_index[order]], captions[order]
        state = self.first(grids)
        logits = grids.new_zeros(len(captions), captions.shape[1] - 1, self.vocab_size)
        alphas = grids.new_zeros(*logits.shape[:2], grids.shape[1])
        for t in range(int(steps[0])):
            active = int((steps > t).sum())
            state = state[0][:active], state[1][:active]
            logits[:active, t], state, alpha = self.step(captions[:active, t], grids[:active], state)
            if alpha is not None:
                alphas[:active, t] = alpha
        return logits, None if alpha is None else alphas, order


class _Attending(Textbook):
    """What the two references with attention have in common."""

    def __init__(self, decoder: AttendingDecoder):
        super().__init__()
        self.own, self.vocab_size = decoder, decoder.output.vocab_size

    def cells(self, grids: torch.Tensor) -> torch.Tensor:
        """The projected grids (B, L, H): in a step, the same ones for every word but for the dropout."""
        return self.own.dropout(self.own.cells(grids))

    def first(self, grids: torch.Tensor) -> State:
        hidden, memory = torch.tanh(self.own.init(self.cells(grids).mean(dim=1))).chunk(2, dim=1)
        return hidden, memory

    def logits(self, hidden: torch.Tensor, context: torch.Tensor, word: torch.Tensor) -> torch.Tensor:
        """The deep output layer (equation 7)."""
        deep = torch.tanh(self.own.deep(torch.cat([hidden, context, word], dim=1)))
        return self.own.output(self.own.dropout(deep))


class AttentionReference(_Attending):
    """AttentionDecoder: additive attention (Xu et al., 2015, section 3.1.2) before the LSTM."""

    def step(self, tokens: torch.Tensor, grids: torch.Tensor, state: State):
        own, (hidden, memory) = self.own, state
        word, cells = own.embed(tokens), self.cells(grids)
        sums = own.attention.key(cells) + own.attention.query(hidden).unsqueeze(1)  # (B, L, A)
        alphas = own.attention.score(torch.tanh(sums)).squeeze(2).softmax(dim=1)
        context = (alphas.unsqueeze(2) * cells).sum(dim=1)
        context = torch.sigmoid(own.gate(hidden)) * context
        gates = own.from_word(word) + own.from_context(context) + own.from_hidden(hidden)
        write, forget, read, value = gates.chunk(4, dim=1)
        memory = torch.sigmoid(forget) * memory + torch.sigmoid(write) * torch.tanh(value)
        hidden = torch.sigmoid(read) * torch.tanh(memory)
        return self.logits(hidden, context, word), (hidden, memory), alphas


class DotAttentionReference(_Attending):
    """DotAttentionDecoder with one layer: multi-head attention (Vaswani et al., 2017) after the LSTM."""

    def __init__(self, decoder: DotAttentionDecoder):
        super().__init__(decoder)
        self.cell = _cell_of(decoder.lstm)

    def step(self, tokens: torch.Tensor, grids: torch.Tensor, state: State):
        own, attention = self.own, self.own.attention
        word, cells = own.embed(tokens), self.cells(grids)
        hidden, memory = self.cell(word + own.from_image(cells.mean(dim=1)), state)
        query = attention.query(hidden).unsqueeze(1)
        query, key, value = (
            x.unflatten(2, (attention.heads, -1)).transpose(1, 2)  # (B, heads, 1 or L, size of a head)
            for x in (query, attention.key(cells), attention.value(cells))
        )
        alphas = (query @ key.mT / key.shape[3] ** 0.5).softmax(dim=3)  # (B, heads, 1, L)
        context = torch.sigmoid(own.gate(hidden)) * (alphas @ value).flatten(1)
        return self.logits(hidden, context, word), (hidden, memory), alphas.mean(dim=1).squeeze(1)


class LSTMReference(Textbook):
    """LSTMDecoder with one layer: Vinyals et al., 2015, an nn.LSTMCell word by word."""

    def __init__(self, decoder: LSTMDecoder):
        super().__init__()
        self.own, self.vocab_size = decoder, decoder.output.vocab_size
        self.cell = _cell_of(decoder.lstm)

    def first(self, grids: torch.Tensor) -> State:
        return self.cell(self.own.project_image(grids.mean(dim=1)))

    def step(self, tokens: torch.Tensor, grids: torch.Tensor, state: State):
        hidden, memory = self.cell(self.own.embed(tokens), state)
        return self.own.output(self.own.dropout(hidden)), (hidden, memory), None


def _cell_of(lstm: nn.LSTM) -> nn.LSTMCell:
    """One step of an LSTM with one layer, with the same weights."""
    cell = nn.LSTMCell(lstm.input_size, lstm.hidden_size)
    for name, _ in list(cell.named_parameters()):
        setattr(cell, name, getattr(lstm, f"{name}_l0"))
    return cell


class TutorialDecoder(Textbook):
    """Soft attention over the C channels of the grid as they are, with ReLU, and a gate over the channels.

    The keys of all cells are computed again for every word; the LSTM reads the word and all C channels.
    """

    def __init__(self, grid_dim: int, vocab_size: int, dim: int):
        super().__init__()
        self.vocab_size = vocab_size
        self.embedding = nn.Embedding(vocab_size, dim)
        self.init = nn.Linear(grid_dim, 2 * dim)
        self.key, self.query = nn.Linear(grid_dim, dim), nn.Linear(dim, dim)
        self.score = nn.Linear(dim, 1)
        self.gate = nn.Linear(dim, grid_dim)
        self.cell = nn.LSTMCell(dim + grid_dim, dim)
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(dim, vocab_size)

    def first(self, grids: torch.Tensor) -> State:
        hidden, memory = self.init(grids.mean(dim=1)).chunk(2, dim=1)
        return hidden, memory

    def step(self, tokens: torch.Tensor, grids: torch.Tensor, state: State):
        sums = self.key(grids) + self.query(state[0]).unsqueeze(1)
        alphas = self.score(F.relu(sums)).squeeze(2).softmax(dim=1)
        context = (alphas.unsqueeze(2) * grids).sum(dim=1)
        context = torch.sigmoid(self.gate(state[0])) * context
        hidden, memory = self.cell(torch.cat([self.embedding(tokens), context], dim=1), state)
        return self.output(self.dropout(hidden)), (hidden, memory), alphas


def reference_of(decoder: Decoder) -> Textbook:
    """The reference that shares the weights of a real decoder."""
    references = {
        LSTMDecoder: LSTMReference,
        AttentionDecoder: AttentionReference,
        DotAttentionDecoder: DotAttentionReference,
    }
    return references[type(decoder)](decoder)


def loss(
    logits: torch.Tensor,
    captions: torch.Tensor,
    alphas: torch.Tensor | None,
    label_smoothing: float,
    attention_weight: float,
) -> torch.Tensor:
    """Mean cross entropy over tokens, and the regulariser of Xu et al. (2015, equation 14) as a mean."""
    targets = captions[:, 1:].flatten()
    loss = F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=PAD, label_smoothing=label_smoothing)
    if alphas is not None:
        loss = loss + attention_weight * (1 - alphas.sum(dim=1)).square().mean()
    return loss


@torch.no_grad()
def beam_search(
    decoder: Textbook, grid: torch.Tensor, beam: int, max_length: int, length_penalty: float
) -> list[int]:
    """The words of the best caption of one image (L, C), and <eos>; its beams are one batch.

    Finished captions stay in the beam until all are finished. After `max_length` words a caption must end.
    """
    grids = grid.expand(beam, -1, -1)
    state = decoder.first(grids)
    beams: list[tuple[float, list[int]]] = [(0.0, [SOS])]  # log-probability and tokens, best first

    def rank(candidate: tuple[float, list[int]]) -> float:
        return candidate[0] / (len(candidate[1]) - 1) ** length_penalty

    for t in range(max_length + 1):
        tokens = torch.tensor([tokens[-1] for _, tokens in beams], device=grid.device)
        logits, state, _ = decoder.step(
            tokens, grids[: len(beams)], (state[0][: len(beams)], state[1][: len(beams)])
        )
        logits[:, [PAD, SOS, UNK]] = -torch.inf
        log_probs = logits.log_softmax(dim=1)
        if t == max_length:
            log_probs[:, :EOS] = log_probs[:, EOS + 1 :] = -torch.inf
        best = log_probs.topk(min(beam, log_probs.shape[1]), dim=1)
        candidates = []  # (beam that it continues, log-probability and tokens)
        for parent, (total, words) in enumerate(beams):
            if words[-1] == EOS:
                candidates.append((parent, (total, words)))
                continue
            for log_prob, word in zip(
                best.values[parent].tolist(), best.indices[parent].tolist(), strict=True
            ):
                candidates.append((parent, (total + log_prob, [*words, word])))
        candidates.sort(key=lambda candidate: rank(candidate[1]), reverse=True)
        candidates = candidates[:beam]
        beams = [candidate for _, candidate in candidates]
        parents = torch.tensor([parent for parent, _ in candidates], device=grid.device)
        state = state[0][parents], state[1][parents]
        if all(words[-1] == EOS for _, words in beams):
            break
    return beams[0][1][1:]
