"""Sampling: each word is drawn at random."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from models.captions import Captions, SearchOptions
from models.choices import Rules, cut_tail, forbid, temper
from models.decoder import Decoder
from models.ensemble import Ensemble
from models.history import History, can_look, to_go_on_with
from models.state import rows_of
from utils import EOS, SOS


def sample(
    decoder: Decoder | Ensemble, grid: Any, options: SearchOptions, indices: Sequence[int] | None = None
) -> Captions:
    """One caption per image, or K = `options.num_sequences`, with each word drawn at random.

    A `temperature` below 1 sharpens the model's distribution, above 1 it flattens it. `top_k` and `top_p`
    (nucleus sampling: Holtzman et al., 2020) cut off its tail. The same seed draws the same captions for an
    image with the same index, whatever else is in the batch.

    A draw is the word with the largest sum of log-probability and Gumbel noise (Maddison et al., 2014). The
    sum does not need probabilities that add up to 1, and it is defined however improbable the words are.
    """
    state: Any = decoder.start(grid)
    k = options.num_sequences
    n, device = len(state.image_index), state.image_index.device
    randoms = [_generators(options.seed, index, k) for index in (range(n) if indices is None else indices)]
    if k > 1:
        state = state.repeat(k)
    history, rules = History(n * k, device), Rules(options, device)
    images, tokens = torch.arange(n, device=device), torch.full((n * k,), SOS, device=device)
    finished = torch.zeros(n, k, dtype=torch.bool, device=device)
    for t in range(options.max_length + 1):
        logits, state, alphas = decoder.step(tokens, state)
        log_probs = logits.float().log_softmax(dim=1)
        allowed = forbid(log_probs.clone())
        rules.apply(allowed, history)
        if t == options.max_length:  # all but <eos>
            allowed[:, :EOS] = allowed[:, EOS + 1 :] = -torch.inf
        allowed = cut_tail(temper(allowed, options.temperature), options.top_k, options.top_p)
        noise = np.stack(
            [random.gumbel(size=allowed.shape[1]) for of_image in randoms for random in of_image]
        )
        noise = noise.astype(np.float32)
        tokens = (allowed + torch.from_numpy(noise).to(device, non_blocking=True)).argmax(dim=1)
        log_prob = log_probs.gather(1, tokens.unsqueeze(1)).squeeze(1)
        history.add(finished.flatten(), tokens, log_prob, *([] if alphas is None else [alphas]))
        finished = finished | (tokens == EOS).view(-1, k)
        if can_look(t, device):
            is_open = ~finished.all(dim=1).cpu()
            if not is_open.any():
                break
            if (kept := to_go_on_with(is_open)) is not None:
                randoms, kept = [randoms[i] for i in kept.tolist()], kept.to(device)
                history.leave(rows_of(images, k))
                history.select(rows_of(kept, k))
                state, images, finished = state.select_images(kept), images[kept], finished[kept]
                tokens = tokens.view(-1, k)[kept].flatten()
    tokens, log_probs, *attention = (
        x.unflatten(0, (n, k)) for x in history.sequences(rows_of(images, k), n * k)
    )
    return Captions(tokens, log_probs, log_probs.sum(dim=2), attention[0] if attention else None)


def _generators(seed: int, index: int, number: int) -> list[np.random.Generator]:
    """The random numbers of each sample of an image."""
    return [np.random.default_rng((seed, index, k) if k else (seed, index)) for k in range(number)]
