"""Beam search over a batch of images, of which each leaves when all its captions are finished."""

from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F

from models.beams import BestBeams, Candidates, beams_of
from models.captions import Captions, SearchOptions
from models.choices import NEVER, Rules, choosable
from models.decoder import Decoder
from models.ensemble import Ensemble
from models.history import History, can_look, to_go_on_with
from models.state import rows_of
from utils import EOS, SOS


def beam_search(decoder: Decoder | Ensemble, grid: Any, options: SearchOptions) -> Captions:
    """The K best captions of each image that a beam of K finds.

    A finished caption stays in the beam and competes by its score until all K captions of an image are
    finished. K = 1 is greedy search; if K is at least the number of possible captions, the search is
    exhaustive. After `max_length` words a caption must end.

    Beams are ranked by the probabilities with which words can be chosen, so <unk> has none. What the options
    forbid keeps its share of the probability: the search looks for the best of all captions, as the model
    sees them, that the options allow.
    """
    state: Any = decoder.start(grid)
    n, device = len(state.image_index), state.image_index.device
    beams, rules = beams_of(options, device), Rules(options, device)
    if beams.sections > 1:
        state = state.repeat(beams.sections)
    history = History(n * beams.sections, device)
    images = torch.arange(n, device=device)  # (N,), those that are still in the batch
    total = beams.first(n, device)  # (N, K) log-probability of each beam; at first there is one per section
    tokens = torch.full((total.numel(),), SOS, device=device)
    length, finished = torch.zeros_like(total), torch.zeros_like(total, dtype=torch.bool)
    num_places = beams.sections * beams.size  # of an image
    scores = torch.full((n, num_places), -torch.inf, device=device)  # of all images

    for t in range(options.max_length + 1):  # the words and <eos>
        logits, state, alphas = decoder.step(tokens, state)
        log_probs, own, words = _continuations(logits, beams, rules, history, t == options.max_length)
        (n, k), width = total.shape, words.shape[1]
        # A finished beam has one continuation: padding, with probability 1.
        log_probs = log_probs.view(n, k, width).masked_fill(finished.unsqueeze(2), -torch.inf)
        log_probs[:, :, 0].masked_fill_(finished, 0.0)

        longer = length + ~finished
        candidates = total.unsqueeze(2) + log_probs  # (N, K, W)
        divisor = longer.unsqueeze(2) ** options.length_penalty
        best_scores, best = beams.choose(
            Candidates(candidates / divisor, divisor, words.view(n, k, width), finished)
        )
        parent = best // width
        rows = torch.arange(n, device=device).unsqueeze(1) * k + parent  # (N, K) in the batch of this step

        total = candidates.flatten(1).gather(1, best).masked_fill(best_scores.isneginf(), -torch.inf)
        length, was_finished = longer.gather(1, parent), finished.gather(1, parent)
        word, log_prob = (x.view(n, -1).gather(1, best) for x in (words, own))
        finished, tokens = was_finished | (word == EOS), word.flatten()
        if num_places > 1:
            state, alphas = state.select(rows), None if alphas is None else alphas[rows.flatten()]
        history.select(rows)
        history.add(was_finished.flatten(), tokens, log_prob.flatten(), *([] if alphas is None else [alphas]))
        k = total.shape[1]
        places = rows_of(images, num_places)[:, beams.places(k)]
        scores.view(-1).index_copy_(0, places.flatten(), best_scores.flatten())

        if can_look(t, device):
            is_open = ~(finished | total.isneginf()).all(dim=1).cpu()
            if not is_open.any():
                break
            if (kept := to_go_on_with(is_open)) is not None:
                kept = kept.to(device)
                history.leave(places)
                history.select(rows_of(kept, k))
                state, tokens, images = state.select_images(kept), word[kept].flatten(), images[kept]
                total, length, finished = total[kept], length[kept], finished[kept]

    places = rows_of(images, num_places)[:, beams.places(k)]
    tokens, log_probs, *attention = (
        x.unflatten(0, scores.shape)[:, beams.places(k)] for x in history.sequences(places, scores.numel())
    )
    found = Captions(tokens, log_probs, scores[:, beams.places(k)], attention[0] if attention else None)
    return beams.result(found)


def _continuations(
    logits: torch.Tensor, beams: BestBeams, rules: Rules, history: History, must_end: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tokens with which each beam is continued: the most likely ones that may follow, and required ones.

    Args:
        logits: (B, V).
        must_end: only <eos> may follow.

    Returns:
        The logarithms of the tokens' probabilities among all tokens but <unk>, which beams are ranked by, and
        of the model's own; and the tokens, best first: (B, W) each.
    """
    may_follow = choosable(logits)
    log_probs = may_follow.log_softmax(dim=1)
    if must_end:
        words, best = torch.full((len(logits), 1), EOS, device=logits.device), log_probs[:, EOS : EOS + 1]
    else:
        rules.apply(log_probs, history)
        best, words = beams.likely(log_probs)
    # With a and b the logarithms of sum exp(logit) over what may follow and over the rest, the first has the
    # model's own probability 1 / (1 + e^(b - a)). A second softmax over all words would be another pass.
    a = may_follow.gather(1, words[:, :1]) - best[:, :1]
    b = reduce(torch.logaddexp, (logits[:, token].float() for token in NEVER)).unsqueeze(1)
    return best, best + F.logsigmoid(a - b), words
