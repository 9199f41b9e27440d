"""The features of a frozen encoder, computed once per image and kept in a file.

A store is a folder with two files. Rows are only appended to `grids.f16`; `index.json` records the image of
each row, and the size and times of the image file when the row was computed. The name of the folder is a
digest of everything else that the features depend on: the encoder's weights, the transform, the precision.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data.transforms import ImageTransform, augment, read_image
from files import replacing
from progress import Progress
from utils import UserError

_PLAIN = "plain"
_SAVE_EVERY = 64  # batches after which the index is written; an interrupted pass continues from there


class View(NamedTuple):
    """An image without changes, or one of its augmented versions."""

    image_name: str
    kind: str  # "plain", or the changes and a number, such as "crop+flip/1"


class Fingerprint(NamedTuple):
    """Size and times of a file, which change with its content (ctime even if a copy keeps the date)."""

    size: int
    mtime_ns: int
    ctime_ns: int


class Entry(NamedTuple):
    """The row of a view, and the fingerprint of its image when the features were computed."""

    row: int
    fingerprint: Fingerprint


@dataclass
class Index:
    """The rows of a store."""

    shape: tuple[int, ...]  # (L, C) of a row; () if there are no rows yet
    entries: dict[View, Entry]


class FeatureGrids:
    """Grids by image name, each read from the file when it is needed.

    The file is not memory-mapped: mapped pages count as memory of this process, and an epoch over COCO reads
    24 GB of them. Pickling keeps the path, not the open file. A process and its fork must not both read,
    because they share the position in the file.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], rows: dict[str, list[int]]):
        """`shape` is (L, C); `rows` are the rows of each image, the plain view first."""
        self.path, self.shape, self.rows = path, shape, rows
        self.file: FileIO | None = None

    def grid(self, name: str, seed: int = 0) -> torch.Tensor:
        """The grid (L, C) float16 of the image; `seed` selects one of its views if it has several."""
        if self.file is None:
            self.file = open(self.path, "rb", buffering=0)  # noqa: SIM115 (stays open with the object)
        rows = self.rows[name]
        grid = np.empty(self.shape, np.float16)
        self.file.seek(rows[seed % len(rows)] * grid.nbytes)
        if self.file.readinto(grid.data) != grid.nbytes:
            raise UserError(f"the feature cache {self.path} is incomplete; delete its folder")
        return torch.from_numpy(grid)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "file": None}


@dataclass(frozen=True)
class FeatureStore:
    """The features of one encoder for the images of one folder; `grids` computes missing ones."""

    cache_folder: Path  # contains the stores, one folder for each identity
    identity: dict  # plain values that identify what `encode` computes; each identity has a store
    encode: Callable[[torch.Tensor], torch.Tensor]  # pixels (B, 3, H, W) uint8 -> grids (B, L, C)
    image_folder: Path
    transform: ImageTransform
    augment: Sequence[str] = ()  # the random changes of all views but the first
    workers: int = 0
    batch_size: int = 32

    def grids(self, views: Mapping[str, int]) -> FeatureGrids:
        """The grids of the images in `views`, which maps an image name to its number of views.

        Grids that are missing in the store, or whose image has changed, are computed.

        Raises:
            UserError: an image cannot be read, or the store cannot be written.
        """
        identity = {
            **self.identity,
            "transform": self.transform.as_dict(),
            "images": str(self.image_folder.resolve()),
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        store = self.cache_folder / digest
        changes = "+".join(self.augment)
        wanted = {
            name: [View(name, _PLAIN), *(View(name, f"{changes}/{i}") for i in range(1, count))]
            for name, count in views.items()
        }
        fingerprints = {name: fingerprint(self.image_folder / name) for name in wanted}
        try:
            store.mkdir(parents=True, exist_ok=True)
            index = read_index(store)
            if _missing(index, wanted, fingerprints):
                with locked(store / "lock"):
                    index = read_index(store)  # another run may have changed it in the meantime
                    (store / "identity.json").write_text(json.dumps(identity, indent=1))
                    self.add(store, index, _missing(index, wanted, fingerprints), fingerprints)
        except OSError as error:
            raise UserError(
                f"cannot use the feature cache {store} ({error}); change features.folder, or set "
                "features.cache=false"
            ) from None
        rows = {name: [index.entries[view].row for view in group] for name, group in wanted.items()}
        return FeatureGrids(store / "grids.f16", index.shape, rows)

    def add(
        self, store: Path, index: Index, missing: list[View], fingerprints: dict[str, Fingerprint]
    ) -> None:
        """Compute the missing views, append their grids to the store and add them to the index."""
        loader = DataLoader(
            _ViewPixels(self.image_folder, missing, self.transform, list(self.augment)),
            batch_size=self.batch_size,
            num_workers=self.workers,
            collate_fn=_stack_pixels,
            generator=torch.Generator(),  # leaves torch's global generator unchanged
        )
        with (
            open(store / "grids.f16", "ab") as file,
            Progress(len(missing), "features", "images") as progress,
        ):
            for i, pixels in enumerate(loader, start=1):
                if isinstance(pixels, str):
                    raise UserError(pixels)
                grids = self.encode(pixels).to("cpu", torch.float16).contiguous()
                index.shape = tuple(grids.shape[1:])
                first_row = _append(file, grids)
                for j, view in enumerate(missing[progress.done : progress.done + len(grids)]):
                    index.entries[view] = Entry(first_row + j, fingerprints[view.image_name])
                progress.update(len(grids))
                if i % _SAVE_EVERY == 0:
                    file.flush()
                    write_index(store, index)
        write_index(store, index)


class _ViewPixels(Dataset):
    """Views as pixels (3, H, W) uint8; if an image cannot be read, the item is an error message."""

    def __init__(self, image_folder: Path, views: list[View], transform: ImageTransform, augment: list[str]):
        self.image_folder, self.views, self.transform, self.augment = image_folder, views, transform, augment

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, i: int) -> torch.Tensor | str:
        name, kind = self.views[i]
        try:
            image = read_image(self.image_folder / name)
        except OSError as error:
            return f"{self.image_folder / name} cannot be read ({error}); replace it or remove its captions"
        if kind != _PLAIN:
            seed = int.from_bytes(hashlib.sha256(f"{name}/{kind}".encode()).digest()[:6])
            image = augment(image, self.augment, seed)
        return self.transform.pixels(image)


def _stack_pixels(items: list[torch.Tensor | str]) -> torch.Tensor | str:
    """A batch as one tensor, stacked in the worker that read it, or the first error message."""
    errors = [item for item in items if isinstance(item, str)]
    pixels = [item for item in items if isinstance(item, torch.Tensor)]
    return errors[0] if errors else torch.stack(pixels)


def _missing(index: Index, wanted: dict[str, list[View]], fingerprints: dict[str, Fingerprint]) -> list[View]:
    """The wanted views that are not in the index, or whose image has changed since."""

    def is_current(view: View) -> bool:
        entry = index.entries.get(view)
        return entry is not None and entry.fingerprint == fingerprints[view.image_name]

    return [view for group in wanted.values() for view in group if not is_current(view)]


def _append(file: BinaryIO, grids: torch.Tensor) -> int:
    """Append a batch of grids (B, L, C) as rows; returns the number of the first row."""
    size = grids[0].numel() * grids.element_size()
    row = file.tell() // size
    file.truncate(row * size)  # a pass that was killed while writing may have left half a row
    file.seek(0, 2)
    file.write(grids.numpy().tobytes())
    return row


def fingerprint(path: Path) -> Fingerprint:
    """The fingerprint of an image file; raises UserError if there is no such file."""
    try:
        stat = path.stat()
    except OSError:
        raise UserError(f"no image at {path.absolute()}; set data.images to the image folder") from None
    return Fingerprint(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def read_index(store: Path) -> Index:
    """The index of a store; empty if the store is new."""
    path = store / "index.json"
    if not path.exists():
        return Index((), {})
    index = json.loads(path.read_text("utf-8"))
    entries = {View(name, kind): Entry(row, Fingerprint(*times)) for name, kind, row, *times in index["rows"]}
    return Index(tuple(index["shape"]), entries)


def write_index(store: Path, index: Index) -> None:
    """Write {"shape": [L, C], "rows": [[image name, kind of view, row, *fingerprint], ...]}."""
    rows = [[*view, entry.row, *entry.fingerprint] for view, entry in index.entries.items()]
    with replacing(store / "index.json") as temporary:
        temporary.write_text(json.dumps({"shape": index.shape, "rows": rows}), "utf-8")


@contextlib.contextmanager
def locked(path: Path):
    """Hold a lock on `path`, so that two runs do not fill a store at the same time (not on Windows)."""
    with open(path, "w") as file:
        try:
            import fcntl
        except ImportError:  # Windows: both runs compute the features, each in separate rows
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another run is computing these features; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
