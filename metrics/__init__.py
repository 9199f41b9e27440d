"""Captions in, scores out: BLEU, ROUGE-L, CIDEr, METEOR and caption statistics."""

from metrics.scores import METRICS, Scorer, caption_statistics, score

__all__ = ["METRICS", "Scorer", "caption_statistics", "score"]
