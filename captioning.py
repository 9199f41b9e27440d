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

from compute import Compute, has_bfloat16_lstm
from config import Config
from config_reading import make_config
from data.transforms import ImageTransform, read_image, upright_rgb
from data.vocab import Vocabulary
from models.checkpoint import Checkpoint, load_checkpoint
from models.memory import require_search_memory
from models.model import CaptionModel, pack_model, unpack_model
from models.search import Captions, SearchOptions
from utils import UserError

# What can be captioned: a path, an open binary file, a PIL image, or an RGB array (H, W, 3) of uint8.
ImageSource = str | Path | IO[bytes] | Image.Image | np.ndarray


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
        return _read(self.source)


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
            checkpoint: best.pth of a run, or the folder of a run; if None, the newest best.pth in runs/.
            overrides: `section.key=value`, applied to the configuration in the checkpoint.
            compute: device and precision; if None, those of run.device and run.precision.

        Raises:
            UserError: there is no such checkpoint, it is damaged, the overrides do not fit it, the encoder's
                weights cannot be loaded, or the memory does not suffice.
        """
        content = load_checkpoint(None if checkpoint is None else Path(checkpoint))
        config = make_config(content.config.as_dict(), overrides, str(content.path))
        compute = compute or Compute.choose(config.run.device, config.run.precision)
        return cls.from_checkpoint(content, config, compute)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, config: Config, compute: Compute) -> "Captioner":
        """Like `load`, for a checkpoint that has been read, with its configuration or a similar one."""
        model = unpack_model(checkpoint, config)
        with compute.explain_memory("use run.device=cpu, or a smaller model"):
            model = model.to(compute.device)
        return cls(model, checkpoint.vocabulary, checkpoint.transform, config, compute)

    def __post_init__(self) -> None:
        on_cpu = self.compute.device.type == "cpu" and self.compute.precision is torch.bfloat16
        if on_cpu and _has_lstm(self.model.decoder) and not has_bfloat16_lstm():
            raise UserError(
                f"run.precision=bfloat16: this CPU cannot compute decoder.kind={self.config.decoder.kind} in "
                "it; use run.precision=float32"
            )

    def with_model(self, model: CaptionModel) -> "Captioner":
        """The same captioner with other weights."""
        return replace(self, model=model)

    def checkpoint(self, model: CaptionModel | None = None) -> dict:
        """What `save_checkpoint` writes, with the weights of `model` if it is given."""
        return pack_model(model or self.model, self.config, self.vocabulary.words, self.transform.as_dict())

    def options(self, **search) -> SearchOptions:
        """The configuration's section `search` with changes, and `seed`, which is run.seed by default.

        With a temperature above 0, the seed and the position of an image among the images determine its
        caption; the batch size does not.
        Raises ValueError for a value out of range.
        """
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
        batch: list[tuple[ImageSource, torch.Tensor | ImageError]] = []
        first = readable = 0
        for source in images:
            try:
                # Whole images take up to a hundred megabytes each, so only what the model sees is kept.
                batch.append((source, self.transform(_read(source))))
                readable += 1
            except ImageError as error:
                if errors == "raise":
                    raise
                batch.append((source, error))
            if readable == batch_size:
                yield from self.caption_batch(batch, options, first)
                first += len(batch)
                batch, readable = [], 0
        yield from self.caption_batch(batch, options, first)

    def caption_batch(
        self, batch: list[tuple[ImageSource, torch.Tensor | ImageError]], options: SearchOptions, first: int
    ) -> Iterator[Caption | ImageError]:
        """Caption the images (3, H, W) that could be read; the errors of the others keep their places.

        `first`: how many images came before this batch, which determines its samples.
        """
        readable = {i: image for i, (_, image) in enumerate(batch, first) if isinstance(image, torch.Tensor)}
        captions = None
        if readable:
            captions = self.search(torch.stack(list(readable.values())), options, list(readable))
        row = 0
        for source, image in batch:
            if isinstance(image, ImageError):
                yield image
            elif captions is not None:
                yield self.result(source, captions, row)
                row += 1

    def search(
        self, images: torch.Tensor, options: SearchOptions, indices: Sequence[int] | None = None
    ) -> Captions:
        """The captions of images (N, 3, H, W) prepared by `transform`, or of grids (N, L, C).

        Args:
            indices: the index of each image in the whole input (see models/search.py).

        Raises:
            UserError: the memory does not suffice, or the model computes something that is no number.
        """
        self.model.eval()
        device, beam = self.compute.device, 1 if options.temperature > 0 else options.beam
        require_search_memory(len(images), beam, len(self.vocabulary), device)
        advice = "lower search.beam, or caption fewer images at once"
        with self.compute.explain_memory(advice), torch.inference_mode(), self.compute.autocast():
            [images] = self.compute.to_device(images)
            captions = self.model.caption(images, options, indices)
        if captions.scores.isnan().any():
            raise UserError(
                "the model's outputs are not finite numbers; use run.precision=float32, or train it with a "
                "lower train.lr"
            )
        return captions

    def texts(self, captions: Captions) -> list[str]:
        """The best caption of each image."""
        return [" ".join(self.vocabulary.decode(beams[0])) for beams in captions.tokens.tolist()]

    def result(self, source: ImageSource, captions: Captions, i: int) -> Caption:
        """The captions of the i-th image of a batch, which was read from `source`."""
        best, *others = (self.vocabulary.decode(tokens) for tokens in captions.tokens[i].tolist())
        log_probs = captions.log_probs[i].float()
        attention = None
        if captions.attention is not None:
            alphas = captions.attention[i, 0, : len(best)].float().cpu().numpy()
            side = isqrt(alphas.shape[1])  # images are scaled to a square, so the grid is square
            attention = alphas.reshape(-1, side, side)
        return Caption(
            source,
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


def _has_lstm(decoder: torch.nn.Module) -> bool:
    return any(isinstance(module, torch.nn.LSTM) for module in decoder.modules())


def _read(source: ImageSource) -> Image.Image:
    """The image, upright and RGB. Raises ImageError."""
    if isinstance(source, np.ndarray) and (
        source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or source.size == 0
    ):
        raise ImageError(source, f"it is {source.dtype} {source.shape}, not uint8 (H, W, 3)")
    try:
        if isinstance(source, np.ndarray):
            return upright_rgb(Image.fromarray(source))
        return upright_rgb(source) if isinstance(source, Image.Image) else read_image(source)
    except OSError as error:
        raise ImageError(source, error) from None
