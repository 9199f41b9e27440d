"""Greedy search, beam search and sampling, for any decoder with `start` and `step`.

All images and all beams form one batch; the only Python loop is over time steps.
"""

from typing import NamedTuple

import torch
from pydantic import Field

from config import SearchConfig
from models.decoder import Decoder, DecoderState
from utils import EOS, PAD, SOS, UNK


class SearchOptions(SearchConfig):
    """The section `search` of the configuration, and the seed of sampling."""

    seed: int = Field(0, ge=0, description="seed of sampling")


class Captions(NamedTuple):
    """K captions for each of N images, best first. `<unk>` never occurs."""

    tokens: torch.Tensor  # (N, K, T) int64, the words and <eos>, then <pad>
    log_probs: torch.Tensor  # (N, K, T) natural logarithm of each token's probability; 0 for padding
    scores: torch.Tensor  # (N, K) what the captions are ranked by; -inf if there are fewer captions
    attention: torch.Tensor | None  # (N, K, T, L) alphas of each word, or None


@torch.inference_mode()
def search(decoder: Decoder, grid: torch.Tensor, options: SearchOptions) -> Captions:
    """Caption the images of `grid` (N, L, C) by beam search, or by sampling if the temperature is above 0."""
    if options.temperature > 0:
        return _sample(decoder, grid, options)
    return _beam_search(decoder, grid, options)


def next_log_probs(
    decoder: Decoder, tokens: torch.Tensor, state: DecoderState, must_end: bool, temperature: float = 1.0
):
    """One step: log-probabilities (B, V) of the next token (only <eos> if it must end), state, alphas."""
    logits, state, alphas = decoder.step(tokens, state)
    logits = logits.float() / temperature
    logits[:, [PAD, SOS, UNK]] = -torch.inf
    log_probs = logits.log_softmax(dim=1)
    if must_end:
        log_probs[:, :EOS] = log_probs[:, EOS + 1 :] = -torch.inf
    return log_probs, state, alphas


def _beam_search(decoder: Decoder, grid: torch.Tensor, options: SearchOptions) -> Captions:
    """The K best captions of each image that a beam of K finds.

    A finished caption stays in the beam and competes by its score until all K captions of an image are
    finished. K = 1 is greedy search; if K is at least the number of possible captions, the search is
    exhaustive. After `max_length` words a caption must end.
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
        log_probs, state, alphas = next_log_probs(decoder, tokens, state, must_end=t == options.max_length)
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

        history.append((parent, token, log_probs.flatten(1).gather(1, best), alphas))
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


def _sample(decoder: Decoder, grid: torch.Tensor, options: SearchOptions) -> Captions:
    """One caption per image, with each word drawn from the model's distribution.

    A `temperature` below 1 sharpens the distribution, above 1 it flattens it. `top_k` and `top_p` (nucleus
    sampling: Holtzman et al., 2020) cut off its tail. The same seed draws the same captions for the same
    batch.
    """
    n, device = grid.shape[0], grid.device
    random = torch.Generator(device).manual_seed(options.seed)
    state = decoder.start(grid)
    tokens = torch.full((n,), SOS, device=device)
    finished = torch.zeros(n, dtype=torch.bool, device=device)
    steps, attention = [], []
    for t in range(options.max_length + 1):
        must_end = t == options.max_length
        scores, state, alphas = next_log_probs(decoder, tokens, state, must_end, options.temperature)
        allowed = cut_tail(scores, options.top_k, options.top_p)
        tokens = torch.multinomial(allowed.exp(), 1, generator=random).squeeze(1)
        log_prob = scores.gather(1, tokens.unsqueeze(1)).squeeze(1).masked_fill(finished, 0.0)
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
