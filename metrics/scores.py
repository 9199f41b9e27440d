"""The list of metrics, and the Scorer that computes them as the COCO caption evaluation does.

The scores are computed by pycocoevalcap from the tokens of data/tokenizer.py, so only METEOR needs Java.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache, partial

from pycocoevalcap.cider.cider import Cider

from metrics.bleu import bleu_scores
from metrics.meteor import meteor
from metrics.metric import Metric, MetricError, Tokenized, tokenized
from metrics.rouge import rouge_scores
from utils import UserError


def _bleu(n: int, texts: Tokenized) -> float:
    return _bleu_1_to_4(texts)[n - 1]


@lru_cache(maxsize=1)  # so that BLEU-1 to BLEU-4 of the same captions are computed once
def _bleu_1_to_4(texts: Tokenized) -> list[float]:
    return bleu_scores(texts)[0]


def _rouge_l(texts: Tokenized) -> float:
    """Lin (2004): the F-measure (beta 1.2) of the longest common subsequence, mean over captions."""
    return rouge_scores(texts)[0]


def _cider(texts: Tokenized) -> float:
    """CIDEr-D (Vedantam et al., 2015), between 0 and 10; the references determine the weights of phrases."""
    return Cider().compute_score(texts.references, texts.predictions)[0]


# Scores, columns of loss_log.txt, curves, tables and the values of train.monitor are derived from this list.
METRICS = (
    Metric("BLEU-1", partial(_bleu, 1), in_curves=False),
    Metric("BLEU-2", partial(_bleu, 2), in_curves=False),
    Metric("BLEU-3", partial(_bleu, 3), in_curves=False),
    Metric("BLEU-4", partial(_bleu, 4)),
    Metric("ROUGE-L", _rouge_l, in_curves=False),
    Metric("CIDEr", _cider),
    Metric("METEOR", meteor, in_validation=False, in_curves=False),
)
_FORMATS = {metric.name: metric.format for metric in METRICS}
VALIDATION_METRICS = tuple(metric for metric in METRICS if metric.in_validation)


class Scorer:
    """Scores captions against one set of references, which is tokenised once.

    left_out: after `score`, the metrics that could not be computed, and why in one line:
    {"METEOR": "no Java found (install ...)"}.
    """

    def __init__(self, references: Mapping[str, Sequence[str]], metrics: Sequence[Metric] = METRICS):
        """`references`: image name -> its captions as text, not tokenised.

        Raises UserError if an image has no captions, or if no caption contains a word.
        """
        self.metrics = metrics
        self.left_out: dict[str, str] = {}
        self.references = {
            image: [tokenized(caption) for caption in captions] for image, captions in references.items()
        }
        if empty := [image for image, captions in self.references.items() if not captions]:
            raise UserError(f"no reference captions for {some(empty)}; leave these images out")
        if not any(map(any, self.references.values())):
            raise UserError("no reference caption contains a word; check the captions file")

    def score(self, predictions: Mapping[str, str]) -> dict[str, float]:
        """The scores of one caption per image, over the whole set.

        Returns metric name -> score, in the order of the metrics: between 0 and 1, CIDEr between 0 and 10. A
        metric that cannot be computed is absent, and `left_out` gives the reason: METEOR needs Java. An empty
        caption scores 0.
        Raises ValueError if predictions and references have different images.
        """
        if extra := [image for image in predictions if image not in self.references]:
            raise ValueError(f"predictions without reference: {some(extra)}")
        if missing := [image for image in self.references if image not in predictions]:
            raise ValueError(f"references without prediction: {some(missing)}")

        captions = {image: [tokenized(predictions[image])] for image in self.references}
        texts = Tokenized(captions, self.references)
        scores, self.left_out = {}, {}
        for metric in self.metrics:
            try:
                scores[metric.name] = float(metric.compute(texts))
            except MetricError as error:
                self.left_out[metric.name] = str(error)
        return scores


def score_set(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[dict[str, float], dict[str, str]]:
    """All scores of a set of captions, and the metrics that were left out with the reason.

    predictions: image name -> caption; references: image name -> captions. References of other images are
    ignored.
    Raises UserError if no reference caption contains a word.
    """
    scorer = Scorer({image: references[image] for image in predictions})
    return scorer.score(predictions), scorer.left_out


def scores_table(scores: Mapping[str, float], left_out: Mapping[str, str]) -> str:
    """One line per metric: its score, or why it was left out."""
    lines = {name: f"{scores[name]:{form}}" for name, form in _FORMATS.items() if name in scores}
    lines |= {name: f"left out: {reason}" for name, reason in left_out.items()}
    return "\n".join(f"  {name:<18} {text}" for name, text in lines.items())


def some(names: Collection[str]) -> str:
    """Up to three of the names, and how many more there are."""
    rest = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(list(names)[:3]) + rest
