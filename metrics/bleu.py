"""BLEU-1 to BLEU-4 (Papineni et al., 2002) of a set of captions and of each caption in it."""

from pycocoevalcap.bleu.bleu import Bleu

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


def _shares_a_word(caption: str, references: list[str]) -> bool:
    words = set(caption.split())
    return any(not words.isdisjoint(reference.split()) for reference in references)
