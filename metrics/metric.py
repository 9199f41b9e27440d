"""A metric: a name, a function of captions and references, and how values are compared and printed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from data.tokenizer import tokenize


@dataclass(frozen=True, eq=False)
class Tokenized:
    """Captions and references of the same N images in the same order, in the form of pycocoevalcap's scorers.

    A caption is a string of tokens joined by spaces (see `tokenized`), empty if it has no words.
    """

    predictions: dict[str, list[str]]  # image name -> a list of one caption
    references: dict[str, list[str]]  # image name -> one caption or more


class Metric(NamedTuple):
    """One score of a whole set of captions. The metrics of this project are listed in scores.py."""

    name: str
    compute: Callable[[Tokenized], float]  # raises MetricError if the machine lacks what it needs
    higher_is_better: bool = True
    format: str = ".3f"
    in_validation: bool = True  # False: too slow to be computed after each epoch
    in_curves: bool = True  # whether it has a panel in loss_curve.png and a column in the tables of runs


class MetricError(RuntimeError):
    """A metric cannot be computed on this machine; the message is one line with the reason and the fix."""


def tokenized(caption: str) -> str:
    """The tokens of a caption joined by spaces."""
    return " ".join(tokenize(caption))


def tokenized_texts(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> Tokenized:
    """The captions by image name, and the references of their images, in the order of the captions."""
    return Tokenized(
        {image: [tokenized(caption)] for image, caption in captions.items()},
        {image: [tokenized(reference) for reference in references[image]] for image in captions},
    )
