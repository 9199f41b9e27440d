"""Captions sampled from the model, and their log-probabilities: the two passes of a policy-gradient step.

Captions are sampled word by word without a gradient, with `start` and `step`. Then `forward`, the fast path,
computes their log-probabilities with a gradient.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from data.packing import PackedCaptions
from models.choices import choosable, draw, forbid
from models.decoder import Decoder
from models.history import History, can_look, to_go_on_with
from models.state import rows_of
from utils import EOS, SOS

_IMPOSSIBLE = -1e4  # the logit of probability 0; -inf would make 0 log 0 in the entropy NaN


class Rollout(NamedTuple):
    """K captions for each of N images; M = N K, and the captions of an image are adjacent."""

    captions: torch.Tensor  # (M, T + 1) int64, <sos>, words and <eos>, then <pad>
    states: torch.Tensor  # (M, T, F) the decoder's `critic_input` when it chose each word


@torch.no_grad()
def rollout(
    decoder: Decoder,
    grid: torch.Tensor,
    randoms: torch.Tensor,
    temperature: float,
    greedy: bool = False,
) -> Rollout:
    """Sample captions for each image of `grid` (N, L, C) in one batch, which finished ones leave.

    Args:
        randoms: (N, samples, T), see training/randomness.py: a number for each token. A caption that has not
            ended after T tokens is cut and has no <eos>.
        greedy: whether the first caption of each image is the greedy one, which the samples follow.
    """
    if greedy:
        randoms = F.pad(randoms, (0, 0, 1, 0))
    (n, k, max_tokens), device = randoms.shape, grid.device
    randoms = randoms.flatten(0, 1)
    state, history = decoder.start(grid).repeat(k), History(n * k, device)
    places = torch.arange(n * k, device=device).view(n, k)  # of the sequences in the batch, in the result
    tokens = torch.full((n, k), SOS, device=device)
    finished = torch.zeros(n, k, dtype=torch.bool, device=device)
    for t in range(max_tokens):
        logits, state, _ = decoder.step(tokens.flatten(), state)
        logits = choosable(logits, temperature)
        tokens = draw(logits, randoms[places.flatten(), t]).view_as(places)
        if greedy:
            tokens = torch.where(places % k == 0, logits.argmax(dim=1).view_as(places), tokens)
        history.add(finished.flatten(), tokens.flatten(), decoder.critic_input(state).float())
        finished = finished | (tokens == EOS)

        if can_look(t, device):
            is_open = ~finished.cpu()
            if not is_open.any():
                break
            # All images keep equally many samples, those that have not ended first.
            if (most := int(is_open.sum(dim=1).max())) < finished.shape[1]:
                history.leave(places)
                order = finished.sort(dim=1, stable=True).indices[:, :most]
                rows = rows_of(torch.arange(len(places), device=device), finished.shape[1]).gather(1, order)
                history.select(rows)
                state = state.select(rows)
                places, tokens, finished = (x.gather(1, order) for x in (places, tokens, finished))
            if (kept := to_go_on_with(is_open.any(dim=1))) is not None:
                kept = kept.to(device)
                history.leave(places)
                history.select(rows_of(kept, most))
                state = state.select_images(kept)
                places, tokens, finished = places[kept], tokens[kept], finished[kept]
    captions, states = history.sequences(places, n * k)
    return Rollout(F.pad(captions, (1, 0), value=SOS), states)


def log_probabilities(
    decoder: Decoder, grid: torch.Tensor, captions: PackedCaptions, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probability of each token, and the entropy (nats) of its distribution, with gradients.

    Args:
        grid: (N, L, C).
        captions: those of a rollout.

    Returns:
        Both (P,).
    """
    logits, _ = decoder(grid, captions)
    log_probs = forbid(logits.float() / temperature, _IMPOSSIBLE).log_softmax(dim=1)  # as in `rollout`
    entropy = -(log_probs.exp() * log_probs).sum(dim=1)
    return log_probs.gather(1, captions.targets.unsqueeze(1)).squeeze(1), entropy
