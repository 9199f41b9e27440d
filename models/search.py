"""Greedy search, beam search and sampling, for any decoder with `start` and `step`.

All images and all beams form one batch, from which images leave when all their captions are finished. What
belongs to an image is computed once and never copied per beam. The only Python loop is over time steps (and,
in sampling, over the images' random generators).

The log-probabilities that are returned are the model's own: the log-softmax of its logits, over all words.
Which words may be chosen, and in sampling how likely each of them is, is a separate matter.
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from config import SearchConfig
from models.decoder import Decoder
from models.history import History, can_look, to_go_on_with
from models.state import rows_of
from utils import EOS, PAD, SOS, UNK


class SearchOptions(SearchConfig):
    """The section `search` of the configuration, and the seed of sampling."""

    seed: int = Field(0, ge=0, description="seed of sampling")


class Captions(NamedTuple):
    """K captions for each of N images, best first. `<unk>` never occurs.

    K is `search.beam`, or the number of all captions that the search has seen if that is smaller. The sum of
    a caption's `log_probs` includes that of its <eos>.
    """

    tokens: torch.Tensor  # (N, K, T) int64, the words and <eos>, then <pad>
    log_probs: torch.Tensor  # (N, K, T) logarithm of the model's probability of each token; 0 for padding
    scores: torch.Tensor  # (N, K) what the captions are ranked by; -inf if there are fewer captions
    attention: torch.Tensor | None  # (N, K, T, L) alphas of each word, or None


_COLDEST = 1e-30  # temperature; a lower one divides 0 by something that float32 rounds to 0
_NEVER = (PAD, SOS, UNK)  # no caption contains these


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


def choosable(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """A copy of logits (B, V) in float32 to choose the next word by, with -inf for what is never chosen."""
    return forbid(logits.float() * (1 / temperature))


def draw(logits: torch.Tensor) -> torch.Tensor:
    """One token (B,) from the softmax of each row of `choosable` logits (B, V), by torch's global generator.

    It is the first word up to which the probabilities add up to more than a random number: one number per
    row, where `multinomial` draws one for each word. The sums are of integers, which is exact in any order.

    Where nothing is probable, or a model that is not finite has made everything NaN, it is any word:
    `multinomial` would raise an error, but a loss that is not finite only skips a step.
    """
    probabilities = forbid(logits.softmax(dim=1).nan_to_num(1.0), 0.0)
    sums = (probabilities * 2**32).long().cumsum(dim=1)
    random = torch.randint(2**62, (len(sums), 1), device=sums.device) % sums[:, -1:]
    return torch.searchsorted(sums, random, right=True).squeeze(1)


def forbid(scores: torch.Tensor, value: float = -torch.inf) -> torch.Tensor:
    """Set what is never chosen to `value`, in place, in scores (B, V) of words."""
    for token in _NEVER:  # as one index, they would first have to be copied to the device
        scores[:, token] = value
    return scores


def _beam_search(decoder: Decoder, grid: torch.Tensor, options: SearchOptions) -> Captions:
    """The K best captions of each image that a beam of K finds.

    A finished caption stays in the beam and competes by its score until all K captions of an image are
    finished. K = 1 is greedy search; if K is at least the number of possible captions, the search is
    exhaustive. After `max_length` words a caption must end.

    Beams are ranked by the probabilities with which words can be chosen, so <unk> has none.
    """
    device = grid.device
    state, history = decoder.start(grid), History(len(grid), device)
    images = torch.arange(len(grid), device=device)  # (N,), those that are still in the batch
    tokens = torch.full((len(grid),), SOS, device=device)
    total = torch.zeros(
        len(grid), 1, device=device
    )  # (N, K) log-probability of each beam; at first there is one
    length, finished = torch.zeros_like(total), torch.zeros_like(total, dtype=torch.bool)
    scores = torch.full((len(grid), options.beam), -torch.inf, device=device)  # of all images

    for t in range(options.max_length + 1):  # the words and <eos>
        logits, state, alphas = decoder.step(tokens, state)
        words, log_probs, own = _continuations(logits, options.beam, must_end=t == options.max_length)
        (n, k), width = total.shape, words.shape[1]
        # A finished beam has one continuation: padding, with probability 1.
        log_probs = log_probs.view(n, k, width).masked_fill(finished.unsqueeze(2), -torch.inf)
        log_probs[:, :, 0].masked_fill_(finished, 0.0)

        longer = length + ~finished
        candidates = total.unsqueeze(2) + log_probs  # (N, K, W)
        ranked = (candidates / longer.unsqueeze(2) ** options.length_penalty).flatten(1)
        best_scores, best = ranked.topk(min(options.beam, k * width), dim=1)
        parent = best // width
        rows = torch.arange(n, device=device).unsqueeze(1) * k + parent  # (N, K) in the batch of this step

        total = candidates.flatten(1).gather(1, best)
        length, was_finished = longer.gather(1, parent), finished.gather(1, parent)
        word, log_prob = (x.view(n, -1).gather(1, best) for x in (words, own))
        finished, tokens = was_finished | (word == EOS), word.flatten()
        if options.beam > 1:
            state, alphas = state.select(rows), None if alphas is None else alphas[rows.flatten()]
        history.select(rows)
        history.add(was_finished.flatten(), tokens, log_prob.flatten(), *_optional(alphas))
        scores[:, : rows.shape[1]].index_copy_(0, images, best_scores)

        if can_look(t, device):
            is_open = ~(finished | total.isneginf()).all(dim=1).cpu()
            if not is_open.any():
                break
            if (kept := to_go_on_with(is_open)) is not None:
                kept = kept.to(device)
                history.leave(rows_of(images, options.beam)[:, : rows.shape[1]])
                history.select(rows_of(kept, rows.shape[1]))
                state, tokens, images = state.select_images(kept), word[kept].flatten(), images[kept]
                total, length, finished = total[kept], length[kept], finished[kept]

    k = total.shape[1]
    tokens, log_probs, *attention = (
        x.unflatten(0, (-1, options.beam))[:, :k]
        for x in history.sequences(rows_of(images, options.beam)[:, :k], scores.numel())
    )
    return Captions(tokens, log_probs, scores[:, :k], attention[0] if attention else None)


def _optional(alphas: torch.Tensor | None) -> list[torch.Tensor]:
    """The alphas, if the decoder has any."""
    return [] if alphas is None else [alphas]


def _continuations(
    logits: torch.Tensor, number: int, must_end: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The most likely tokens that may follow, of which no beam needs more than `number`.

    Args:
        logits: (B, V).
        must_end: only <eos> may follow.

    Returns:
        tokens (B, W), best first; the logarithms of their probabilities among all tokens that may follow,
        whether or not the caption must end, which beams are ranked by; and those of the model's own.
    """
    may_follow = choosable(logits)
    log_probs = may_follow.log_softmax(dim=1)
    if must_end:
        tokens, best = torch.full((len(logits), 1), EOS, device=logits.device), log_probs[:, EOS : EOS + 1]
    else:
        best, tokens = log_probs.topk(min(number, logits.shape[1] - len(_NEVER)), dim=1)
    # With a and b the logarithms of sum exp(logit) over what may follow and over the rest, the first has the
    # model's own probability 1 / (1 + e^(b - a)). A second softmax over all words would be another pass.
    a = may_follow.gather(1, tokens[:, :1]) - best[:, :1]
    b = reduce(torch.logaddexp, (logits[:, token].float() for token in _NEVER)).unsqueeze(1)
    return tokens, best, best + F.logsigmoid(a - b)


def _sample(decoder: Decoder, grid: torch.Tensor, options: SearchOptions, indices: Sequence[int]) -> Captions:
    """One caption per image, with each word drawn at random.

    A `temperature` below 1 sharpens the model's distribution, above 1 it flattens it. `top_k` and `top_p`
    (nucleus sampling: Holtzman et al., 2020) cut off its tail. The same seed draws the same caption for an
    image with the same index, whatever else is in the batch.

    A draw is the word with the largest sum of log-probability and Gumbel noise (Maddison et al., 2014). The
    sum does not need probabilities that add up to 1, and it is defined however improbable the words are.
    """
    n, device = len(grid), grid.device
    randoms = [np.random.default_rng((options.seed, index)) for index in indices]
    state, history = decoder.start(grid), History(n, device)
    images, tokens = torch.arange(n, device=device), torch.full((n,), SOS, device=device)
    finished = torch.zeros(n, dtype=torch.bool, device=device)
    for t in range(options.max_length + 1):
        logits, state, alphas = decoder.step(tokens, state)
        log_probs = logits.float().log_softmax(dim=1)
        allowed = forbid(log_probs.clone())
        if t == options.max_length:  # all but <eos>
            allowed[:, :EOS] = allowed[:, EOS + 1 :] = -torch.inf
        allowed = cut_tail(_temper(allowed, options.temperature), options.top_k, options.top_p)
        noise = np.stack([random.gumbel(size=allowed.shape[1]) for random in randoms]).astype(np.float32)
        tokens = (allowed + torch.from_numpy(noise).to(device, non_blocking=True)).argmax(dim=1)
        log_prob = log_probs.gather(1, tokens.unsqueeze(1)).squeeze(1)
        history.add(finished, tokens, log_prob, *_optional(alphas))
        finished = finished | (tokens == EOS)
        if can_look(t, device):
            is_open = ~finished.cpu()
            if not is_open.any():
                break
            if (kept := to_go_on_with(is_open)) is not None:
                randoms, kept = [randoms[i] for i in kept.tolist()], kept.to(device)
                history.leave(images)
                history.select(kept)
                state, images = state.select_images(kept), images[kept]
                tokens, finished = tokens[kept], finished[kept]
    tokens, log_probs, *attention = (x.unsqueeze(1) for x in history.sequences(images, n))
    return Captions(tokens, log_probs, log_probs.sum(dim=2), attention[0] if attention else None)


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
