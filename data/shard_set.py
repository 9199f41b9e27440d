"""The images and captions of several shards, by their number in the whole."""

import io
import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from itertools import accumulate
from pathlib import Path
from threading import Lock

from PIL import Image

from config import DataConfig
from data.captions_file import Row
from data.features import FeatureGrids
from data.images import Fingerprint, ImageFolder
from data.shard_index import ShardFacts, ShardIndex, fingerprint_of, index_shards, read_index_of
from data.shard_paths import is_sharded, shard_paths, shard_split
from data.transforms import read_image
from files import read_at
from utils import UserError


def open_shards(data: DataConfig, splits: Sequence[str]) -> "ShardSet":
    """The shards of some splits; they are indexed if they were not yet.

    Raises:
        UserError: as `shard_paths` and `index_shards`.
    """
    paths = shard_paths(data, splits)
    return ShardSet(paths, index_shards(paths, data.index_folder), data.index_folder, data.shuffle)


def open_images(data: DataConfig, splits: Sequence[str]) -> "ImageFolder | ShardSet":
    """What reads the images of some splits by their names."""
    return open_shards(data, splits) if is_sharded(data) else ImageFolder(data.images)


class Shard:
    """The images of one shard by name, read from its tar file when they are needed, by several threads."""

    def __init__(self, path: Path, index: ShardIndex):
        self.path, self.index = path, index
        self.lock = Lock()  # of the file: on Windows, threads that read it share one position
        self.file: FileIO | None = None
        self.rows: dict[str, int] | None = None
        self.grids: FeatureGrids | None = None  # the features of its images

    @property
    def place(self) -> str:
        return str(self.path.resolve())

    def row(self, name: str) -> int:
        if self.rows is None:
            self.rows = {name: row for row, name in enumerate(self.index.names)}
        return self.rows[name]

    def fingerprint(self, name: str) -> Fingerprint:
        _, *times = self.index.facts.fingerprint
        return Fingerprint(int(self.index.positions[self.row(name), 1]), *times)

    def read(self, name: str) -> Image.Image:
        return self.image(self.row(name))

    def image(self, row: int) -> Image.Image:
        """The image of a sample, upright and RGB.

        Raises:
            UserError: it cannot be read, or the shard has changed since it was opened.
        """
        source = io.BytesIO()
        try:
            position, size = map(int, self.index.positions[row])
            content = bytearray(size)
            with self.lock:
                if self.file is None:
                    self.file = open(self.path, "rb", buffering=0)  # noqa: SIM115 (stays open with the object)
                    self.require_unchanged()
                    if hasattr(os, "posix_fadvise"):  # Linux reads all of it from the disk, in one run
                        os.posix_fadvise(self.file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
                read_at(self.file, position, memoryview(content))
            source = io.BytesIO(content)
            return read_image(source)
        except OSError as error:
            self.require_unchanged()
            reason = str(error).replace(f" {source!r}", "")  # which Pillow names, and which has no name
            raise UserError(
                f"{self.index.names[row]} in {self.path} cannot be read ({reason}); replace it, or write the "
                "shard without it"
            ) from None

    def require_unchanged(self) -> None:
        if fingerprint_of(self.path) != self.index.facts.fingerprint:
            raise UserError(
                f"{self.path} has changed while it was in use; run again (train.py with --resume)"
            )

    def __reduce__(self) -> tuple:
        return Shard, (self.path, self.index)


@dataclass
class ShardSet:
    """N images in S shards, numbered from the first image of the first shard to the last of the last.

    Of `keep` shards the index is in memory, so that memory does not grow with the number of shards.
    """

    paths: Sequence[Path]
    facts: Sequence[ShardFacts]
    index_folder: Path
    keep: int

    def __post_init__(self) -> None:
        self.first = [0, *accumulate(facts.num_images for facts in self.facts)]  # (S + 1,)
        self.open: dict[int, Shard] = {}  # the one that was used last is the last
        self.numbers: dict[str, int] = {}  # image -> its number, for `read`
        self.lock = Lock()  # of `open`, which several threads change

    def __len__(self) -> int:
        return self.first[-1]

    @property
    def num_captions(self) -> int:
        return sum(facts.num_captions for facts in self.facts)

    def shard(self, s: int) -> Shard:
        """One of the shards, whose index is read if it is not in memory."""
        with self.lock:
            shard = self.open.pop(s, None)
            if shard is None:
                shard = Shard(self.paths[s], read_index_of(self.paths[s], self.index_folder))
                if shard.index.facts.digest != self.facts[s].digest:
                    raise UserError(f"{self.paths[s]} has changed while it was in use; run again")
                while len(self.open) >= self.keep:
                    self.open.pop(next(iter(self.open)))
            self.open[s] = shard
            return shard

    def locate(self, i: int) -> tuple[int, int]:
        """The shard of image `i`, and its place there."""
        s = bisect_right(self.first, i) - 1
        return s, i - self.first[s]

    def names(self) -> Iterator[str]:
        """The names of all images, in order."""
        for s in range(len(self.paths)):
            yield from self.shard(s).index.names

    def read(self, name: str) -> Image.Image:
        """The image of a name. For splits of which all names fit into memory."""
        if not self.numbers:
            self.numbers = {name: i for i, name in enumerate(self.names())}
        s, row = self.locate(self.numbers[name])
        return self.shard(s).image(row)

    def __reduce__(self) -> tuple:
        return ShardSet, (self.paths, self.facts, self.index_folder, self.keep)

    def captions(self) -> "Captions":
        """All captions, one shard after the other."""
        return Captions(self)

    def rows(self) -> Iterator[Row]:
        """The rows of the captions table, one shard after the other."""
        for s, path in enumerate(self.paths):
            index, split = self.shard(s).index, shard_split(path)
            for i, name in enumerate(index.names):
                image_id = json.loads(index.ids[i]) if index.ids[i] else None
                yield from (Row(name, caption, split, image_id) for caption in index.captions_of(i))


class Captions:
    """All captions of a set of shards; can be read several times."""

    def __init__(self, shards: ShardSet):
        self.shards = shards

    def __len__(self) -> int:
        return self.shards.num_captions

    def __iter__(self) -> Iterator[str]:
        for s in range(len(self.shards.paths)):
            yield from self.shards.shard(s).index.captions
