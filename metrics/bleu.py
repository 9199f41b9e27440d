"""BLEU-1 to BLEU-4 (Papineni et al., 2002) of a set of captions and of each caption in it."""

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

from metrics.metric import Tokenized


def bleu_scores(texts: Tokenized) -> tuple[list[float], list[list[float]]]:
    """pycocoevalcap's BLEU, except that it is 0 if a caption shares no word with its references.

    pycocoevalcap adds 1e-15 to each count of matches, so its BLEU is about 1e-16 in that case.

    Returns the four scores of the set, and four lists of N scores, one per caption.
    """
    of_set, of_captions = Bleu(4).compute_score(texts.references, texts.predictions, verbose=0)
    shares = [
        _shares_a_word(caption, group)
        for [caption], group in zip(texts.predictions.values(), texts.references.values(), strict=True)
    ]
    of_set = [score if any(shares) else 0.0 for score in of_set]
    of_captions = [
        [score if any_shared else 0.0 for score, any_shared in zip(scores, shares, strict=True)]
        for scores in of_captions
    ]
    return of_set, of_captions


def bleu_counts(texts: Tokenized) -> np.ndarray:
    """What BLEU is computed from, a row for each caption; the counts of a set are the sum of its rows.

    Returns (N, 10) float64: matching n-grams for n from 1 to 4, n-grams for n from 1 to 4, the number of
    words, and the number of words of the reference of the nearest length.
    """
    counts = [
        cook_test(caption, cook_refs(group), eff="closest")
        for [caption], group in zip(texts.predictions.values(), texts.references.values(), strict=True)
    ]
    return np.array([[*c["correct"], *c["guess"], c["testlen"], c["reflen"]] for c in counts], float)


def bleu_of_counts(counts: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-4 (..., 4) of summed counts (..., 10), the same as those of `bleu_scores`."""
    matches, grams, words, nearest = np.split(counts, (4, 8, 9), axis=-1)
    small, tiny = 1e-9, 1e-15  # as in pycocoevalcap, to avoid a division by zero
    precision = np.cumprod((matches + tiny) / (grams + small), axis=-1) ** (1 / np.arange(1, 5))
    ratio = (words + tiny) / (nearest + small)
    return np.where(matches[..., :1] > 0, precision * np.exp(np.minimum(1 - 1 / ratio, 0)), 0.0)


def _shares_a_word(caption: str, references: list[str]) -> bool:
    words = set(caption.split())
    return any(not words.isdisjoint(reference.split()) for reference in references)
