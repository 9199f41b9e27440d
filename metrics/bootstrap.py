"""Whether one set of captions scores better than another by more than chance: paired bootstrap (Koehn, 2004).

A resample draws as many images as there are, with replacement, and both sets are scored on the same draw. The
middle 95 % of the differences over 1,000 resamples are the interval. An interval that contains 0 means that
other images of the same kind may well turn the order around.

Each score of a set is computed from sums over its images, so a resample only needs other sums, not new
n-grams. CIDEr's weights of n-grams stay those of the whole set.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pycocoevalcap.cider.cider import Cider

from metrics.bleu import bleu_counts, bleu_of_counts
from metrics.meteor import meteor_of_statistics, meteor_statistics
from metrics.metric import MetricError, Tokenized, tokenized_texts
from metrics.rouge import rouge_scores

_RESAMPLES = 1_000
_SEED = 0
_QUANTILES = (0.025, 0.975)


class Comparison(NamedTuple):
    """One score of two sets of captions of the same images."""

    score: float
    other: float
    difference: float  # score - other
    low: float  # the interval of the difference
    high: float


class _Statistics(NamedTuple):
    """Scores of a set as a function of sums over its images."""

    names: tuple[str, ...]  # of the S scores, as in metrics/scores.py
    rows: Callable[[Tokenized], np.ndarray]  # (N, D), to be summed; may raise MetricError
    scores: Callable[[np.ndarray], np.ndarray]  # sums (R, D) -> (R, S)


def _of_means(scores: Callable[[Tokenized], Sequence[float]]) -> Callable[[Tokenized], np.ndarray]:
    """The rows (N, 1) of a score that is the mean of the scores of single captions."""

    def rows(texts: Tokenized) -> np.ndarray:
        of_captions = np.asarray(scores(texts), float)
        return of_captions[:, None] / len(of_captions)

    return rows


_STATISTICS = (
    _Statistics(("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"), bleu_counts, bleu_of_counts),
    _Statistics(("ROUGE-L",), _of_means(lambda texts: rouge_scores(texts)[1]), lambda sums: sums),
    _Statistics(
        ("CIDEr",),
        _of_means(lambda texts: Cider().compute_score(texts.references, texts.predictions)[1]),
        lambda sums: sums,
    ),
    _Statistics(("METEOR",), meteor_statistics, lambda sums: meteor_of_statistics(sums)[:, None]),
)


def compare(
    captions: Mapping[str, str], others: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, Comparison]:
    """Score name -> the comparison of two captions per image, in the order of metrics/scores.py.

    captions, others: of the same images; references: of at least these images. METEOR is absent if it cannot
    be computed. The same input gives the same result: the resamples are drawn with a fixed seed.
    """
    both = [
        tokenized_texts({image: texts[image] for image in captions}, references)
        for texts in (captions, others)
    ]
    compared: dict[str, Comparison] = {}
    for statistics in _STATISTICS:
        try:
            first, second = (statistics.scores(_resampled_sums(statistics.rows(texts))) for texts in both)
        except MetricError:
            continue
        low, high = np.quantile(first[1:] - second[1:], _QUANTILES, axis=0)
        columns = zip(first[0], second[0], first[0] - second[0], low, high, strict=True)
        compared |= {
            name: Comparison(*map(float, values))
            for name, values in zip(statistics.names, columns, strict=True)
        }
    return compared


def comparison_table(compared: Mapping[str, Comparison]) -> str:
    """A line for each score; an interval that contains 0 is marked."""
    lines = [f"  {'':<9} {'this':>6} {'other':>6} {'difference':>10}  95 % interval"]
    for name, (score, other, difference, low, high) in compared.items():
        interval = f"{low:+z.3f} to {high:+z.3f}"
        remark = "  contains 0" if low <= 0 <= high else ""
        lines.append(f"  {name:<9} {score:6.3f} {other:6.3f} {difference:+z10.3f}  {interval}{remark}")
    return "\n".join(lines)


def _resampled_sums(rows: np.ndarray) -> np.ndarray:
    """The sums of rows (N, D) over all images, then over each resample: (1 + R, D).

    The same resamples for all scores and for both sets.
    """
    num_images, generator = len(rows), np.random.default_rng(_SEED)
    draws = (generator.integers(num_images, size=num_images) for _ in range(_RESAMPLES))
    counts = (np.bincount(draw, minlength=num_images) for draw in draws)
    return np.stack([rows.sum(axis=0), *(count @ rows for count in counts)])
