"""Which words may follow, and how one of them is drawn."""

import torch

from models.captions import SearchOptions
from models.history import History
from utils import EOS, PAD, SOS, UNK

NEVER = (PAD, SOS, UNK)  # no caption contains these
# Bits of the random number that draws a word, and of a probability: their product fits into 63 bits.
RANDOM_BITS, _PROBABILITY_BITS = 30, 32
_COLDEST = 1e-30  # temperature; a lower one divides 0 by something that float32 rounds to 0


def choosable(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """A copy of logits (B, V) in float32 to choose the next word by, with -inf for what is never chosen."""
    return forbid(logits.float() * (1 / temperature))


def forbid(scores: torch.Tensor, value: float = -torch.inf) -> torch.Tensor:
    """Set what is never chosen to `value`, in place, in scores (B, V) of words."""
    for token in NEVER:  # as one index, they would first have to be copied to the device
        scores[:, token] = value
    return scores


class Rules:
    """What `search.exclude`, `search.no_repeat` and `search.min_length` forbid, step by step."""

    def __init__(self, options: SearchOptions, device: torch.device):
        self.exclude = torch.tensor(options.exclude, device=device) if options.exclude else None
        self.no_repeat, self.min_length = options.no_repeat, options.min_length

    def apply(self, scores: torch.Tensor, history: History) -> None:
        """Set what must not follow to -inf, in place, in scores (B, V) of the next word.

        Where nothing else may follow, a caption may end before it has `min_length` words.

        Args:
            history: its first tensor is the tokens so far.
        """
        if self.exclude is not None:
            scores.index_fill_(1, self.exclude, -torch.inf)
        if 0 < self.no_repeat <= len(history.steps):
            scores.scatter_(1, _repeating(history.so_far(), self.no_repeat), -torch.inf)
        if len(history.steps) < self.min_length:
            end = scores[:, EOS].clone()
            scores[:, EOS] = -torch.inf
            scores[:, EOS] = end.where(scores.isneginf().all(dim=1), scores[:, EOS])


def _repeating(tokens: torch.Tensor, n: int) -> torch.Tensor:
    """The tokens that would make the last n of a sequence (B, t) occur in it twice: (B, t - n + 1).

    Places where there is none are <pad>.
    """
    ngrams = tokens.unfold(1, n, 1)  # (B, t - n + 1, n)
    last = tokens[:, tokens.shape[1] - n + 1 :].unsqueeze(1)
    return ngrams[:, :, -1].where((ngrams[:, :, :-1] == last).all(dim=2), PAD)


def draw(logits: torch.Tensor, randoms: torch.Tensor) -> torch.Tensor:
    """One token (B,) from the softmax of each row of `choosable` logits (B, V).

    It is the first word up to which the probabilities add up to more than a random number: one number per
    row, where `multinomial` draws one for each word. The sums are of integers, which is exact in any order.

    Where nothing is probable, or a model that is not finite has made everything NaN, it is any word:
    `multinomial` would raise an error, but a loss that is not finite only skips a step.

    Args:
        randoms: (B,) int64, evenly distributed over [0, 2^RANDOM_BITS).
    """
    probabilities = forbid(logits.softmax(dim=1).nan_to_num(1 / logits.shape[1]), 0.0)
    sums = (probabilities * 2**_PROBABILITY_BITS).long().cumsum(dim=1)
    # Not the remainder, for which a rounding error in one of the probabilities would be a different number.
    threshold = randoms.unsqueeze(1) * sums[:, -1:] >> RANDOM_BITS
    return torch.searchsorted(sums, threshold, right=True).squeeze(1)


def temper(log_probs: torch.Tensor, temperature: float) -> torch.Tensor:
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
