"""Captions in, scores out: BLEU, ROUGE-L, CIDEr and METEOR."""

from metrics.metric import Metric
from metrics.scores import METRICS, Scorer

__all__ = ["METRICS", "Metric", "Scorer"]
