"""Captions sampled from the model, and their log-probabilities: the two passes of a policy-gradient step.

Captions are sampled word by word without a gradient, with `start` and `step`. Then `forward`, the fast path,
computes their log-probabilities with a gradient.
"""

from typing import NamedTuple

import torch

from models.decoder import Decoder
from models.search import draw, drawing_log_probs
from utils import EOS, PAD, SOS, UNK

_IMPOSSIBLE = -1e4  # the logit of probability 0; -inf would make 0 log 0 in the entropy NaN


class Rollout(NamedTuple):
    """K captions for each of N images; M = N K, and the captions of an image are adjacent."""

    captions: torch.Tensor  # (M, T + 1) int64, <sos>, words and <eos>, then <pad>
    states: torch.Tensor  # (M, T, F) the decoder's `critic_input` when it chose each word


@torch.no_grad()
def rollout(
    decoder: Decoder,
    grid: torch.Tensor,
    samples: int,
    max_length: int,
    temperature: float,
    greedy: bool = False,
) -> Rollout:
    """Sample captions for each image of `grid` (N, L, C) in one batch, from which finished ones are removed.

    A caption that has not ended after `max_length` words and one more token is cut and has no <eos>. With
    `greedy`, the first caption of each image is the greedy one, and the samples follow.
    """
    k = samples + greedy
    state = decoder.start(grid).repeat(k)
    m, device = len(grid) * k, grid.device
    active = torch.arange(m, device=device)
    tokens = torch.full((m,), SOS, device=device)
    captions, states = [tokens], list[torch.Tensor]()
    while len(active) and len(states) <= max_length:
        logits, state, _ = decoder.step(tokens, state)
        log_probs = drawing_log_probs(logits, temperature)
        tokens = draw(log_probs)
        if greedy:
            tokens = torch.where(active % k == 0, log_probs.argmax(dim=1), tokens)
        captions.append(torch.full((m,), PAD, device=device).index_copy(0, active, tokens))
        inputs = decoder.critic_input(state).float()
        states.append(inputs.new_zeros(m, inputs.shape[1]).index_copy(0, active, inputs))
        unfinished = (tokens != EOS).nonzero().squeeze(1)
        if len(unfinished) < len(active):
            active, tokens, state = active[unfinished], tokens[unfinished], state.select(unfinished)
    return Rollout(torch.stack(captions, dim=1), torch.stack(states, dim=1))


def log_probabilities(
    decoder: Decoder, grid: torch.Tensor, captions: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probability of each token, and the entropy (nats) of its distribution, with gradients.

    Args:
        grid: (N, L, C).
        captions: (M, T + 1) of a rollout, M / N for each image.

    Returns:
        Both (P,), for all tokens except padding, one caption after the other.
    """
    image_index = torch.arange(len(grid), device=grid.device).repeat_interleave(len(captions) // len(grid))
    logits, _ = decoder(grid, captions, image_index)
    tokens = captions[:, 1:]
    is_token = tokens != PAD
    logits = logits[is_token].float() / temperature
    logits[:, [PAD, SOS, UNK]] = _IMPOSSIBLE  # as in `rollout`
    log_probs = logits.log_softmax(dim=1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=1)
    return log_probs.gather(1, tokens[is_token].unsqueeze(1)).squeeze(1), entropy
