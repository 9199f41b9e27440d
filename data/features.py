"""The features of a frozen encoder, computed once per image and kept in a store.

A store is a folder; data/feature_index.py describes its files. The name of the folder is a digest of all that
the features depend on but the images: the encoder's weights, the transform, the precision.
"""

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path

import torch
from torch.utils.data import Dataset

from compute import Compute
from data.feature_index import (
    DamagedStore,
    Index,
    StoreWriter,
    View,
    checksum,
    explained,
    read_index,
    set_aside,
    whole_index,
)
from data.images import Fingerprint, Images
from data.loading import load
from data.transforms import ImageTransform, augment
from files import locked, read_at, write_text
from progress import Progress
from utils import UserError

_PLAIN = "plain"
_ALONE = Compute(torch.device("cpu"))  # a process on its own
SAVE_EVERY = 64  # batches after which the index is written; a killed pass continues from there
_BUSY = "another run is computing these features; waiting for it"
_RUN_AGAIN = "run again (train.py with --resume) to compute the features anew"


class FeatureGrids:
    """Grids by image name, read from the file when they are needed.

    The file is not memory-mapped: mapped pages count as memory of this process, and an epoch over COCO reads
    24 GB of them. Pickling keeps the path, not the open file.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], rows: dict[str, list[int]], checksums: array):
        """`shape` is (L, C); `rows` are the rows of each image, the plain view first."""
        self.path, self.shape, self.rows, self.checksums = path, shape, rows, checksums
        self.file: FileIO | None = None

    def grid(self, name: str, seed: int = 0) -> torch.Tensor:
        """The grid (L, C) of one image; see `read`."""
        return self.read([(name, seed)])[0]

    def row(self, name: str, seed: int) -> int:
        """The row of the view of an image that the seed selects."""
        return self.rows[name][seed % len(self.rows[name])]

    def read(self, views: Sequence[tuple[str, int]], pin_memory: bool = False) -> torch.Tensor:
        """The grids (N, L, C) float16 of N images.

        Args:
            views: name and seed of each image; the seed selects one of its views if it has several.
            pin_memory: whether the grids are read into page-locked memory.

        Raises:
            UserError: a row is not as it was written; the store is set aside.
        """
        rows = [self.row(*view) for view in views]
        grids = torch.empty(len(rows), *self.shape, dtype=torch.float16, pin_memory=pin_memory)
        with explained(self.path.parent):
            if self.file is None:
                self.file = open(self.path, "rb", buffering=0)  # noqa: SIM115 (stays open with the object)
            _prefetch(self.file, rows, grids[0].nbytes)
        for (name, _), row, grid in zip(views, rows, grids.numpy(), strict=True):
            with explained(self.path.parent):
                is_whole = read_at(self.file, row * grid.nbytes, grid.data) == grid.nbytes
            if not is_whole or checksum(name, grid) != self.checksums[row]:
                raise self.damaged(self.file, f"row {row} of {self.path.name} is not as it was written")
        return grids

    def damaged(self, file: FileIO, reason: str) -> UserError:
        """Set the store aside, unless another process has already done so; returns the error to raise."""
        store = self.path.parent
        with file, locked(store / "lock", _BUSY, wait=True), explained(store):
            if self.path.exists() and os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                file.close()  # Windows moves no open file
                return _damaged(store, reason)
        return UserError(f"the feature cache {store} was damaged: {reason}; {_RUN_AGAIN}")

    def __getstate__(self) -> dict:
        return {**self.__dict__, "file": None}


def _prefetch(file: FileIO, rows: Sequence[int], row_size: int) -> None:
    """Let the system read all of these rows at once, in the order that suits the disk."""
    if hasattr(os, "posix_fadvise"):  # Linux
        for row in rows:
            os.posix_fadvise(file.fileno(), row * row_size, row_size, os.POSIX_FADV_WILLNEED)


def _damaged(store: Path, reason: object) -> UserError:
    """Set a store aside that the caller has locked; returns the error to raise."""
    aside = set_aside(store)
    return UserError(
        f"the feature cache {store} is damaged: {reason}; its files are now in {aside}, which you can "
        f"delete; {_RUN_AGAIN}"
    )


@dataclass(frozen=True)
class FeatureStore:
    """The features of one encoder for the images of one folder or shard; `grids` computes missing ones."""

    cache_folder: Path  # contains the stores, one folder for each identity
    identity: dict  # plain values that identify what `encode` computes; each identity has a store
    encode: Callable[[torch.Tensor], torch.Tensor]  # pixels (B, 3, H, W) uint8 -> grids (B, L, C)
    images: Images
    transform: ImageTransform
    augment: Sequence[str] = ()  # the random changes of all views but the first
    workers: int = 0
    batch_size: int = 32
    compute: Compute = _ALONE
    is_part: bool = False  # whether it is one of several stores, whose number is shown as the progress

    def grids(self, views: Mapping[str, int]) -> FeatureGrids:
        """The grids of the images in `views`, which maps an image name to its number of views.

        Grids that are missing in the store, or whose image has changed, are computed.

        Raises:
            UserError: an image cannot be read, or the store cannot be written.
        """
        store, wanted = self.folder, self.wanted(views)
        fingerprints = {name: self.images.fingerprint(name) for name in wanted}
        try:
            index = read_index(store)
        except DamagedStore:
            index = Index()  # unless another process is repairing it; that is seen under the lock
        if self.compute.largest(len(_missing(index, wanted, fingerprints))):
            index = self.complete(store, wanted, fingerprints)
        return _opened(store, index, wanted)

    def stored(self, views: Mapping[str, int]) -> FeatureGrids:
        """What `grids` has returned before; raises UserError if they are not in the store any more."""
        try:
            return _opened(self.folder, read_index(self.folder), self.wanted(views))
        except (DamagedStore, KeyError) as error:
            reason = "rows are missing" if isinstance(error, KeyError) else error
            raise UserError(f"the feature cache {self.folder} is damaged: {reason}; {_RUN_AGAIN}") from None

    @cached_property
    def full_identity(self) -> dict:
        """All that a grid depends on, but the name and the content of its image."""
        return {**self.identity, "transform": self.transform.as_dict(), "images": self.images.place}

    @cached_property
    def folder(self) -> Path:
        digest = hashlib.sha256(json.dumps(self.full_identity, sort_keys=True).encode()).hexdigest()[:16]
        return self.cache_folder / digest

    def wanted(self, views: Mapping[str, int]) -> dict[str, list[View]]:
        """The views of each image, the plain one first."""
        changes = "+".join(self.augment)
        return {
            name: [View(name, _PLAIN), *(View(name, f"{changes}/{i}") for i in range(1, count))]
            for name, count in views.items()
        }

    def complete(
        self,
        store: Path,
        wanted: dict[str, list[View]],
        fingerprints: dict[str, Fingerprint],
    ) -> Index:
        """Compute the missing views; all processes do so, and the main one writes them."""
        if not self.compute.is_main:
            missing: list[View] = self.compute.gather([])[0]
            for _ in self.encoded(missing):
                pass
            self.compute.wait()
            return read_index(store)
        with locked(store / "lock", _BUSY, wait=True):
            index = whole_index(store)  # another run may have changed it in the meantime
            write_text(store / "identity.json", json.dumps(self.full_identity, indent=1))
            missing = self.compute.gather(_missing(index, wanted, fingerprints))[0]
            self.add(store, index, missing, fingerprints)
        self.compute.wait()
        return index

    def add(
        self, store: Path, index: Index, missing: list[View], fingerprints: dict[str, Fingerprint]
    ) -> None:
        """Append the grids of the missing views to the store, and add them to the index."""
        try:
            with (
                closing(self.encoded(missing)) as batches,
                StoreWriter(store, index, len(missing)) as writer,
                Progress(len(missing), "features", "images", keep=not self.is_part) as progress,
            ):
                for i, (views, grids) in enumerate(batches, start=1):
                    writer.append(views, [fingerprints[view.image_name] for view in views], grids)
                    progress.update(len(views))
                    if i % SAVE_EVERY == 0:
                        writer.save()
        except DamagedStore as error:
            raise _damaged(store, error) from None

    def encoded(self, views: list[View]) -> Generator[tuple[list[View], torch.Tensor], None, None]:
        """Batches of the views with their grids (B, L, C) float16, in order.

        Each process computes a share of them. The main one yields them all, the others their own.
        """
        pixels_of = _ViewPixels(self.images, self.transform, list(self.augment))
        batches = [views[at : at + self.batch_size] for at in range(0, len(views), self.batch_size)]
        own = self.compute.shard(batches)
        with closing(load(pixels_of, own, torch.stack, self.workers, self.compute)) as loader:
            for at in range(0, len(batches), self.compute.world_size):
                mine = None
                if at + self.compute.rank < len(batches):
                    mine = self.encode(next(loader)).to("cpu", torch.float16).contiguous()
                first = at if self.compute.is_main else at + self.compute.rank
                found = zip(batches[first:], self.compute.gather_in_main(mine), strict=False)
                for of_batch, grids in found:
                    if grids is None:  # this process has no batch any more
                        continue
                    if not grids.sum(dtype=torch.float32).isfinite():  # faster than a test of each number
                        raise UserError(
                            f"the encoder's features of images such as {of_batch[0].image_name} are not "
                            "finite in float16; set features.cache=false, or use other weights "
                            "(encoder.weights)"
                        )
                    yield of_batch, grids


class _ViewPixels(Dataset):
    """View -> its pixels (3, H, W) uint8; raises UserError for an image that cannot be read."""

    def __init__(self, images: Images, transform: ImageTransform, augment: list[str]):
        self.images, self.transform, self.augment = images, transform, augment

    def __getitem__(self, view: View) -> torch.Tensor:
        image = self.images.read(view.image_name)
        if view.kind != _PLAIN:
            name = f"{view.image_name}/{view.kind}".encode("utf-8", "surrogatepass")
            seed = int.from_bytes(hashlib.sha256(name).digest()[:6])
            image = augment(image, self.augment, seed)
        return self.transform.pixels(image)


def _opened(store: Path, index: Index, wanted: dict[str, list[View]]) -> FeatureGrids:
    """The grids of the wanted views; raises KeyError if one is not in the index."""
    rows = {name: [index.rows[view] for view in group] for name, group in wanted.items()}
    return FeatureGrids(store / "grids.f16", index.shape, rows, index.checksums)


def _missing(index: Index, wanted: dict[str, list[View]], fingerprints: dict[str, Fingerprint]) -> list[View]:
    """The wanted views that are not in the index, or whose image has changed since."""

    def is_current(view: View) -> bool:
        row = index.rows.get(view)
        return row is not None and index.fingerprints[row] == fingerprints[view.image_name]

    return [view for group in wanted.values() for view in group if not is_current(view)]
