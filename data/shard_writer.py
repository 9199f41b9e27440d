"""Captions files and a folder of images -> shards in WebDataset's form."""

import json
import random
import re
import shlex
from collections.abc import Iterable
from itertools import chain, count
from math import ceil
from pathlib import Path

from config import DataConfig
from data.captions import read_table, references
from data.sample import draw_if_missing
from data.shard_paths import is_sharded, require_webdataset
from data.splits import SPLITS
from outputs import OutputFolder
from progress import Progress
from utils import UserError

_SUFFIX = re.compile(r"\.(jpe?g|png|webp|bmp|gif|tiff?)$", re.IGNORECASE)
_LONGEST_KEY = 80  # bytes; older tar formats have room for 100 with the extension


def write_shards(data: DataConfig, folder: Path, images_per_shard: int) -> None:
    """Write the shards of all splits to `folder`, and print how they are used.

    The content of a shard depends on nothing but the images and their captions.

    Raises:
        UserError: the captions or an image cannot be read, or the folder has shards already.
    """
    tar_writer = require_webdataset().TarWriter
    if is_sharded(data):
        raise UserError("data.captions names shards already; set it to a captions file")
    if existing := next(folder.glob("*.tar"), None):
        raise UserError(
            f"{folder} has shards already ({existing.name}); remove them, or choose another --output"
        )
    output = OutputFolder(folder)
    output.check([])
    draw_if_missing(data.captions)
    table = read_table(data)
    ids = table.drop_duplicates("image").set_index("image")["image_id"] if "image_id" in table else {}
    patterns = []
    with Progress(table["image"].nunique(), "shards", "images") as progress:
        for split in SPLITS:
            captions = references(table, split)
            names = list(captions)
            if split == "train":
                random.Random(0).shuffle(names)
            keys = _keys(names)
            shards, pattern = _shard_names(split, len(names), images_per_shard)
            patterns += pattern
            for i, shard in enumerate(shards):
                with (
                    output.writing(shard) as temporary,
                    open(temporary, "wb") as file,
                    tar_writer(file, mtime=0) as tar,
                ):
                    for name in names[i * images_per_shard : (i + 1) * images_per_shard]:
                        record: dict = {"image": name, "captions": captions[name]}
                        if len(ids):
                            record["image_id"] = _plain(ids[name])
                        tar.write({"__key__": keys[name], **_files(data.images / name, record)})
                        progress.update()
    joined = patterns[0] if len(patterns) == 1 else f"{{{','.join(patterns)}}}"
    command = ["python", "train.py", f"data.captions={folder}/{joined}.tar"]
    print(f"wrote {folder}. To train on it:\n  {shlex.join(command)}")


def _files(path: Path, record: dict) -> dict[str, bytes]:
    """The files of an image by their extensions."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); replace it or remove its captions") from None
    suffix = path.suffix[1:].lower() if _SUFFIX.search(path.name) else "jpg"
    return {
        suffix: content,
        "json": json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace"),
    }


def _shard_names(split: str, num_images: int, images_per_shard: int) -> tuple[list[str], list[str]]:
    """The names of the shards of a split, and a pattern for all of them without .tar; none without images."""
    number = ceil(num_images / images_per_shard)
    width = max(3, len(str(number - 1)))
    numbers = [f"{i:0{width}}" for i in range(number)]
    names = [f"{split}-{digits}.tar" for digits in numbers]
    if number < 2:
        return names, [f"{split}-{digits}" for digits in numbers]
    return names, [f"{split}-{{{numbers[0]}..{numbers[-1]}}}"]


def _keys(names: Iterable[str]) -> dict[str, str]:
    """Name -> key, by which the files of an image are known in a shard.

    To WebDataset, a key ends at the first dot, and a file whose name begins with __ is none of a sample. The
    name itself is in the JSON.
    """
    keys: dict[str, str] = {}
    used: set[str] = set()
    for name in names:
        key = re.sub(r"[^\w/-]", "_", _SUFFIX.sub("", name), flags=re.ASCII)[-_LONGEST_KEY:].lstrip("/_")
        numbered = (f"{key}-{n}" for n in count(len(used)))
        keys[name] = next(each for each in chain([key], numbered) if each and each not in used)
        used.add(keys[name])
    return keys


def _plain(image_id: object) -> object:
    """An id as JSON writes it; pandas has numbers of its own."""
    return image_id if isinstance(image_id, str) else int(image_id)  # type: ignore[call-overload]
