"""What a frozen encoder sees, computed once per image and kept in a file.

A store is a folder with `grids.f16`, to which rows are only ever appended, and `index.json`, which says
which row belongs to which image and what the image was when it was computed. The folder's name is a
digest of all else that the features depend on: the encoder's weights, the transform, the precision.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data.transforms import ImageTransform, augment, read_image
from files import replacing
from progress import Progress
from utils import UserError

View = tuple[str, str]  # image name and which view of it: "plain", or an augmented one such as "crop+flip/1"
PLAIN = "plain"
SAVE_EVERY = 64  # batches after which the index is written: an interrupted pass goes on from there


class FeatureGrids:
    """Grids by image name, each read from the file when it is asked for.

    Not memory-mapped: the pages of a map count as this process's memory, and an epoch over COCO touches 24 GB
    of them. Pickles as a path; do not ask in a process and in its fork, which share the position in the file.
    """

    def __init__(self, path: Path, shape: tuple[int, int], rows: dict[str, list[int]]):
        """`shape` is (L, C); `rows` says which rows an image has, the plain view first."""
        self.path, self.shape, self.rows = path, shape, rows
        self.file = None

    def grid(self, name: str, seed: int = 0) -> torch.Tensor:
        """(L, C) float16 of the image; of one of its views, drawn by `seed`, where it has several."""
        if self.file is None:
            self.file = open(self.path, "rb", buffering=0)  # noqa: SIM115 (open as long as the object lives)
        rows = self.rows[name]
        grid = np.empty(self.shape, np.float16)
        self.file.seek(rows[seed % len(rows)] * grid.nbytes)
        if self.file.readinto(grid) != grid.nbytes:
            raise UserError(f"the feature cache {self.path} was cut short; delete its folder")
        return torch.from_numpy(grid)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "file": None}


class MissingViews(Dataset):
    """The views that are still to be computed, as pixels; one that cannot be read comes as its error."""

    def __init__(
        self, image_folder: Path, views: list[View], transform: ImageTransform, augmentation: list[str]
    ):
        self.image_folder, self.views, self.transform = image_folder, views, transform
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, i: int) -> torch.Tensor | str:
        name, view = self.views[i]
        try:
            image = read_image(self.image_folder / name)
        except OSError as error:
            return f"{self.image_folder / name} cannot be read ({error}); replace it or drop its captions"
        if view != PLAIN:
            seed = int.from_bytes(hashlib.sha256(f"{name}/{view}".encode()).digest()[:6])
            image = augment(image, self.augmentation, seed)
        return self.transform.pixels(image)


def stack_images(items: list[torch.Tensor | str]) -> torch.Tensor | str:
    """One tensor per batch, stacked by the worker that read it; the first error if there is one."""
    errors = [item for item in items if isinstance(item, str)]
    return errors[0] if errors else torch.stack(items)


def cached_features(
    folder: Path,
    identity: dict,
    encode: Callable[[torch.Tensor], torch.Tensor],
    image_folder: Path,
    names: Sequence[str],
    transform: ImageTransform,
    *,
    views: dict[str, int] | None = None,
    augment: Sequence[str] = (),
    workers: int = 0,
    batch_size: int = 32,
) -> FeatureGrids:
    """The features of `names`, computing those that the store lacks or whose image has changed.

    Args:
        folder: where the stores lie, one folder in it for each identity.
        identity: plain values that say what `encode` computes; another identity is another store.
        encode: pixels (B, 3, H, W) uint8 -> grids (B, L, C).
        views: views per image name where there are more than one; views after the first are augmented.

    Raises:
        UserError: an image cannot be read, or the store cannot be written.
    """
    identity = {**identity, "transform": transform.as_dict(), "images": str(image_folder.resolve())}
    kinds = "+".join(augment)
    wanted = {
        name: [(name, PLAIN), *((name, f"{kinds}/{i}") for i in range(1, (views or {}).get(name, 1)))]
        for name in names
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    store = folder / digest
    prints = {name: fingerprint(image_folder / name) for name in wanted}
    try:
        store.mkdir(parents=True, exist_ok=True)
        index, missing = look_up(store, wanted, prints)
        if missing:
            with locked(store / "lock"):
                # Another run may have computed them while this one waited.
                index, missing = look_up(store, wanted, prints)
                (store / "identity.json").write_text(json.dumps(identity, indent=1))
                loader = DataLoader(
                    MissingViews(image_folder, missing, transform, list(augment)),
                    batch_size=batch_size,
                    num_workers=workers,
                    collate_fn=stack_images,
                    generator=torch.Generator(),
                )
                compute(store, index, missing, prints, loader, encode)
    except OSError as error:
        raise UserError(
            f"the feature cache {store}: {error}; set features.folder, or features.cache=false"
        ) from None
    rows = {name: [index["rows"][view][0] for view in views] for name, views in wanted.items()}
    return FeatureGrids(store / "grids.f16", tuple(index["shape"]), rows)


def look_up(
    store: Path, wanted: dict[str, list[View]], prints: dict[str, list[int]]
) -> tuple[dict, list[View]]:
    """The store's index, and which of the wanted views it lacks or has of another image."""
    index = read_index(store)
    known = index["rows"]
    views = [view for group in wanted.values() for view in group]
    return index, [view for view in views if known.get(view, [None])[1:] != prints[view[0]]]


def compute(store: Path, index: dict, missing: list[View], prints: dict, loader: DataLoader, encode) -> None:
    """Append the missing views, which `loader` reads in this order, and enter them into the index."""
    with (
        open(store / "grids.f16", "ab") as file,
        Progress(len(missing), "features", "images") as progress,
    ):
        for i, batch in enumerate(loader, start=1):
            if isinstance(batch, str):
                raise UserError(batch)
            index["shape"], row = append(file, encode, batch)
            for j, view in enumerate(missing[progress.done : progress.done + len(batch)]):
                index["rows"][view] = [row + j, *prints[view[0]]]
            progress.update(len(batch))
            if i % SAVE_EVERY == 0:
                file.flush()
                write_index(store, index)
    write_index(store, index)


def append(file, encode, images: torch.Tensor) -> tuple[list[int], int]:
    """Compute one batch and append its rows; returns their shape and the number of the first."""
    grids = encode(images).to("cpu", torch.float16).contiguous()
    size = grids[0].numel() * grids.element_size()
    row = file.tell() // size
    file.truncate(row * size)  # half a row may be left of a pass that was killed in its midst
    file.seek(0, 2)
    file.write(grids.numpy().tobytes())
    return list(grids.shape[1:]), row


def fingerprint(path: Path) -> list[int]:
    """Size and times of a file: they change with its content (ctime even where a copy keeps the date)."""
    try:
        stat = path.stat()
    except OSError:
        raise UserError(f"no image at {path.absolute()}; set data.images to the images' folder") from None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def read_index(store: Path) -> dict:
    """{"shape": [L, C], "rows": {(name, view): [row, *fingerprint]}}; empty where there is none yet."""
    path = store / "index.json"
    if not path.exists():
        return {"shape": None, "rows": {}}
    index = json.loads(path.read_text("utf-8"))
    return {"shape": index["shape"], "rows": {(name, view): rest for name, view, *rest in index["rows"]}}


def write_index(store: Path, index: dict) -> None:
    rows = [[*view, *rest] for view, rest in index["rows"].items()]
    with replacing(store / "index.json") as temporary:
        temporary.write_text(json.dumps({"shape": index["shape"], "rows": rows}), "utf-8")


@contextlib.contextmanager
def locked(path: Path):
    """Hold a lock on `path`: two runs that fill one store take turns (where the system has flock)."""
    with open(path, "w") as file:
        try:
            import fcntl
        except ImportError:  # Windows: two runs at once compute the features twice, into rows of their own
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another run is computing these features: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
