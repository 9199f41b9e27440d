"""Captioner: images in, captions out. The scripts, validation and your own programs use it.

from captioning import Captioner
captioner = Captioner.load("runs/flickr8k_attention/best.pth")
for result in captioner(["dog.jpg", "cat.jpg"], beam=5):
    print(result.caption)
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from math import isqrt
from pathlib import Path
from typing import Literal

import torch

from caption_types import Caption, Hypothesis, Word
from compute import Compute, has_bfloat16_lstm
from config import Config
from config_reading import make_config
from config_search import SearchConfig
from data.image_source import ImageError, ImageSource, read_source
from data.loading import read_ahead
from data.transforms import ImageTransform
from data.vocab import Vocabulary
from models.checkpoint import Checkpoint, load_checkpoint
from models.memory import require_search_memory
from models.model import CaptionModel, caption, pack_model, unpack_model
from models.neighbours import Neighbours
from models.search import Captions, SearchOptions
from utils import UserError

# The position of an image among all images, which determines its samples; its source; and the image as each
# member of the ensemble sees it, (3, H, W), or why it cannot be read.
_Prepared = tuple[int, ImageSource, list[torch.Tensor] | ImageError]


@dataclass(frozen=True)
class Captioner:
    """A model with everything that captioning needs. Several threads may share one Captioner.

    With `others` it is an ensemble: at each step of the search, the probabilities of all models are averaged.
    """

    model: CaptionModel
    vocabulary: Vocabulary
    transform: ImageTransform
    config: Config
    compute: Compute
    others: Sequence["Captioner"] = ()  # with the same vocabulary
    neighbours: Neighbours | None = None  # for search.rerank=neighbours

    @classmethod
    def load(
        cls,
        checkpoint: str | Path | Sequence[str | Path] | None = None,
        overrides: Sequence[str] = (),
        compute: Compute | None = None,
    ) -> "Captioner":
        """The captioner of a checkpoint.

        Args:
            checkpoint: best.pth of a run, or the folder of a run; several: an ensemble, with the
                configuration of the first; if None, the newest best.pth in runs/ or, without one,
                pretrained/flickr8k.pth, the model that comes with the project.
            overrides: `section.key=value`, applied to the configuration in the checkpoint.
            compute: device and precision; if None, those of run.device, run.precision and run.threads.

        Raises:
            UserError: there is no such checkpoint, it is damaged, the overrides do not fit it, the encoder's
                weights cannot be loaded, the memory does not suffice, or the vocabularies differ.
        """
        if isinstance(checkpoint, Sequence) and not isinstance(checkpoint, str):
            first = cls.load(checkpoint[0], overrides, compute)
            others = [cls.load(path, overrides, first.compute) for path in checkpoint[1:]]
            for path, other in zip(checkpoint[1:], others, strict=True):
                if other.vocabulary.words != first.vocabulary.words:
                    raise UserError(
                        f"{path}: its vocabulary is not that of {checkpoint[0]}; use models that were "
                        "trained with the same words"
                    )
            return replace(first, others=others)
        content = load_checkpoint(None if checkpoint is None else Path(checkpoint))
        config = make_config(content.config.as_dict(), overrides, str(content.path))
        compute = compute or Compute.choose(config.run.device, config.run.precision, config.run.threads)
        return cls.from_checkpoint(content, config, compute)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, config: Config, compute: Compute) -> "Captioner":
        """Like `load`, for a checkpoint that has been read, with its configuration or a similar one."""
        model = unpack_model(checkpoint, config)
        with compute.explain_memory("use run.device=cpu, or a smaller model"):
            model = model.to(compute.device)
        neighbours = checkpoint.neighbours
        if neighbours and len(neighbours.mean) != model.encoder.dim:
            raise UserError(
                f"{checkpoint.path}: its neighbours are not those of its encoder; train the model again"
            )
        return cls(model, checkpoint.vocabulary, checkpoint.transform, config, compute, neighbours=neighbours)

    def __post_init__(self) -> None:
        on_cpu = self.compute.device.type == "cpu" and self.compute.precision is torch.bfloat16
        if on_cpu and _has_lstm(self.model.decoder) and not has_bfloat16_lstm():
            raise UserError(
                f"run.precision=bfloat16: this CPU cannot compute decoder.kind={self.config.decoder.kind} in "
                "it; use run.precision=float32"
            )

    @property
    def members(self) -> Sequence["Captioner"]:
        """This captioner, and the others of an ensemble."""
        return [self, *self.others]

    @property
    def attends(self) -> bool:
        """Whether the captions have attention; in an ensemble, that of the first model that has any."""
        return any(member.model.decoder.attends for member in self.members)

    def with_model(self, model: CaptionModel) -> "Captioner":
        """The same captioner with other weights."""
        return replace(self, model=model)

    def checkpoint(self, model: CaptionModel | None = None) -> dict:
        """What `save_checkpoint` writes, with the weights of `model` if it is given."""
        return pack_model(
            model or self.model, self.config, self.vocabulary.words, self.transform.as_dict(), self.neighbours
        )

    def options(self, **search) -> SearchOptions:
        """The configuration's section `search` with changes, and `seed`, which is run.seed by default.

        With a temperature above 0, the seed and the position of an image among the images determine its
        caption; the batch size does not.

        Raises:
            ValueError: a value is out of range.
            UserError: the vocabulary does not have a word of search.include or search.exclude, or
                search.rerank=neighbours and no model has any.
        """
        seed = search.pop("seed", self.config.run.seed)
        config = SearchConfig(**{**self.config.search.model_dump(), **search})
        if config.rerank == "neighbours" and not any(member.neighbours for member in self.members):
            raise UserError(
                "search.rerank=neighbours: the model has none, its training is not over or was without them; "
                "use search.rerank=none, or python train.py --resume RUN search.rerank=neighbours"
            )
        return SearchOptions.of(config, self.vocabulary, seed)

    def __call__(
        self,
        images: Iterable[ImageSource],
        *,
        batch_size: int = 32,
        errors: Literal["raise", "return"] = "raise",
        positions: Iterable[int] | None = None,
        ahead: int = 0,
        **search,
    ) -> Iterator[Caption | ImageError]:
        """Caption images one batch at a time; the results are in the order of the images.

        Args:
            images: see ImageSource in data/image_source.py.
            batch_size: number of images that are captioned together.
            errors: for an image that cannot be read, "raise" its ImageError or "return" it as the result.
            positions: those of the images among all images, if these are only some of them.
            ahead: how many more batches of images are read while a batch is captioned.
            search: keys of the configuration's section `search`, such as beam=3.

        Raises:
            ImageError: an image cannot be read.
            ValueError: a search option is out of range.
        """
        options = self.options(**search)
        if isinstance(images, str | Path):
            raise TypeError("pass the images as a list, even a single one")
        sources = zip(count() if positions is None else positions, images, strict=False)
        batches = iter(lambda: list(islice(sources, batch_size)), [])
        for batch in read_ahead(self._prepare_batch, batches, ahead):
            for _, _, image in batch:
                if isinstance(image, ImageError) and errors == "raise":
                    raise image
            yield from self.caption_batch(batch, options)

    def prepare(self, source: ImageSource) -> list[torch.Tensor]:
        """The image (3, H, W) as each member sees it. Raises ImageError."""
        image = read_source(source)
        return [member.transform(image) for member in self.members]

    def _prepare_batch(self, batch: list[tuple[int, ImageSource]]) -> list[_Prepared]:
        """Whole images take up to a hundred megabytes each, so only what the model sees is kept."""
        prepared: list[_Prepared] = []
        for position, source in batch:
            try:
                prepared.append((position, source, self.prepare(source)))
            except ImageError as error:
                prepared.append((position, source, error))
        return prepared

    def caption_batch(self, batch: list[_Prepared], options: SearchOptions) -> Iterator[Caption | ImageError]:
        """Caption the images that could be read; errors keep their places."""
        readable = {position: image for position, _, image in batch if isinstance(image, list)}
        captions = None
        if readable:
            images = [torch.stack(of_member) for of_member in zip(*readable.values(), strict=True)]
            captions = self.search(images, options, list(readable))
        row = 0
        for _, source, image in batch:
            if isinstance(image, ImageError):
                yield image
            elif captions is not None:
                yield self.result(source, captions, row)
                row += 1

    def search(
        self,
        images: torch.Tensor | Sequence[torch.Tensor],
        options: SearchOptions,
        indices: Sequence[int] | None = None,
    ) -> Captions:
        """The captions of images (N, 3, H, W) prepared by `transform`, or of grids (N, L, C).

        Args:
            images: in an ensemble, those of each member.
            indices: the index of each image in the whole input (see models/search.py).

        Raises:
            UserError: the memory does not suffice, or the model computes something that is no number.
        """
        images = [images] if isinstance(images, torch.Tensor) else images
        device = self.compute.device
        require_search_memory(len(images[0]), options.num_sequences, len(self.vocabulary), device)
        advice = "lower search.beam, or caption fewer images at once"
        with self.compute.explain_memory(advice), torch.inference_mode(), self.compute.autocast():
            images = self.compute.to_device(*images)
            models = [member.model.eval() for member in self.members]
            # In float32, as cached ones are: both give the same captions.
            grids = [model.grid(x).float() for model, x in zip(models, images, strict=True)]
            captions = caption(models, grids, options, indices)
        if captions.scores.isnan().any():
            raise UserError(
                "the model's outputs are not finite numbers; use run.precision=float32, or train it with a "
                "lower train.lr"
            )
        if options.rerank == "none":
            return captions
        from metrics.consensus import reranked  # here, because the metrics take long to import

        neighbours = [member.neighbours for member in self.members]
        return reranked(captions, options.rerank, list(zip(neighbours, grids, strict=True)))

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
