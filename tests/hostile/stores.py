"""Damaged feature stores: an image never gets features that are not its own."""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from data.features import FeatureStore
from data.images import ImageFolder
from tests.hostile.attempt import Hostile, Outcome, refused, works
from tests.hostile.place import small_captioner
from utils import UserError

_NAMES = [f"{i:02}.png" for i in range(24)]


def grids() -> torch.Tensor:
    """The features of all images, from a store in the folder `store`."""
    captioner = small_captioner()

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return captioner.model.grid(captioner.transform.normalise(pixels))

    identity, images = {"encoder": "a test"}, Path("data/images")
    store = FeatureStore(Path("store"), identity, encode, ImageFolder(images), captioner.transform)
    found = store.grids(dict.fromkeys(_NAMES, 1))
    return torch.stack([found.grid(name) for name in _NAMES])


def read(_: Path) -> torch.Tensor:
    """The features; if damage is found while they are read, those of the run that is asked for then."""
    try:
        return grids()
    except UserError as error:
        if "run again" not in str(error):
            raise
        return grids()


def its_own(outcome: Outcome) -> None:
    """The features of every image are those that a new store has, or the store is refused by name."""
    if outcome.status == 2:
        refused("store", written=True)(outcome)
        return
    works(outcome)
    (outcome.folder / "store").rename(outcome.folder / "damaged")
    with contextlib.chdir(outcome.folder), contextlib.redirect_stdout(io.StringIO()):
        fresh = grids()
    assert isinstance(outcome.value, torch.Tensor)
    wrong = [name for name, a, b in zip(_NAMES, outcome.value, fresh, strict=True) if not torch.equal(a, b)]
    assert not wrong, f"{len(wrong)} images have features that are not theirs, such as {wrong[0]}"


def _files() -> tuple[Path, Path]:
    """index.jsonl and grids.f16."""
    [index] = Path("store").glob("*/index.jsonl")
    return index, index.with_name("grids.f16")


def damaged(name: str, damage: Callable[[Path, Path], object]) -> Hostile:
    """A store whose files (index.jsonl, grids.f16) were damaged."""

    def prepare(_: Path) -> None:
        for folder in ("store", "damaged"):  # of an input before this one
            shutil.rmtree(folder, ignore_errors=True)
        grids()
        damage(*_files())

    return Hostile(f"store: {name}", prepare, read, its_own)


def _index(name: str, change: Callable[[list], object]) -> Hostile:
    """A store whose index has other lines; `change` is given their values, the header first."""

    def damage(index: Path, _: Path) -> None:
        lines = [json.loads(line) for line in index.read_text("utf-8").splitlines()]
        change(lines)
        index.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")

    return damaged(f"index {name}", damage)


def _header(key: str, value: object) -> Hostile:
    return _index(f"with {key} {value}", lambda lines: lines[0].update({key: value}))


def _column(number: int, what: str, value: object) -> Hostile:
    """One value of every line [image name, kind of view, row, size, mtime, ctime, checksum] is another."""

    def change(lines: list) -> None:
        for line in lines[1:]:
            line[number] = value

    return _index(f"with {what} {str(value)[:20]}", change)


def _swap(lines: list) -> None:
    lines[1][0], lines[2][0] = lines[2][0], lines[1][0]


def _swap_rows(lines: list) -> None:
    lines[1][2], lines[2][2] = lines[2][2], lines[1][2]


def _unusual(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


def _zero_end(_: Path, rows: Path) -> None:
    """As after a power cut: the file has its size, but the last blocks never reached the disk."""
    size, half = rows.stat().st_size, _half(rows)
    os.truncate(rows, half)
    os.truncate(rows, size)


def _append(path: Path, content: bytes) -> None:
    path.write_bytes(path.read_bytes() + content)


def _half(path: Path) -> int:
    return path.stat().st_size // 2


_INDEX = [
    *(
        _header("shape", value)
        for value in (None, [], "xx", [-1, -1], [49], [1, 1], [10**6, 10**6], [0.5, 2])
    ),
    *(_header("format", value) for value in (None, 0, 99, "2", True, [2])),
    *(_column(0, "names", value) for value in (7, None, "../../x.png", "00.png", "\u20ac")),
    *(_column(1, "kinds", value) for value in (None, 7, "", "crop/1")),
    *(_column(2, "rows", value) for value in (-1, 0, 10**6, 10**30, "0", 0.5, True, None, [0])),
    *(_column(3, "sizes", value) for value in (-1, "x", 10**30, None)),
    *(_column(6, "checksums", value) for value in (-1, 0, 2**32, "x", None, 10**30)),
    _index("is empty lists", lambda lines: lines.__setitem__(slice(None), [[]] * 25)),
    _index("is numbers", lambda lines: lines.__setitem__(slice(None), [7] * 25)),
    _index("without a header", lambda lines: lines.pop(0)),
    _index("with only a header", lambda lines: lines.__delitem__(slice(1, None))),
    _index("without a line in the middle", lambda lines: lines.pop(9)),
    _index("with a line twice", lambda lines: lines.insert(9, lines[9])),
    _index("with lines in another order", lambda lines: lines.sort(key=str, reverse=True)),
    _index("with the names of two rows exchanged", _swap),
    _index("with the numbers of two rows exchanged", _swap_rows),
    _index("with short lines", lambda lines: [line.pop() for line in lines[1:]]),
    _index("with long lines", lambda lines: [line.append(1) for line in lines[1:]]),
]
_FILES = [
    damaged("index is empty", lambda index, _: index.write_bytes(b"")),
    damaged("index is cut in a line", lambda index, _: os.truncate(index, _half(index))),
    damaged("index is deeply nested", lambda index, _: index.write_bytes(b"[" * 100_000 + b"\n")),
    damaged("index is not UTF-8", lambda index, _: index.write_bytes(b'{"shape": "\xff"}\n')),
    damaged("index is zeros, as after a power cut", lambda index, _: index.write_bytes(bytes(2000))),
    damaged("index is missing", lambda index, _: index.unlink()),
    damaged("index is a folder", lambda index, _: _unusual(index, os.mkdir)),
    damaged("index is a pipe", lambda index, _: _unusual(index, os.mkfifo)),
    damaged("features are missing", lambda _, rows: rows.unlink()),
    damaged("features are empty", lambda _, rows: rows.write_bytes(b"")),
    damaged("features lack a byte", lambda _, rows: os.truncate(rows, rows.stat().st_size - 1)),
    damaged("features are cut in half", lambda _, rows: os.truncate(rows, _half(rows))),
    damaged("features are zeros", lambda _, rows: rows.write_bytes(bytes(rows.stat().st_size))),
    damaged("features end with zeros", _zero_end),
    damaged("features have more at the end", lambda _, rows: _append(rows, b"\xff" * 999)),
    damaged("features have a wrong bit", lambda _, rows: _flip(rows, _half(rows))),
    damaged("features begin later", lambda _, rows: rows.write_bytes(bytes(16) + rows.read_bytes()[:-16])),
    damaged("features are a folder", lambda _, rows: _unusual(rows, os.mkdir)),
    damaged("features are a pipe", lambda _, rows: _unusual(rows, os.mkfifo)),
    damaged("features are a loop of links", lambda _, rows: _unusual(rows, lambda p: p.symlink_to(p.name))),
    damaged("identity is missing", lambda index, _: index.with_name("identity.json").unlink()),
    damaged("leftovers of a killed process", lambda index, _: index.with_name(".1-0.tmp").write_text("half")),
]  # fmt: skip
INPUTS = [*_INDEX, *_FILES]
