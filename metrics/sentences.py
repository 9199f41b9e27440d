"""Scores of single captions, to find the worst ones by; a model is judged by scores.py, over a whole set."""

from collections.abc import Mapping, Sequence

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from data.tokenizer import tokenize


def sentence_scores(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """CIDEr (0 to 10), BLEU-4 and ROUGE-L (0 to 1) of each caption, by image.

    references: of these images, and of as many more as there are: CIDEr weighs a phrase by how rare it is
    among the references of all images (Vedantam et al., 2015, equation 2); over a handful it says little.
    BLEU-4 of one sentence is 0 as soon as it shares no four words in a row with a reference.
    """
    tokens = {image: [_words(caption) for caption in group] for image, group in references.items()}
    said = {image: [_words(captions.get(image, ""))] for image in tokens}
    _, cider = Cider().compute_score(tokens, said)
    weighed = dict(zip(tokens, cider, strict=True))

    tokens, said = {image: tokens[image] for image in captions}, {image: said[image] for image in captions}
    _, bleu = Bleu(4).compute_score(tokens, said, verbose=0)
    _, rouge = Rouge().compute_score(tokens, said)
    return {
        image: {"CIDEr": float(weighed[image]), "BLEU-4": float(bleu4), "ROUGE-L": float(rouge_l)}
        for image, bleu4, rouge_l in zip(tokens, bleu[3], rouge, strict=True)
    }


def _words(caption: str) -> str:
    """The tokens joined by spaces: the form that pycocoevalcap's scorers take."""
    return " ".join(tokenize(caption))
