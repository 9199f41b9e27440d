"""How varied captions are, and how many break off: what BLEU and CIDEr do not show."""

from collections.abc import Mapping

from data.tokenizer import tokenize

# Articles, prepositions, conjunctions and possessives, after which something is missing ("a man with a").
# Prepositions that may end a sentence as adverbs ("a dog jumps over") are not among them. Of Flickr8k's own
# captions 0.8 % end in one of these words, most of them in "looks on" and "passes by".
_CANNOT_END = frozenset(
    """
    a an the about across after against along among as at before beside between by during for from in into
    like near of on onto through to toward towards until upon with within without and or but while his its
    their is are
    """.split()
)


def caption_statistics(captions: Mapping[str, str], vocab_size: int | None = None) -> dict[str, float]:
    """Statistics of captions by image name; a model that gives every image the same caption shows up here.

    Returns `distinct_captions` (share, 0 to 1), `distinct_words` (count), `mean_length` (words per caption),
    `dangling_endings` (share, 0 to 1, of the captions that end in a word such as "a" or "with") and, given
    the size of the vocabulary without special tokens, `vocabulary_used` (share, 0 to 1).
    Raises ValueError if there are no captions.
    """
    if not captions:
        raise ValueError("no captions to describe")
    sentences = [tuple(tokenize(caption)) for caption in captions.values()]
    words = {word for sentence in sentences for word in sentence}
    dangling = sum(sentence[-1] in _CANNOT_END for sentence in sentences if sentence)
    statistics = {
        "distinct_captions": len(set(sentences)) / len(sentences),
        "distinct_words": len(words),
        "mean_length": sum(map(len, sentences)) / len(sentences),
        "dangling_endings": dangling / len(sentences),
    }
    if vocab_size:
        statistics["vocabulary_used"] = len(words) / vocab_size
    return statistics
