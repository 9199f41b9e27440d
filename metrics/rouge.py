"""ROUGE-L (Lin, 2004) of captions: that of pycocoevalcap, without a table of all pairs of words."""

from pycocoevalcap.rouge.rouge import Rouge

from metrics.metric import Tokenized


def rouge_scores(texts: Tokenized) -> tuple[float, list[float]]:
    """The F-measure (beta 1.2) of the longest common subsequence: the mean over captions, and of each."""
    of_set, of_captions = _RougeL().compute_score(texts.references, texts.predictions)
    return float(of_set), of_captions.tolist()


class _RougeL(Rouge):
    """pycocoevalcap's scores to the last digit.

    Its table of the words of both captions takes minutes and gigabytes for captions of 10,000 words.
    """

    def calc_score(self, candidate: list[str], refs: list[str]) -> float:
        words = candidate[0].split(" ")
        references = [reference.split(" ") for reference in refs]
        common = [_common_subsequence(words, reference) for reference in references]
        precision = max(common) / len(words)
        recall = max(count / len(words) for count, words in zip(common, references, strict=True))
        if not precision or not recall:
            return 0.0
        return (1 + self.beta**2) * precision * recall / (recall + self.beta**2 * precision)


def _common_subsequence(a: list[str], b: list[str]) -> int:
    """The number of words in the longest common subsequence (Hyyrö, 2004).

    After each word of `b`, bit i of `row` is 0 where a[: i + 1] has a longer subsequence than a[:i].
    """
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    all_places = (1 << len(a)) - 1
    row = all_places
    for word in b:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & all_places
    return len(a) - row.bit_count()
