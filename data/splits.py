"""The split of an image (train, val or test) if the captions file does not name one."""

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from data.captions_file import Row
from utils import UserError

# Flickr8k's lists: the names of the images in each split, one per line.
LISTS = {
    "Flickr_8k.trainImages.txt": "train",
    "Flickr_8k.devImages.txt": "val",
    "Flickr_8k.testImages.txt": "test",
}
SPLITS = tuple(LISTS.values())  # train, val, test
_FLICKR8K_NAME = re.compile(r"\d+_[0-9a-f]{10}\.jpg")
_FLICKR8K_IMAGES = 8092


def split_of(image: str) -> str:
    """train (80 %), val (10 %) or test (10 %) from the name alone, so new images do not move others."""
    return {0: "val", 1: "test"}.get(_bucket_of(image), "train")


def half_of(image: str) -> str:
    """val or test from the name alone; the same as `split_of` for an image that it puts into val or test."""
    return ("val", "test")[_bucket_of(image) % 2]


def splits_by_name(paths: Sequence[Path]) -> list[tuple[str, ...]]:
    """For each captions file, the splits that its name stands for, as in captions_train2014.json.

    Names count only if they tell files of two or more splits apart. COCO does not publish the captions of its
    test images, so without a test file, the val file stands for val and test (`half_of`). A file gets () if
    its name is not that of one split.
    """
    named = []
    for path in paths:
        words = set(SPLITS) & set(re.findall("[a-z]+", path.stem.lower()))
        named.append(next(iter(words)) if len(words) == 1 else None)
    if len({*named} - {None}) < 2:
        return [()] * len(paths)
    val = ("val",) if "test" in named else ("val", "test")
    return [() if split is None else val if split == "val" else (split,) for split in named]


def _bucket_of(image: str) -> int:
    """0 to 9, evenly distributed."""
    return int.from_bytes(hashlib.sha256(image.encode("utf-8", "surrogatepass")).digest()[:8]) % 10


def split_by_lists(rows: Iterable[Row], path: Path, folder: Path | None) -> tuple[Iterable[Row], str]:
    """Set the splits of the rows of the file `path` from Flickr8k's lists, if there are any.

    Args:
        folder: the folder of the lists. If None, lists beside the file are used if they name its images.

    Returns:
        The rows, and a remark for the message about the file. Images in none of the lists get an empty split.
        If the file has splits, its rows are not changed.

    Raises:
        UserError: a list is missing or cannot be read, an image is in two lists, or no image of the file is
            in the lists in `folder`.
    """
    where = folder or path.parent
    if not folder and not any((where / name).is_file() for name in LISTS):
        return rows, ""
    rows = list(rows)
    if all(row.split is not None or row.problem for row in rows):
        return rows, " (it has splits: data.lists is not used)" if folder else ""
    splits = _read_lists(where)
    if any(row.image.strip() in splits for row in rows):
        rows = [row._replace(split=splits.get(row.image.strip(), "")) for row in rows]
        return rows, f" (split by the lists in {where})"
    if folder:
        raise UserError(f"none of the images of {path} is in the lists in {folder}; correct data.lists")
    return rows, ""


def _read_lists(folder: Path) -> dict[str, str]:
    """Image name -> split; raises UserError as `split_by_lists`."""
    if missing := [name for name in LISTS if not (folder / name).is_file()]:
        raise UserError(
            f"{missing[0]} is missing in {folder}; put {', '.join(LISTS)} into one folder and set data.lists "
            "to it"
        )
    splits: dict[str, str] = {}
    for name, split in LISTS.items():
        try:
            images = (folder / name).read_text("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the list {folder / name} ({error}); save it as UTF-8") from None
        for image in filter(None, map(str.strip, images)):
            if splits.setdefault(image, split) != split:
                raise UserError(f"the lists in {folder} have {image!r} in {splits[image]} and in {split}")
    return splits


def is_flickr8k(images: Collection[str]) -> bool:
    """Whether these distinct names are Flickr8k's: their form must match, and their number within 5 %.

    The form alone is not enough, because other images from Flickr have such names.
    """
    named = sum(_FLICKR8K_NAME.fullmatch(image) is not None for image in images)
    return abs(named - _FLICKR8K_IMAGES) <= 0.05 * _FLICKR8K_IMAGES
