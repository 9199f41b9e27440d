"""Which beams of an image go on: the best ones, those of diverse groups, or those with required words.

The beams of an image are divided into sections of equal size, which are next to each other. A section has its
own best beams: those of another section do not displace them.
"""

from typing import NamedTuple

import torch

from models.captions import Captions, SearchOptions
from models.choices import NEVER
from utils import PAD


class Candidates(NamedTuple):
    """The continuations of each beam: K beams of each of N images, each with W tokens."""

    scores: torch.Tensor  # (N, K, W) log-probability / divisor
    divisor: torch.Tensor  # (N, K, 1) length^penalty
    words: torch.Tensor  # (N, K, W) tokens
    finished: torch.Tensor  # (N, K) whether the beam has ended; then only its first candidate is possible


class BestBeams:
    """The best of all: plain beam search."""

    sections = 1

    def __init__(self, options: SearchOptions):
        self.width = options.beam  # tokens with which a beam may go on
        self.size = options.beam // self.sections  # beams of a section

    def first(self, n: int, device: torch.device) -> torch.Tensor:
        """The log-probabilities (N, sections) of the beams before the first word."""
        return torch.zeros(n, self.sections, device=device)

    def likely(self, log_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the tokens (B, V) that may follow, those with which a beam goes on, best first: (B, W) each."""
        return log_probs.topk(min(self.width, log_probs.shape[1] - len(NEVER)), dim=1)

    def choose(self, candidates: Candidates) -> tuple[torch.Tensor, torch.Tensor]:
        """The scores (N, K') of the next beams, and their numbers among the K W candidates of an image.

        Where there are too few candidates, the score is -inf.
        """
        scores = candidates.scores.flatten(1)
        return scores.topk(min(self.size, scores.shape[1]), dim=1)

    def places(self, k: int) -> slice | torch.Tensor:
        """Where the K beams of an image are among the `sections * size` that it may have."""
        if self.sections == 1:
            return slice(k)
        places = torch.arange(self.sections * self.size).unflatten(0, (self.sections, -1))
        return places[:, : k // self.sections].flatten()

    def result(self, captions: Captions) -> Captions:
        """From the captions of all sections: those to return, best first."""
        return captions


class DiverseBeams(BestBeams):
    """Groups of beams, of which each avoids the words of the groups before it (Vijayakumar et al., 2018).

    From the log-probability of a word, `search.diversity` is subtracted for each beam of the earlier groups
    that goes on with this word at the same step (Hamming diversity, equation 5). Only the choice among the
    candidates depends on it, not their scores at later steps.
    """

    def __init__(self, options: SearchOptions):
        self.sections, self.diversity = options.groups, options.diversity
        super().__init__(options)

    def choose(self, candidates: Candidates) -> tuple[torch.Tensor, torch.Tensor]:
        words = candidates.words.masked_fill(candidates.finished.unsqueeze(2), PAD)
        divisor = candidates.divisor.expand_as(words)
        groups = [x.unflatten(1, (self.sections, -1)).flatten(2) for x in (candidates.scores, divisor, words)]
        chosen = words.new_empty(len(words), 0)  # (N, beams of earlier groups)
        found = []
        for g, (scores, divisor, words) in enumerate(zip(*(x.unbind(1) for x in groups), strict=True)):
            number = (words.unsqueeze(2) == chosen.unsqueeze(1)).sum(dim=2)
            penalised = scores - self.diversity * number / divisor
            best = penalised.topk(min(self.size, words.shape[1]), dim=1).indices
            word = words.gather(1, best)
            chosen = torch.cat([chosen, word.masked_fill(word == PAD, -1)], dim=1)  # an end is no word
            found.append((scores.gather(1, best), best + g * words.shape[1]))
        scores, best = (torch.cat(x, dim=1) for x in zip(*found, strict=True))
        return scores, best

    def result(self, captions: Captions) -> Captions:
        return captions.select(captions.scores.sort(dim=1, descending=True, stable=True).indices)


class ConstrainedBeams(BestBeams):
    """A section for each subset of the required words (Anderson et al., 2017).

    Section s has the beams in which those required words have occurred that are the bits of s. Each beam is
    continued with its most likely words, and with each required word, which leads to another section.
    """

    def __init__(self, options: SearchOptions, device: torch.device):
        super().__init__(options)
        self.sections = 2 ** len(options.include)
        bits: dict[int, int] = {}  # of each required word; alternatives share a bit
        for bit, tokens in enumerate(options.include):
            for token in tokens:
                bits[token] = bits.get(token, 0) | 1 << bit
        self.required = torch.tensor(list(bits), device=device)  # (R,)
        self.bits = torch.tensor(list(bits.values()), device=device)

    def first(self, n: int, device: torch.device) -> torch.Tensor:
        total = super().first(n, device)
        total[:, 1:] = -torch.inf  # no required word has occurred
        return total

    def likely(self, log_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        best, words = super().likely(log_probs.index_fill(1, self.required, -torch.inf))
        best = torch.cat([best, log_probs[:, self.required]], dim=1)
        words = torch.cat([words, self.required.expand(len(words), -1)], dim=1)
        best, order = best.sort(dim=1, descending=True)
        return best, words.gather(1, order)

    def choose(self, candidates: Candidates) -> tuple[torch.Tensor, torch.Tensor]:
        scores = candidates.scores.flatten(1).unsqueeze(1)  # (N, 1, K W)
        subsets = torch.arange(self.sections, device=scores.device)
        before = subsets.repeat_interleave(candidates.words.shape[1] // self.sections)
        is_required = candidates.words.unsqueeze(3) == self.required
        added = (is_required * self.bits).sum(dim=3).masked_fill(candidates.finished.unsqueeze(2), 0)
        after = before.unsqueeze(1) | added  # (N, K, W)
        belongs = after.flatten(1).unsqueeze(1) == subsets.unsqueeze(1)  # (N, sections, K W)
        found = scores.where(belongs, -torch.inf).topk(min(self.size, scores.shape[2]), dim=2)
        return found.values.flatten(1), found.indices.flatten(1)

    def result(self, captions: Captions) -> Captions:
        """Those with all words."""
        k = captions.scores.shape[1] // self.sections
        return Captions(*(None if x is None else x[:, -k:] for x in captions))  # type: ignore[arg-type]


def beams_of(options: SearchOptions, device: torch.device) -> BestBeams:
    """The beams that the options ask for."""
    if options.include:
        return ConstrainedBeams(options, device)
    return DiverseBeams(options) if options.groups > 1 else BestBeams(options)
