"""Captions in, scores out: BLEU, ROUGE-L, CIDEr and METEOR as the COCO caption evaluation computes them.

The scorers are pycocoevalcap's. The tokens are ours (data/tokenizer.py), so only METEOR needs Java.
"""

from collections.abc import Collection, Mapping, Sequence

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from data.tokenizer import tokenize
from metrics.meteor import MeteorError, meteor

BLEU = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
METRICS = (*BLEU, "ROUGE-L", "CIDEr", "METEOR")

# Articles, prepositions, conjunctions and possessives, after which something is missing ("a man with a"): not
# those that may end a sentence as adverbs ("a dog jumps over"). Of Flickr8k's own captions 0.8 % end in one
# of these, most of them in "looks on" and "passes by".
CANNOT_END = frozenset(
    """
    a an the about across after against along among as at before beside between by during for from in into
    like near of on onto through to toward towards until upon with within without and or but while his its
    their is are
    """.split()
)


class Scorer:
    """Scores captions against one set of references, which is tokenised once.

    references: image name -> its captions, as people wrote them. Raises ValueError where an image has none,
    or no caption of all contains a word.
    left_out: after `score`, the metrics that could not be computed, and why in one line:
    {"METEOR": "no Java found (install ...)"}.
    """

    def __init__(self, references: Mapping[str, Sequence[str]]):
        self.left_out: dict[str, str] = {}
        self._references = {
            image: [_words(caption) for caption in captions] for image, captions in references.items()
        }
        if empty := [image for image, captions in self._references.items() if not captions]:
            raise ValueError(f"no reference caption for {_some(empty)}")
        if not any(map(any, self._references.values())):
            raise ValueError("no reference caption contains a word")

    def score(
        self, predictions: Mapping[str, str], metrics: Collection[str] | None = None
    ) -> dict[str, float]:
        """The scores of one caption per image, over the whole set.

        metrics: which of METRICS to compute (None: all). METEOR starts Java and takes seconds; leave it out
        while training.
        Returns metric -> score, in the order of METRICS: between 0 and 1, CIDEr between 0 and 10. METEOR is
        absent where Java is missing or fails; `left_out` then says why. An empty caption scores 0.
        Raises ValueError for an unknown metric, and where predictions and references name different images.
        """
        wanted = METRICS if metrics is None else metrics
        if unknown := [name for name in wanted if name not in METRICS]:
            raise ValueError(f"unknown metric {_some(unknown)}; known: {', '.join(METRICS)}")
        if extra := [image for image in predictions if image not in self._references]:
            raise ValueError(f"predictions without reference: {_some(extra)}")
        if missing := [image for image in self._references if image not in predictions]:
            raise ValueError(f"references without prediction: {_some(missing)}")

        references = self._references
        words = {image: [_words(predictions[image])] for image in references}
        scores: dict[str, float] = {}
        self.left_out = {}
        if any(name in wanted for name in BLEU):
            bleu, _ = Bleu(4).compute_score(references, words, verbose=0)
            scores.update(zip(BLEU, bleu, strict=True))
        if "ROUGE-L" in wanted:
            scores["ROUGE-L"], _ = Rouge().compute_score(references, words)
        if "CIDEr" in wanted:
            scores["CIDEr"], _ = Cider().compute_score(references, words)
        if "METEOR" in wanted:
            try:
                scores["METEOR"] = meteor(
                    [caption for [caption] in words.values()], list(references.values())
                )
            except MeteorError as error:
                self.left_out["METEOR"] = str(error)
        return {name: float(score) for name, score in scores.items() if name in wanted}


def score(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Collection[str] | None = None,
) -> dict[str, float]:
    """`Scorer(references).score(predictions, metrics)`, for scoring once."""
    return Scorer(references).score(predictions, metrics)


def caption_statistics(
    predictions: Mapping[str, str], vocabulary_size: int | None = None
) -> dict[str, float]:
    """How varied the captions are: BLEU and CIDEr do not notice that a model says the same of every image.

    Returns `distinct_captions` (share, 0 to 1), `distinct_words` (count), `mean_length` (words per caption),
    `dangling_endings` (share, 0 to 1, of the captions whose last word is one of CANNOT_END) and, given the
    number of words of the vocabulary, `vocabulary_used` (share, 0 to 1).
    Raises ValueError where there is no caption.
    """
    if not predictions:
        raise ValueError("no captions to describe")
    captions = [tuple(tokenize(caption)) for caption in predictions.values()]
    words = {word for caption in captions for word in caption}
    statistics = {
        "distinct_captions": len(set(captions)) / len(captions),
        "distinct_words": len(words),
        "mean_length": sum(map(len, captions)) / len(captions),
        "dangling_endings": sum(caption[-1] in CANNOT_END for caption in captions if caption) / len(captions),
    }
    if vocabulary_size:
        statistics["vocabulary_used"] = len(words) / vocabulary_size
    return statistics


def _words(caption: str) -> str:
    """The tokens joined by spaces: the form that pycocoevalcap's scorers take."""
    return " ".join(tokenize(caption))


def _some(names: Sequence[str]) -> str:
    """Up to three of the names, and how many more there are."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(str, names[:3])) + rest
