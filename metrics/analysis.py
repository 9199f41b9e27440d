"""What a model's captions get right and wrong, beyond the scores of the whole set."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from data.tokenizer import tokenize
from metrics.bootstrap import Comparison, compare, comparison_table
from metrics.categories import CategoryScore, Words, category_scores, find_words, read_categories
from metrics.sentences import sentence_scores


@dataclass(frozen=True)
class Lengths:
    """Lengths in words, and novelty, of captions."""

    mean: float
    shortest: int
    longest: int
    novelty: float | None  # 0 to 1, the share that is not a training caption; None without training captions


class Others(NamedTuple):
    """Captions of the same images to compare with."""

    source: str  # the file they are from
    captions: Mapping[str, str]  # by image name


@dataclass(frozen=True)
class Analysis:
    """The captions of a set of images, and what is right and wrong about them."""

    captions: Mapping[str, str]  # by image name, as all that follows
    references: Mapping[str, Sequence[str]]
    scores: dict[str, dict[str, float]]  # of single captions, from the lowest CIDEr to the highest
    words: dict[str, dict[str, Words]]  # by category
    categories: dict[str, CategoryScore]
    lengths: dict[str, Lengths]  # of "captions" and of "references"
    others: Others | None
    compared: dict[str, Comparison]  # with `others`, by score; empty without

    def as_dict(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        content: dict[str, Any] = {
            "categories": {name: score._asdict() for name, score in self.categories.items()},
            "lengths": {name: asdict(lengths) for name, lengths in self.lengths.items()},
            "images": self.scores,
        }
        if self.others:
            compared = {name: values._asdict() for name, values in self.compared.items()}
            content["against"] = {"captions": self.others.source, "scores": compared}
        return content


def analyse(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    training: Mapping[str, Sequence[str]],
    others: Others | None = None,
) -> Analysis:
    """Analyse one caption per image.

    Args:
        captions: by image name, as all that follows.
        references: of at least the images of `captions`.
        training: the references of the training images.
        others: what to compare with, if anything.

    The words of the categories are those of metrics/categories.yaml.
    Raises UserError if that file is wrong.
    """
    references = {image: references[image] for image in captions}
    scores = sentence_scores(captions, references)
    ranked = sorted(scores, key=lambda image: (scores[image]["CIDEr"], scores[image]["ROUGE-L"]))
    categories = read_categories()
    words = {image: find_words(captions[image], references[image], categories) for image in captions}
    known = {tuple(tokenize(caption)) for group in training.values() for caption in group}
    return Analysis(
        captions,
        references,
        {image: scores[image] for image in ranked},
        words,
        category_scores(words.values()),
        {
            "captions": _lengths(captions.values(), known),
            "references": _lengths((text for group in references.values() for text in group), known),
        },
        others,
        compare(captions, others.captions, references) if others else {},
    )


def analysis_table(analysis: Analysis) -> str:
    """Words by category, lengths with novelty, and the comparison if there is one."""
    lines = [f"  {'':<9} {'precision':>9} {'recall':>7}   {'in no reference':<28} missed"]
    for name, score in analysis.categories.items():
        wrong, missed = (_most(counts) for counts in (score.wrong, score.missed))
        shares = f"{_percent(score.precision):>9} {_percent(score.recall):>7}"
        lines.append(f"  {name:<9} {shares}   {wrong:<28} {missed}")
    lines.append(f"\n  {'':<10} {'mean length':>11} {'shortest':>9} {'longest':>8} {'novel':>7}")
    for name, lengths in analysis.lengths.items():
        words = f"{lengths.mean:>11.2f} {lengths.shortest:>9} {lengths.longest:>8}"
        lines.append(f"  {name:<10} {words} {_percent(lengths.novelty):>7}")
    if analysis.others:
        lines += ["", f"against {analysis.others.source}", comparison_table(analysis.compared)]
    return "\n".join(lines)


def _lengths(captions: Iterable[str], known: set[tuple[str, ...]]) -> Lengths:
    """`known`: the tokens of the training captions."""
    sentences = [tuple(tokenize(caption)) for caption in captions]
    lengths = [len(sentence) for sentence in sentences]
    novel = sum(sentence not in known for sentence in sentences) / len(sentences) if known else None
    return Lengths(sum(lengths) / len(lengths), min(lengths), max(lengths), novel)


def _most(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{word} {count}" for word, count in list(counts.items())[:3])


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
