"""Captioner: images in, captions out. The scripts, validation and your own programs use it.

from captioning import Captioner
captioner = Captioner.load("runs/flickr8k_attention/best.pth")
for result in captioner(["dog.jpg", "cat.jpg"], beam=5):
    print(result.caption)
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from compute import Compute
from config import Config
from config_reading import make_config
from data.transforms import ImageTransform, read_image, upright_rgb
from data.vocab import Vocabulary
from files import load_checkpoint, newest_checkpoint
from models.model import CaptionModel, pack_model, unpack_model
from models.search import Captions, SearchOptions
from utils import UserError

# What can be captioned: a path, an open binary file, a PIL image, or an RGB array (H, W, 3) of uint8.
ImageSource = str | Path | IO[bytes] | Image.Image | np.ndarray


class Word(NamedTuple):
    """One word of a caption."""

    text: str
    probability: float  # 0 to 1, given the image and the words before it


class Hypothesis(NamedTuple):
    """A caption that the search ranked lower."""

    caption: str
    log_prob: float


@dataclass(frozen=True)
class Caption:
    """The caption of one image. Log-probabilities are natural logarithms, summed over the words and <eos>."""

    source: ImageSource  # as it was passed
    image: Image.Image | None  # upright, RGB
    caption: str
    log_prob: float
    words: list[Word]
    others: list[Hypothesis]  # the other beams, best first
    attention: np.ndarray | None  # (words, rows, columns) float32 alphas over the whole image, or None


class ImageError(UserError):
    """An image cannot be read; `source` is what was passed."""

    def __init__(self, source: ImageSource, reason: object):
        name = source if isinstance(source, str | Path) else getattr(source, "name", type(source).__name__)
        super().__init__(f"{name} cannot be read as an image ({reason})")
        self.source = source


@dataclass(frozen=True)
class Captioner:
    """A model with everything that captioning needs. Several threads may share one Captioner."""

    model: CaptionModel
    vocabulary: Vocabulary
    transform: ImageTransform
    config: Config
    compute: Compute

    @classmethod
    def load(
        cls,
        checkpoint: str | Path | None = None,
        overrides: Sequence[str] = (),
        compute: Compute | None = None,
    ) -> "Captioner":
        """The captioner of a checkpoint.

        Args:
            checkpoint: best.pth of a run; if None, the newest one in runs/.
            overrides: `section.key=value`, applied to the configuration in the checkpoint.
            compute: device and precision; if None, those of run.device and run.precision.

        Raises:
            UserError: there is no such checkpoint, the overrides do not fit it, or the encoder's weights
                cannot be loaded.
        """
        path = newest_checkpoint(Path("runs")) if checkpoint is None else Path(checkpoint)
        content = load_checkpoint(path)
        config = make_config(content["config"], overrides, str(path))
        compute = compute or Compute.choose(config.run.device, config.run.precision)
        return cls.from_checkpoint(content, config, path, compute)

    @classmethod
    def from_checkpoint(cls, content: dict, config: Config, path: Path, compute: Compute) -> "Captioner":
        """Like `load`, for a checkpoint that has already been read from `path`."""
        model = unpack_model(content, config, path).to(compute.device)
        transform = ImageTransform.from_dict(content["transform"])
        return cls(model, Vocabulary(content["vocabulary"]), transform, config, compute)

    def with_model(self, model: CaptionModel) -> "Captioner":
        """The same captioner with other weights."""
        return replace(self, model=model)

    def checkpoint(self, model: CaptionModel | None = None) -> dict:
        """The content for `from_checkpoint`, with the weights of `model` if it is given."""
        return pack_model(model or self.model, self.config, self.vocabulary.words, self.transform.as_dict())

    def options(self, **search) -> SearchOptions:
        """The configuration's section `search` with changes; raises ValueError for a value out of range."""
        configured = {**self.config.search.model_dump(), "seed": self.config.run.seed}
        return SearchOptions(**{**configured, **search})

    def __call__(
        self,
        images: Iterable[ImageSource],
        *,
        batch_size: int = 32,
        errors: Literal["raise", "return"] = "raise",
        **search,
    ) -> Iterator[Caption | ImageError]:
        """Caption images one batch at a time; the results are in the order of the images.

        Args:
            images: see ImageSource.
            batch_size: number of images that are captioned together.
            errors: for an image that cannot be read, "raise" its ImageError or "return" it as the result.
            search: keys of the configuration's section `search`, such as beam=3.

        Raises:
            ImageError: an image cannot be read.
            ValueError: a search option is out of range.
        """
        options = self.options(**search)
        if isinstance(images, str | Path):
            raise TypeError("pass the images as a list, even a single one")
        batch: list[tuple[ImageSource, Image.Image | ImageError]] = []
        readable = 0
        for source in images:
            image = _read(source)
            if isinstance(image, ImageError):
                if errors == "raise":
                    raise image
            else:
                readable += 1
            batch.append((source, image))
            if readable == batch_size:
                yield from self.caption_batch(batch, options)
                batch, readable = [], 0
        yield from self.caption_batch(batch, options)

    def caption_batch(
        self, batch: list[tuple[ImageSource, Image.Image | ImageError]], options: SearchOptions
    ) -> Iterator[Caption | ImageError]:
        """Caption the images that could be read; the errors of the others are returned in their places."""
        readable = [(source, image) for source, image in batch if isinstance(image, Image.Image)]
        results: Iterator[Caption] = iter(())
        if readable:
            captions = self.search(torch.stack([self.transform(image) for _, image in readable]), options)
            results = (self.result(*pair, captions, row) for row, pair in enumerate(readable))
        for _, image in batch:
            yield image if isinstance(image, ImageError) else next(results)

    def search(self, images: torch.Tensor, options: SearchOptions) -> Captions:
        """The captions of images (N, 3, H, W) prepared by `transform`, or of grids (N, L, C)."""
        self.model.eval()
        [images] = self.compute.to_device(images)
        with torch.inference_mode(), self.compute.autocast():
            return self.model.caption(images, options)

    def texts(self, captions: Captions) -> list[str]:
        """The best caption of each image."""
        return [" ".join(self.vocabulary.decode(beams[0])) for beams in captions.tokens.tolist()]

    def result(self, source: ImageSource, image: Image.Image, captions: Captions, i: int) -> Caption:
        """The captions of the i-th image of a batch."""
        best, *others = (self.vocabulary.decode(tokens) for tokens in captions.tokens[i].tolist())
        log_probs = captions.log_probs[i].float()
        attention = None
        if captions.attention is not None:
            alphas = captions.attention[i, 0, : len(best)].float().cpu().numpy()
            side = isqrt(alphas.shape[1])  # images are scaled to a square, so the grid is square
            attention = alphas.reshape(-1, side, side)
        return Caption(
            source,
            image,
            " ".join(best),
            float(log_probs[0].sum()),
            [Word(*pair) for pair in zip(best, log_probs[0].exp().tolist()[: len(best)], strict=True)],
            [
                Hypothesis(" ".join(words), float(log_probs[k].sum()))
                for k, words in enumerate(others, start=1)
                if captions.scores[i, k] > -torch.inf
            ],
            attention,
        )


def _read(source: ImageSource) -> Image.Image | ImageError:
    """The image, upright and RGB, or an error that says why it cannot be read."""
    try:
        if isinstance(source, Image.Image):
            return upright_rgb(source)
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
                return ImageError(source, f"it is {source.dtype} {source.shape}, not uint8 (H, W, 3)")
            return Image.fromarray(source)
        return read_image(source)
    except OSError as error:
        return ImageError(source, error)
