"""The captions table as a PyTorch dataset of images with their captions, and batches of them."""

import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from compute import Compute
from data.features import FeatureGrids
from data.loading import load, read_ahead, read_listed_image
from data.packing import PackedCaptions, pack, padded
from data.shard_features import ShardGrids
from data.strings import Strings
from data.transforms import ImageTransform, augment
from data.vocab import Vocabulary
from utils import PAD, SOS, UserError

# One item of an epoch: the index of the image, and the seed of what is random (captions, augmentation, view).
# The seed is part of the item and not drawn by a worker, so neither the number of workers nor a resume in
# the middle of an epoch changes anything.
Draw = tuple[int, int]


class Batch(NamedTuple):
    """N images with M captions of T tokens, `<sos>` and `<eos>` included."""

    images: torch.Tensor  # (N, 3, H, W) images, or (N, L, C) grids of features
    captions: torch.Tensor  # (M, T) int64, padded with <pad>
    lengths: torch.Tensor  # (M,) int64, tokens of each caption
    image_index: torch.Tensor  # (M,) int64, which of the N images a caption describes

    def packed(self) -> PackedCaptions:
        """The captions as teacher forcing reads them."""
        return pack(self.captions, self.lengths, self.image_index, len(self.images))


class Flickr8kDataset(Dataset):
    """One split. An item is one image with up to `captions_per_image` of its captions."""

    def __init__(
        self,
        table: pd.DataFrame,
        split: str,
        vocabulary: Vocabulary,
        image_folder: Path,
        transform: ImageTransform,
        features: FeatureGrids | ShardGrids | None = None,
        captions_per_image: int | None = None,
        max_length: int | None = None,
        augment: Sequence[str] = (),
    ):
        """With `features`, the items are cached grids instead of images, and `image_folder` is not read."""
        rows = table[table["split"] == split]
        image_index, names = pd.factorize(rows["image"])
        if not len(names):
            raise UserError(f"the captions file has no images in the split {split!r}")
        self.names: Sequence[str] = Strings.of(names)
        tokens, lengths = array("i"), []
        for caption in rows["caption"].to_numpy()[np.argsort(image_index, kind="stable")]:
            indices = vocabulary.numericalize(caption, max_length)
            tokens.extend(indices)
            lengths.append(len(indices))
        self.tokens = np.frombuffer(tokens, np.int32)
        self.caption_start = np.cumsum([0, *lengths])  # caption -> its first token
        self.image_start = np.cumsum([0, *np.bincount(image_index)])  # image -> its first caption
        self.image_folder, self.transform, self.features = image_folder, transform, features
        self.captions_per_image, self.augment = captions_per_image, list(augment)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, draw: Draw) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Image (3, H, W) or grid (L, C), and the captions, each as tokens (T,) int64."""
        return self.image(*draw), self.drawn_captions(*draw)

    def drawn_captions(self, i: int, seed: int) -> list[torch.Tensor]:
        """The captions of an image, each as tokens (T,) int64; `seed` selects them if not all are drawn."""
        chosen: Sequence[int] = range(self.num_captions(i))
        if self.captions_per_image and self.captions_per_image < len(chosen):
            chosen = random.Random(seed).sample(chosen, self.captions_per_image)
        return [self.caption(i, k) for k in chosen]

    def num_captions(self, i: int) -> int:
        """The number of captions of an image."""
        return self.image_start[i + 1] - self.image_start[i]

    def caption(self, i: int, k: int) -> torch.Tensor:
        """One of the captions of an image, as tokens (T,) int64."""
        c = self.image_start[i] + k
        return torch.from_numpy(
            self.tokens[self.caption_start[c] : self.caption_start[c + 1]].astype(np.int64)
        )

    def all_captions(self) -> tuple[np.ndarray, np.ndarray]:
        """All captions without <sos>, padded (R, T) int64, and the image that each describes (R,)."""
        captions = padded(self.tokens[self.tokens != SOS], np.diff(self.caption_start) - 1)
        captions_per_image = np.diff(self.image_start)
        return captions, np.repeat(np.arange(len(captions_per_image)), captions_per_image)

    def image(self, i: int, seed: int = 0) -> torch.Tensor:
        """Image (3, H, W), or its cached grid (L, C); `seed` determines the augmentation or the view."""
        if self.features is not None:
            return self.grids([(i, seed)])[0]
        image = self.read(i)
        if self.augment:
            image = augment(image, self.augment, seed)
        return self.transform(image)

    def read(self, i: int) -> Image.Image:
        """An image as it is in its file; raises UserError if it cannot be read."""
        return read_listed_image(self.image_folder / self.names[i])

    def grids(self, draws: Sequence[Draw], pin_memory: bool = False) -> torch.Tensor:
        """The cached grids (N, L, C) of N images, possibly in page-locked memory."""
        assert isinstance(self.features, FeatureGrids)
        return self.features.read([(self.names[i], seed) for i, seed in draws], pin_memory)

    def batches(self, batch_size: int, seed: int, epoch: int, first: int = 0) -> Iterable[list[Draw]]:
        """The batches of an epoch in random order, from the batch `first` on."""
        return training_batches(len(self), batch_size, seed, epoch)[first:]


def collate(items: Sequence[tuple[torch.Tensor, list[torch.Tensor]]]) -> Batch:
    """Items of N images -> one Batch."""
    return _make_batch(torch.stack([image for image, _ in items]), [captions for _, captions in items])


def _make_batch(images: torch.Tensor, groups: Sequence[list[torch.Tensor]]) -> Batch:
    """Images or grids (N, ...), and the captions of each -> one Batch."""
    captions = [caption for group in groups for caption in group]
    image_index = [i for i, group in enumerate(groups) for _ in group]
    return Batch(
        images,
        pad_sequence(captions, batch_first=True, padding_value=PAD),
        torch.tensor([len(caption) for caption in captions]),
        torch.tensor(image_index),
    )


def training_batches(num_images: int, batch_size: int, seed: int, epoch: int) -> list[list[Draw]]:
    """The draws of one epoch in random order, which depends only on (seed, epoch)."""
    order = random.Random(f"{seed}/{epoch}")
    draws = [(i, order.getrandbits(48)) for i in order.sample(range(num_images), num_images)]
    return [draws[at : at + batch_size] for at in range(0, num_images, batch_size)]


def ordered_batches(num_images: int, batch_size: int) -> list[list[Draw]]:
    """Every image once, in order, with seed 0."""
    draws = [(i, 0) for i in range(num_images)]
    return [draws[at : at + batch_size] for at in range(0, num_images, batch_size)]


def make_loader(
    dataset: Flickr8kDataset, batches: Iterable[list[Draw]], workers: int, compute: Compute
) -> Iterator[Batch]:
    """The `batches` of `dataset`, in this order; see `load`, and `read_ahead` for cached features."""
    if dataset.features is None:
        return load(dataset, batches, collate, workers, compute)

    def read(draws: list[Draw]) -> Batch:
        images = dataset.grids(draws, compute.pins_memory)
        return _make_batch(images, [dataset.drawn_captions(*draw) for draw in draws])

    return read_ahead(read, batches)
