"""Greedy search, beam search and sampling, for any decoder with `start` and `step`.

All images and all beams form one batch; the only Python loop is over time steps (and, in sampling, over the
images' random generators).

The log-probabilities that are returned are the model's own: the log-softmax of its logits, over all words.
Which words may be chosen, and in sampling how likely each of them is, is a separate matter.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field

from config import SearchConfig
from models.decoder import Decoder
from utils import EOS, PAD, SOS, UNK


class SearchOptions(SearchConfig):
    """The section `search` of the configuration, and the seed of sampling."""

    seed: int = Field(0, ge=0, description="seed of sampling")


class Captions(NamedTuple):
    """K captions for each of N images, best first. `<unk>` never occurs.

    The sum of a caption's `log_probs` includes that of its <eos>.
    """

    tokens: torch.Tensor  # (N, K, T) int64, the words and <eos>, then <pad>
    log_probs: torch.Tensor  # (N, K, T) logarithm of the model's probability of each token; 0 for padding
    scores: torch.Tensor  # (N, K) what the captions are ranked by; -inf if there are fewer captions
    attention: torch.Tensor | None  # (N, K, T, L) alphas of each word, or None


_COLDEST = 1e-30  # temperature; a lower one divides 0 by something that float32 rounds to 0
_NEVER = [PAD, SOS, UNK]  # no caption contains these


@torch.inference_mode()
def search(
    decoder: Decoder, grid: torch.Tensor, options: SearchOptions, indices: Sequence[int] | None = None
) -> Captions:
    """Caption the images of `grid` (N, L, C) by beam search, or by sampling if the temperature is above 0.

    Args:
        indices: the index of each image in the whole input, from which (with the seed) its samples follow;
            None: 0 to N - 1.
    """
    if options.temperature > 0:
        return _sample(decoder, grid, options, range(len(grid)) if indices is None else indices)
    return _beam_search(decoder, grid, options)


def drawing_log_probs(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """From logits (B, V), the log-probabilities with which an objective draws each token."""
    logits = logits.float() / temperature
    logits[:, _NEVER] = -torch.inf
    return logits.log_softmax(dim=1)


def draw(log_probs: torch.Tensor) -> torch.Tensor:
    """One token (B,) from each distribution (B, V), by torch's global generator.

    Where nothing is probable, or a model that is not finite has made everything NaN, it is any word:
    `multinomial` would raise an error, but a loss that is not finite only skips a step.
    """
    probabilities = log_probs.exp()
    is_usable = probabilities.sum(dim=1, keepdim=True) > 0
    probabilities = probabilities.masked_fill(~is_usable, 1.0)
    probabilities[:, _NEVER] = 0
    return torch.multinomial(probabilities, 1).squeeze(1)


def _allowed(log_probs: torch.Tensor, must_end: bool) -> torch.Tensor:
    """`log_probs` (B, V), with -inf for tokens that cannot follow: all but <eos> if the caption must end."""
    allowed = log_probs.clone()
    allowed[:, _NEVER] = -torch.inf
    if must_end:
        allowed[:, :EOS] = allowed[:, EOS + 1 :] = -torch.inf
    return allowed


def _beam_search(decoder: Decoder, grid: torch.Tensor, options: SearchOptions) -> Captions:
    """The K best captions of each image that a beam of K finds.

    A finished caption stays in the beam and competes by its score until all K captions of an image are
    finished. K = 1 is greedy search; if K is at least the number of possible captions, the search is
    exhaustive. After `max_length` words a caption must end.

    Beams are ranked by the probabilities with which words can be chosen, so <unk> has none.
    """
    n, k, device = grid.shape[0], options.beam, grid.device
    state = decoder.start(grid).repeat(k)
    tokens = torch.full((n * k,), SOS, device=device)
    first = torch.arange(n, device=device).unsqueeze(1) * k  # (N, 1): where each image's beams begin
    total = torch.full((n, k), -torch.inf, device=device)  # log-probability of each beam
    total[:, 0] = 0  # at first all beams are the same, so only one of them counts
    length = torch.zeros(n, k, device=device)
    finished = torch.zeros(n, k, dtype=torch.bool, device=device)
    history = []  # per step: parents (N, K), tokens (N, K), log-probabilities (N, K), alphas (N, K, L)

    for t in range(options.max_length + 1):  # the words and <eos>
        logits, state, alphas = decoder.step(tokens, state)
        own = logits.float().log_softmax(dim=1).view(n, -1)  # (N, K V), what is reported
        log_probs = _allowed(drawing_log_probs(logits), must_end=t == options.max_length)
        vocab_size = log_probs.shape[1]
        log_probs = log_probs.view(n, k, vocab_size)
        # A finished beam has one continuation: padding, with probability 1.
        log_probs = log_probs.masked_fill(finished.unsqueeze(2), -torch.inf)
        log_probs[:, :, PAD] = torch.where(finished, 0.0, -torch.inf)

        longer = length + (~finished).float()
        candidates = total.unsqueeze(2) + log_probs
        scores = candidates / longer.clamp(min=1).unsqueeze(2) ** options.length_penalty
        best = scores.flatten(1).topk(k, dim=1).indices
        parent, token = best // vocab_size, best % vocab_size

        history.append((parent, token, own.gather(1, best), alphas))
        total = candidates.flatten(1).gather(1, best)
        length = longer.gather(1, parent)
        finished = finished.gather(1, parent) | (token == EOS)
        state = state.select(first + parent)
        tokens = token.flatten()
        if (finished | total.isneginf()).all():
            break

    scores = total / length.clamp(min=1) ** options.length_penalty
    order = scores.argsort(dim=1, descending=True, stable=True)
    return _trace_back(history, order, scores.gather(1, order), n, k)


def _trace_back(history, beam: torch.Tensor, scores: torch.Tensor, n: int, k: int) -> Captions:
    """Follow the parents from the last step to the first, for the beams `beam` (N, K)."""
    steps, attention = [], []
    for parent, token, log_prob, alphas in reversed(history):
        steps.append((token.gather(1, beam), log_prob.gather(1, beam)))
        beam = parent.gather(1, beam)
        if alphas is not None:  # computed before the beams were reordered, so they are in the parents' rows
            alphas = alphas.view(n, k, -1)
            attention.append(alphas.gather(1, beam.unsqueeze(2).expand(-1, -1, alphas.shape[2])))
    tokens, log_probs = (torch.stack(column[::-1], dim=2) for column in zip(*steps, strict=True))
    return Captions(
        tokens,
        log_probs.masked_fill(tokens == PAD, 0.0),
        scores,
        torch.stack(attention[::-1], dim=2) if attention else None,
    )


def _sample(decoder: Decoder, grid: torch.Tensor, options: SearchOptions, indices: Sequence[int]) -> Captions:
    """One caption per image, with each word drawn at random.

    A `temperature` below 1 sharpens the model's distribution, above 1 it flattens it. `top_k` and `top_p`
    (nucleus sampling: Holtzman et al., 2020) cut off its tail. The same seed draws the same caption for an
    image with the same index, whatever else is in the batch.

    A draw is the word with the largest sum of log-probability and Gumbel noise (Maddison et al., 2014). The
    sum does not need probabilities that add up to 1, and it is defined however improbable the words are.
    """
    n, device = grid.shape[0], grid.device
    randoms = [np.random.default_rng((options.seed, index)) for index in indices]
    state = decoder.start(grid)
    tokens = torch.full((n,), SOS, device=device)
    finished = torch.zeros(n, dtype=torch.bool, device=device)
    steps, attention = [], []
    for t in range(options.max_length + 1):
        logits, state, alphas = decoder.step(tokens, state)
        log_probs = logits.float().log_softmax(dim=1)
        allowed = _temper(_allowed(log_probs, must_end=t == options.max_length), options.temperature)
        allowed = cut_tail(allowed, options.top_k, options.top_p)
        noise = np.stack([random.gumbel(size=allowed.shape[1]) for random in randoms])
        tokens = (allowed + torch.from_numpy(noise).to(device, torch.float32)).argmax(dim=1)
        log_prob = log_probs.gather(1, tokens.unsqueeze(1)).squeeze(1).masked_fill(finished, 0.0)
        tokens = tokens.masked_fill(finished, PAD)
        steps.append((tokens, log_prob))
        if alphas is not None:
            attention.append(alphas)
        finished = finished | (tokens == EOS)
        if finished.all():
            break
    chosen, log_probs = (torch.stack(column, dim=1) for column in zip(*steps, strict=True))
    return Captions(
        chosen.unsqueeze(1),
        log_probs.unsqueeze(1),
        log_probs.sum(dim=1, keepdim=True),
        torch.stack(attention, dim=1).unsqueeze(1) if attention else None,
    )


def _temper(log_probs: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logarithms (B, V) of p^(1 / temperature), relative to the most likely word, for which it is 0."""
    relative = log_probs - log_probs.max(dim=1, keepdim=True).values
    return relative / max(temperature, _COLDEST)


def cut_tail(log_probs: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Set words (B, V) to -inf outside the k most likely ones, or the smallest set with probability p."""
    if 0 < top_k < log_probs.shape[1]:
        least = log_probs.topk(top_k, dim=1).values[:, -1:]
        log_probs = log_probs.masked_fill(log_probs < least, -torch.inf)
    if top_p < 1:
        ordered, index = log_probs.softmax(dim=1).sort(dim=1, descending=True)
        beyond = ordered.cumsum(dim=1) - ordered >= top_p  # never the most likely word
        log_probs = log_probs.masked_fill(beyond.scatter(1, index, beyond), -torch.inf)
    return log_probs
