"""The caption of an image, as Captioner returns it."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.image_source import ImageSource, read_source


class Word(NamedTuple):
    """One word of a caption."""

    text: str
    probability: float  # 0 to 1, the model's own, given the image and the words before it


class Hypothesis(NamedTuple):
    """A caption that the search ranked lower."""

    caption: str
    log_prob: float  # as in Caption


@dataclass(frozen=True)
class Caption:
    """The caption of one image.

    Probabilities are the model's own (the softmax of its logits over the whole vocabulary), whatever the
    search chose from. A `log_prob` is a natural logarithm, summed over the words and the <eos> that ends the
    caption, so it is lower than the sum over `words`.
    """

    source: ImageSource  # as it was passed
    caption: str
    log_prob: float
    words: list[Word]
    others: list[Hypothesis]  # the other beams, best first
    attention: np.ndarray | None  # (words, rows, columns) float32 alphas over the whole image, or None

    @property
    def image(self) -> Image.Image:
        """The image, upright and RGB. It is read from `source` each time, because images take much memory.

        One of more than data.transforms.LARGE pixels is reduced.

        Raises:
            ImageError: it cannot be read again: a file is gone, or an open file is closed or cannot seek.
        """
        return read_source(self.source)
