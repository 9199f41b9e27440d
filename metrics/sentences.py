"""Scores of single captions, to find the worst ones. Models are compared by scores of sets (scores.py)."""

from collections.abc import Mapping, Sequence

from pycocoevalcap.cider.cider import Cider

from metrics.bleu import bleu_scores
from metrics.metric import Tokenized, tokenized
from metrics.rouge import rouge_scores


def sentence_scores(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """CIDEr (0 to 10), BLEU-4 and ROUGE-L (0 to 1) of each caption, by image name.

    references: those of these images and of as many others as possible: CIDEr weights a phrase by how rare it
    is in the references of all images (Vedantam et al., 2015, equation 1), for which a few images are not
    enough.
    BLEU-4 of one sentence is almost 0 if it shares no four consecutive words with a reference, and 0 if it
    shares no word.
    """
    every = {image: [tokenized(caption) for caption in group] for image, group in references.items()}
    predictions = {image: [tokenized(captions.get(image, ""))] for image in every}
    _, ciders = Cider().compute_score(every, predictions)
    cider = dict(zip(every, ciders, strict=True))

    texts = Tokenized(
        {image: predictions[image] for image in captions}, {image: every[image] for image in captions}
    )
    _, (*_, bleus) = bleu_scores(texts)
    _, rouges = rouge_scores(texts)
    return {
        image: {"CIDEr": float(cider[image]), "BLEU-4": float(bleu_4), "ROUGE-L": rouge_l}
        for image, bleu_4, rouge_l in zip(captions, bleus, rouges, strict=True)
    }
