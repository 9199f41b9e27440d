"""A captions file -> one table: image, caption, split."""

import csv
import hashlib
from pathlib import Path

import pandas as pd

from utils import UserError

SPLITS = ("train", "val", "test")
COLUMNS = ["image", "caption", "split"]


def read_captions(path: Path) -> pd.DataFrame:
    """Read a CSV with the columns image,caption[,split] in UTF-8, with or without a byte order mark.

    Returns:
        DataFrame with `image` (path relative to the images folder), `caption`, `split` (train, val or test).
        Without a split column the split follows from a hash of the image's name. Rows that have a split
        column with nothing in it are left out: that is how a file sets captions aside.

    Raises:
        UserError: no such file, no such columns, an unknown split, nothing left.
    """
    try:
        table = pd.read_csv(
            path, encoding="utf-8-sig", dtype=str, keep_default_na=False, skipinitialspace=True
        )
    except FileNotFoundError:
        raise UserError(f"no captions file at {path}; set data.captions to yours") from None
    except (ValueError, csv.Error, OSError) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8 ({error})") from None
    missing = {"image", "caption"} - set(table.columns)
    if missing:
        found = ", ".join(map(str, table.columns[:5]))
        raise UserError(
            f"{path}: no column {sorted(missing)[0]!r} in its first line ({found}); it needs image,caption"
        )
    table["image"] = table["image"].str.strip()
    table["caption"] = table["caption"].str.strip()
    table["split"] = table["split"].str.strip() if "split" in table else table["image"].map(split_of)
    unknown = set(table["split"]) - {*SPLITS, ""}
    if unknown:
        raise UserError(f"{path}: split {sorted(unknown)[0]!r} is not one of {', '.join(SPLITS)}")
    usable = (table["image"] != "") & (table["caption"] != "") & (table["split"] != "")
    table = table.loc[usable, COLUMNS].reset_index(drop=True)
    if table.empty:
        raise UserError(f"{path} has no rows with an image, a caption and a split")
    return table


def split_of(image: str) -> str:
    """train (80 %), val (10 %) or test (10 %) from the name alone, so that adding images moves no other."""
    bucket = int.from_bytes(hashlib.sha256(image.encode()).digest()[:8]) % 10
    return {0: "val", 1: "test"}.get(bucket, "train")


def check_images(table: pd.DataFrame, images: Path) -> None:
    """Raise UserError where a picture of the table is missing from the `images` folder."""
    if not images.is_dir():
        raise UserError(f"no images folder at {images.absolute()}; set data.images to yours")
    names = table["image"].unique()
    missing = [name for name in names if not (images / name).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(names)} pictures are missing from {images.absolute()}, the first is "
            f"{missing[0]!r}; set data.images to their folder or take their rows out of the captions file"
        )


def references(table: pd.DataFrame, split: str) -> dict[str, list[str]]:
    """Image -> its captions, for the images of one split in the order of the file."""
    rows = table[table["split"] == split]
    return {image: group.tolist() for image, group in rows.groupby("image", sort=False)["caption"]}
