"""The index of a shard: what is in a tar file, and where, so that any image is read without the others.

A shard is a tar file in WebDataset's form: the files of a sample follow one another and differ only in their
extension, as in dog.jpg and dog.json. It is read once, and its index is kept in data.index_folder: the
captions, and where in the tar file each image begins.
"""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from data.captions_file import LONGEST_CAPTION, parse_json
from data.columns import CAPTION_COLUMNS, CAPTIONS, IMAGE_COLUMNS
from data.images import Fingerprint
from data.shard_paths import require_webdataset
from data.strings import Strings
from files import replacing
from progress import Progress
from utils import CONTROL, UserError

_T = TypeVar("_T")
_FORMAT = 1
_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")  # the first that a sample has is used
_TEXTS = ("json", "txt")
_STRINGS = ("names", "ids", "captions")
_LONGEST_NAME = 500
_MOST_PROBLEMS = 3  # that are kept for messages
_CAPTIONS: TypeAdapter[list[str | None]] = TypeAdapter(CAPTIONS)


@dataclass(frozen=True)
class ShardIndex:
    """What is known of the N images of a shard; their order is that of the tar file."""

    names: Strings  # (N,)
    ids: Strings  # (N,) image ids as JSON, "" where there is none
    captions: Strings  # (M,)
    first_caption: np.ndarray  # (N + 1,) image -> its first caption
    positions: np.ndarray  # (N, 2) where the image begins in the tar file, and its number of bytes
    facts: "ShardFacts"

    def captions_of(self, i: int) -> list[str]:
        return [self.captions[c] for c in range(self.first_caption[i], self.first_caption[i + 1])]


@dataclass(frozen=True)
class ShardFacts:
    """What is known of a shard without its images."""

    num_images: int
    num_captions: int
    num_bad: int  # samples that cannot be used
    problems: list[str]  # of the first of them
    digest: str  # of names and captions
    fingerprint: tuple[int, int, int]  # of the tar file
    format: int = _FORMAT


@dataclass(frozen=True)
class _Sample:
    name: str
    id: str
    captions: list[str]
    position: tuple[int, int]


class _Bad(ValueError):
    """A sample cannot be used; the message says why."""


def index_shards(paths: Sequence[Path], folder: Path) -> list[ShardFacts]:
    """Make sure that all shards have an index in `folder`; returns what is known of them.

    Several processes of a training begin with different shards, so that they share the work.

    Raises:
        UserError: a shard cannot be read, or `folder` cannot be written to.
    """
    facts = {path: _known(path, folder) for path in paths}
    if missing := [path for path, known in facts.items() if known is None]:
        rank, world_size = (int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1)))
        first = rank * len(missing) // world_size
        with Progress(len(missing), "index of the shards", "shards") as progress:
            for path in [*missing[first:], *missing[:first]]:
                facts[path] = _known(path, folder) or _index(path, folder).facts
                progress.update()
    return [known for known in facts.values() if known]


def read_index_of(path: Path, folder: Path) -> ShardIndex:
    """The index of a shard, which is made if it is missing, or if the shard has changed."""
    return _stored(path, folder, _whole) or _index(path, folder)


def fingerprint_of(path: Path) -> Fingerprint:
    """Size and times of a shard."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise UserError(f"cannot read the shard {path} ({error.strerror}); restore it") from None
    return Fingerprint(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _known(path: Path, folder: Path) -> ShardFacts | None:
    """What the index of a shard says of it; None if there is none, or if the shard has changed."""
    return _stored(path, folder, lambda _, facts: facts)


def _stored(path: Path, folder: Path, read: Callable[[Any, ShardFacts], _T]) -> _T | None:
    """`read` of the arrays of a shard's index; None if there is no index of the shard as it is now."""
    fingerprint = fingerprint_of(path)
    try:
        with np.load(_index_path(path, folder), allow_pickle=False) as arrays:
            facts = _facts(arrays)
            return read(arrays, facts) if facts.fingerprint == fingerprint else None
    except Exception:  # numpy and zipfile may raise anything for a file that is not as it was written
        return None


def _index_path(path: Path, folder: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    return folder / f"{path.stem[:100]}-{digest}.npz"


def _facts(arrays: Any) -> ShardFacts:
    values = json.loads(arrays["facts"].tobytes())
    if values["format"] != _FORMAT:
        raise ValueError
    return ShardFacts(**{**values, "fingerprint": Fingerprint(*values["fingerprint"])})


def _whole(arrays: Any, facts: ShardFacts) -> ShardIndex:
    strings = {name: Strings(arrays[name].tobytes(), arrays[f"start_of_{name}"]) for name in _STRINGS}
    return ShardIndex(
        **strings, first_caption=arrays["first_caption"], positions=arrays["positions"], facts=facts
    )


def _index(path: Path, folder: Path) -> ShardIndex:
    """Read a shard, and write its index."""
    before = fingerprint_of(path)
    samples, problems = [], []
    names: set[str] = set()
    for sample in _samples(path):
        if isinstance(sample, _Sample) and sample.name not in names:
            names.add(sample.name)
            samples.append(sample)
        else:
            problems.append(sample if isinstance(sample, str) else f"{sample.name!r} is there twice")
    texts = {
        "names": Strings.of(sample.name for sample in samples),
        "ids": Strings.of(sample.id for sample in samples),
        "captions": Strings.of(caption for sample in samples for caption in sample.captions),
    }
    first = np.array([0, *accumulate(len(sample.captions) for sample in samples)], np.int64)
    positions = np.array([sample.position for sample in samples], np.int64).reshape(-1, 2)
    sha = hashlib.sha256(first.tobytes())
    for text in (texts["names"], texts["captions"]):
        sha.update(text.start.tobytes())
        sha.update(text.buffer)
    num_bad, problems = len(problems), [f"{path}: {text}"[:300] for text in problems[:_MOST_PROBLEMS]]
    numbers = len(samples), len(texts["captions"]), num_bad
    facts = ShardFacts(*numbers, problems, sha.hexdigest(), before)
    arrays: dict[str, Any] = {"first_caption": first, "positions": positions}
    for name, text in texts.items():
        arrays |= {name: np.frombuffer(text.buffer, np.uint8), f"start_of_{name}": text.start}
    encoded = np.frombuffer(json.dumps(vars(facts)).encode(), np.uint8)
    with replacing(_index_path(path, folder)) as temporary, open(temporary, "wb") as file:
        np.savez(file, facts=encoded, **arrays)
    return ShardIndex(**texts, first_caption=first, positions=positions, facts=facts)


def _samples(path: Path) -> Iterator[_Sample | str]:
    """The samples of a shard, or what is wrong with them; raises UserError for a file that is no shard."""
    group_by_keys = require_webdataset().tariterators.group_by_keys
    try:
        with open(path, "rb") as file, tarfile.open(path, "r:") as tar:
            for files in group_by_keys(_members(tar, path)):
                try:
                    yield _sample(files, file)
                except _Bad as error:
                    yield f"{files['__key__']!r} {error}"
            file.seek(tar.offset)  # type: ignore[attr-defined]
            if any(file.read(tarfile.BLOCKSIZE) or [True]):  # tarfile takes any broken header for the end
                raise tarfile.ReadError(f"damaged, or cut off, at byte {tar.offset:,}")  # type: ignore[attr-defined]
    except tarfile.TarError as error:
        raise UserError(
            f"{path} is not a whole tar file without compression ({error}); write it anew"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: {error.args[0]}; write it anew") from None
    except OSError as error:
        raise UserError(f"cannot read the shard {path} ({error.strerror or error})") from None


def _members(tar: tarfile.TarFile, path: Path) -> Iterator[dict]:
    """The files of a shard as webdataset describes them, but with their places instead of their contents."""
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # it would grow
        if member.isreg() and not re.match(r"__[^/]*__($|/)", member.name):
            yield {"fname": member.name, "data": (member.offset_data, member.size), "__url__": str(path)}


def _sample(files: dict, tar: IO[bytes]) -> _Sample:
    """The sample of some files, which map an extension to the place in the tar file; raises _Bad."""
    suffix = next((suffix for suffix in _IMAGES if suffix in files), None)
    if suffix is None:
        raise _Bad(f"has no image (.{', .'.join(_IMAGES)})")
    texts = {name: _text(files[name], tar) for name in _TEXTS if name in files}
    record = _json_object(texts["json"]) if "json" in texts else {}
    key = next((name for name in CAPTION_COLUMNS if name in record), None)
    if key:
        found = _listed(record[key])
    elif "txt" in texts:
        found = texts["txt"].splitlines()
    else:
        raise _Bad(f"has neither .txt nor .json with one of the keys {', '.join(CAPTION_COLUMNS)}")
    captions = [caption for each in found if (caption := (each or "").strip())]
    if not captions:
        raise _Bad("has no caption")
    if max(map(len, captions)) > LONGEST_CAPTION:
        raise _Bad(f"has a caption of more than {LONGEST_CAPTION:,} characters")
    name = next((record[key] for key in IMAGE_COLUMNS if key in record), None)
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or CONTROL.search(name):
        name = f"{files['__key__']}.{suffix}"
    image_id = record.get("image_id")
    has_id = isinstance(image_id, int | str) and not isinstance(image_id, bool)
    return _Sample(name, json.dumps(image_id) if has_id else "", captions, files[suffix])


def _text(place: tuple[int, int], tar: IO[bytes]) -> str:
    start, size = place
    tar.seek(start)
    try:
        return tar.read(size).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _Bad("has a text that is not UTF-8") from None


def _json_object(text: str) -> dict:
    try:
        record = parse_json(text)
    except ValueError as error:
        raise _Bad(f"has broken JSON ({error})") from None
    if not isinstance(record, dict):
        raise _Bad("has JSON that is not an object")
    return record


def _listed(captions: object) -> Sequence[str | None]:
    try:
        return _CAPTIONS.validate_python(captions)
    except ValidationError:
        raise _Bad("has captions that are not texts") from None
