"""The files of a feature store: the rows, and the index that names them.

`grids.f16` contains one grid after the other. `index.jsonl` begins with {"format": 2, "shape": [L, C]} and
then has a line for each row, in the same order: [image name, kind of view, row, size, mtime_ns, ctime_ns,
CRC-32]. Both files only grow. A line is written when its row is safely on the disk, so a kill or a power cut
leaves at most rows that no line names and a part of a line. The next process that writes cuts them off.
"""

import contextlib
import itertools
import json
import os
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import FileIO
from math import prod
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, Field, PositiveInt, TypeAdapter

from data.images import Fingerprint
from files import cannot_write, flush_folder, remove_leftovers, require_space
from utils import UserError

_LINE_SIZE = 150  # bytes of a line of the index, about


class View(NamedTuple):
    """An image without changes, or one of its augmented versions."""

    image_name: str
    kind: str  # "plain", or the changes and a number, such as "crop+flip/1"


@dataclass
class Index:
    """The rows of a store. Of a million: plain tuples, because Python's garbage collector ignores them."""

    shape: tuple[int, ...] = ()  # (L, C) of a row; () if there are no rows yet
    rows: dict[tuple[str, str], int] = field(default_factory=dict)  # View -> its last row, if it has several
    fingerprints: list[tuple[int, int, int]] = field(default_factory=list)  # of the image of each row
    checksums: array = field(default_factory=lambda: array("I"))  # of each row
    size: int = 0  # bytes of index.jsonl

    @property
    def row_size(self) -> int:
        """Bytes of a row; 0 if there are no rows yet."""
        return prod(self.shape) * np.float16().nbytes if self.shape else 0

    def add(self, view: tuple[str, str], fingerprint: tuple[int, int, int], crc: int) -> None:
        """Name the next row."""
        self.rows[view] = len(self.checksums)
        self.fingerprints.append(fingerprint)
        self.checksums.append(crc)


class DamagedStore(Exception):
    """The files of a store are not as they were written; the message says what is wrong."""


class _Header(BaseModel, extra="forbid"):
    format: Literal[2]
    shape: tuple[PositiveInt, PositiveInt]


# Image name, kind, row, size, mtime_ns, ctime_ns, CRC-32. The name is its bytes as characters, because
# pydantic reads no JSON with a name that is not valid UTF-8.
_LINE = TypeAdapter(tuple[str, str, int, int, int, int, Annotated[int, Field(ge=0, lt=2**32)]])


@contextlib.contextmanager
def explained(store: Path) -> Iterator[None]:
    """Turn errors of the system into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot use the feature cache {store} ({error}); change features.folder, or set "
            "features.cache=false"
        ) from None


def checksum(image_name: str, grid: np.ndarray) -> int:
    """CRC-32 of a grid and of the name of its image, so that no other image's row is taken for it."""
    return zlib.crc32(grid.data, zlib.crc32(image_name.encode("utf-8", "surrogatepass")))


def read_index(store: Path) -> Index:
    """The index of a store without a last line that is incomplete; empty if the store is new.

    Raises:
        DamagedStore: a line is not as it was written, or rows are missing.
        UserError: the files cannot be read.
    """
    index = Index()
    for name in ("index.jsonl", "grids.f16"):
        if (store / name).exists() and not (store / name).is_file():  # a pipe would be waited for
            raise DamagedStore(f"{name} is not a file")
    with explained(store):
        try:
            with open(store / "index.jsonl", "rb") as file:
                for number, line in enumerate(file):
                    if line.endswith(b"\n"):
                        _add_line(index, number, line)
            size = (store / "grids.f16").stat().st_size
        except FileNotFoundError:
            size = 0
    if size < len(index.checksums) * index.row_size:
        raise DamagedStore("grids.f16 is shorter than index.jsonl says")
    return index


def _add_line(index: Index, number: int, text: bytes) -> None:
    """Add line `number` (from 0) of index.jsonl to the index; raises DamagedStore."""
    try:
        if number == 0:
            index.shape = _Header.model_validate_json(text, strict=True).shape
        else:
            name, kind, row, size, mtime_ns, ctime_ns, crc = _LINE.validate_json(text, strict=True)
            if row != len(index.checksums):
                raise ValueError
            name = name.encode("latin-1").decode("utf-8", "surrogatepass")
            index.add((name, kind), (size, mtime_ns, ctime_ns), crc)
    except ValueError:  # pydantic's ValidationError is one
        raise DamagedStore(f"line {number + 1} of index.jsonl is not as it was written") from None
    index.size += len(text)


def whole_index(store: Path) -> Index:
    """The index of a store that the caller has locked and will write to.

    Cuts off what killed processes have left. A store that is damaged, or that an earlier version of this
    project has written, is replaced by an empty one; prints a line that says so.
    """
    with explained(store):
        remove_leftovers(store)
        if (store / "index.json").exists():
            print(f"the feature cache {store} has an earlier format; it is computed anew", flush=True)
            (store / "grids.f16").unlink(missing_ok=True)
            (store / "index.json").unlink()
        try:
            index = read_index(store)
        except DamagedStore as error:
            aside = set_aside(store)
            print(
                f"the feature cache {store} is damaged: {error}; it is computed anew, and the damaged files "
                f"are now in {aside}, which you can delete",
                flush=True,
            )
            index = Index()
        for name, size in (
            ("grids.f16", len(index.checksums) * index.row_size),
            ("index.jsonl", index.size),
        ):
            (store / name).touch()
            os.truncate(store / name, size)
        flush_folder(store)
    return index


def set_aside(store: Path) -> Path:
    """Move the files of a damaged store, which the caller has locked, to a new folder beside it."""
    folders = (store.with_name(f"{store.name}.damaged-{i}") for i in itertools.count(1))
    aside = next(folder for folder in folders if not folder.exists())
    aside.mkdir()
    for name in ("index.jsonl", "grids.f16"):  # in this order: rows without an index do no harm
        if (store / name).exists():
            os.replace(store / name, aside / name)
    return aside


class StoreWriter:
    """Appends to a store that the caller has locked; used in a `with` statement.

    All that was appended is in the store at the end of the statement, however it ends, unless the disk fails.
    """

    def __init__(self, store: Path, index: Index, num_rows: int):
        """`index`: that of `whole_index`, which is kept up to date; `num_rows`: how many will be appended."""
        self.store, self.index, self.num_rows = store, index, num_rows
        self.has_space = False  # whether it was checked
        self.lines: list[str] = []  # of rows that are written, but not yet named

    def __enter__(self) -> "StoreWriter":
        with explained(self.store):
            self.rows = open(self.store / "grids.f16", "r+b", buffering=0)
            self.names = open(self.store / "index.jsonl", "r+b", buffering=0)
        return self

    def __exit__(self, *_) -> None:
        with self.rows, self.names:
            self.save()

    def append(self, views: Sequence[View], fingerprints: Sequence[Fingerprint], grids: torch.Tensor) -> None:
        """Write the grids (B, L, C) float16 of `views` as rows.

        Raises:
            DamagedStore: the rows of the store have another shape.
            UserError: the disk is full or fails.
        """
        index, rows = self.index, grids.numpy()
        if not index.shape:
            index.shape = rows.shape[1:]
            self.lines.append(json.dumps({"format": 2, "shape": index.shape}))
        if index.shape != rows.shape[1:]:
            raise DamagedStore(f"its rows have the shape {index.shape}, not {rows.shape[1:]}")
        if not self.has_space:
            require_space(self.store, self.size, f"the features of {self.num_rows:,} images")
            self.has_space = True
        with self.written(self.rows):
            write_at(self.rows, len(index.checksums) * index.row_size, rows.data.cast("B"))
        for view, fingerprint, row in zip(views, fingerprints, rows, strict=True):
            self.name(view, fingerprint, checksum(view.image_name, row))

    @property
    def size(self) -> int:
        """About how many bytes all that will be appended needs."""
        return self.num_rows * (self.index.row_size + _LINE_SIZE)

    def name(self, view: View, fingerprint: Fingerprint, crc: int) -> None:
        """Name the next row; the line is written by `save`."""
        name = view.image_name.encode("utf-8", "surrogatepass").decode("latin-1")
        line = [name, view.kind, len(self.index.checksums), *fingerprint, crc]
        self.index.add(view, fingerprint, crc)
        self.lines.append(json.dumps(line))

    def save(self) -> None:
        """Flush the rows to disk, then the lines that name them. May be repeated if it was interrupted."""
        if not self.lines:
            return
        text = "".join(f"{line}\n" for line in self.lines).encode("ascii")
        with self.written(self.rows):
            os.fsync(self.rows)
        with self.written(self.names):
            write_at(self.names, self.index.size, text)
            os.fsync(self.names)
        self.index.size, self.lines = self.index.size + len(text), []

    @contextlib.contextmanager
    def written(self, file: FileIO) -> Iterator[None]:
        """Turn errors of the system into a UserError; after one, nothing more is named."""
        try:
            yield
        except OSError as error:
            self.lines = []
            raise cannot_write(Path(file.name), error, self.size) from None


def write_at(file: FileIO, position: int, data: bytes | memoryview) -> None:
    file.seek(position)
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
