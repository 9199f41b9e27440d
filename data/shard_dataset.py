"""A split in shards as a dataset. Images and captions are read when they are needed: memory stays flat."""

import random
from collections.abc import Iterator, Sequence

import torch
from PIL import Image

from data.dataset import Draw, Flickr8kDataset
from data.shard_features import ShardGrids
from data.shard_set import ShardSet
from data.transforms import ImageTransform
from data.vocab import Vocabulary


class ShardDataset(Flickr8kDataset):
    """One split. An image is numbered by its place in all shards of the split, in their order."""

    def __init__(
        self,
        shards: ShardSet,
        vocabulary: Vocabulary,
        transform: ImageTransform,
        features: ShardGrids | None = None,
        captions_per_image: int | None = None,
        max_length: int | None = None,
        augment: Sequence[str] = (),
    ):
        """With `features`, the items are cached grids instead of images."""
        self.shards, self.vocabulary, self.max_length = shards, vocabulary, max_length
        self.names = _Names(shards)
        self.transform, self.features = transform, features
        self.captions_per_image, self.augment = captions_per_image, list(augment)

    def __len__(self) -> int:
        return len(self.shards)

    def num_captions(self, i: int) -> int:
        s, row = self.shards.locate(i)
        first = self.shards.shard(s).index.first_caption
        return int(first[row + 1] - first[row])

    def caption(self, i: int, k: int) -> torch.Tensor:
        s, row = self.shards.locate(i)
        index = self.shards.shard(s).index
        text = index.captions[index.first_caption[row] + k]
        return torch.tensor(self.vocabulary.numericalize(text, self.max_length))

    def read(self, i: int) -> Image.Image:
        s, row = self.shards.locate(i)
        return self.shards.shard(s).image(row)

    def grids(self, draws: Sequence[Draw], pin_memory: bool = False) -> torch.Tensor:
        assert isinstance(self.features, ShardGrids)
        return self.features.read(draws, pin_memory)

    def batches(self, batch_size: int, seed: int, epoch: int, first: int = 0) -> Iterator[list[Draw]]:
        """As in `Flickr8kDataset`; see `shuffled`."""
        batch: list[Draw] = []
        for draw in shuffled(self.shards.first, self.shards.keep, seed, epoch, first * batch_size):
            batch.append(draw)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def shuffled(starts: Sequence[int], window: int, seed: int, epoch: int, skip: int = 0) -> Iterator[Draw]:
    """Every image of an epoch once, from the draw `skip` on. The order depends only on (seed, epoch).

    The shards are drawn in random order, `window` of them at a time, and the images of these are shuffled.
    So no more than `window` shards are open at once, and those before the draw `skip` are not read.

    Args:
        starts: number of the first image of each shard, and of all images.
    """
    num_shards = len(starts) - 1
    order = random.Random(f"{seed}/{epoch}").sample(range(num_shards), num_shards)
    for at in range(0, num_shards, window):
        opened = order[at : at + window]
        size = sum(starts[s + 1] - starts[s] for s in opened)
        if skip >= size:
            skip -= size
            continue
        within = random.Random(f"{seed}/{epoch}/{at}")
        numbers = [i for s in opened for i in range(starts[s], starts[s + 1])]
        draws = [(i, within.getrandbits(48)) for i in within.sample(numbers, size)]
        yield from draws[skip:]
        skip = 0


class _Names(Sequence[str]):
    """The names of all images in the shards, read when they are needed."""

    def __init__(self, shards: ShardSet):
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, i: int) -> str:  # type: ignore[override]  # no slices
        if not 0 <= i < len(self):  # ends an iteration
            raise IndexError(i)
        s, row = self.shards.locate(i)
        return self.shards.shard(s).index.names[row]
