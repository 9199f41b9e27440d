"""Captions files -> one table: image, caption, split."""

import os
import reprlib
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING

import pandas as pd

from config import DataConfig
from data.captions_file import LONGEST_CAPTION, Row
from data.formats import open_captions
from data.shard_paths import is_sharded
from data.splits import LISTS, SPLITS, is_flickr8k, split_of
from utils import CONTROL, UserError

if TYPE_CHECKING:
    from data.shard_set import Captions

_MAX_NAMED, _MAX_SHOWN = 3, 300  # most unusable rows that a message names, and most characters of each
_SHOW = reprlib.Repr()
_SHOW.maxstring = 200


def read_table(
    data: DataConfig, splits_with_images: Sequence[str] = SPLITS, in_memory: Sequence[str] = SPLITS
) -> pd.DataFrame:
    """`read_captions` with the arguments from a configuration.

    Args:
        in_memory: of shards, the splits whose captions are read into the table.
    """
    if is_sharded(data):
        from data.shard_table import read_shards  # here, because webdataset imports torch

        return _with_columns(read_shards(data, in_memory))
    return read_captions(data.captions, data.images, data.max_bad_rows, splits_with_images, data.lists)


def read_captions(
    paths: Path | Sequence[Path],
    image_folder: Path,
    max_bad_rows: float = 0.05,
    splits_with_images: Sequence[str] = SPLITS,
    lists: Path | None = None,
) -> pd.DataFrame:
    """Read captions in any format of data/formats.py, and print what was found.

    Rows that cannot be used (no caption, no such image, wrong types) are left out and counted. Rows with an
    empty split, or with an image that is in none of the split lists, are left out silently.

    Args:
        image_folder: folder of the images; COCO's may be in its subfolders train2014/ and val2014/.
        max_bad_rows: largest share of unusable rows; more is an error.
        splits_with_images: the splits whose images must exist.
        lists: folder of Flickr8k's split lists, for files without splits; None: lists beside each file.

    Returns:
        DataFrame with `image` (path relative to `image_folder`), `caption`, `split` (train, val or test) and,
        if the format has ids, `image_id`. Images without a split get one from a hash of their names.

    Raises:
        UserError: a file or a list cannot be used, `image_folder` does not exist, an image path leads out of
            it, a split is unknown, an image is in two splits, too many rows are unusable, or no row is left.
    """
    paths = [paths] if isinstance(paths, Path) else list(paths)
    where = ", ".join(map(str, paths))
    sources = open_captions(paths, lists)
    rows = pd.DataFrame((row for source in sources for row in source.rows), columns=Row._fields, dtype=object)
    rows = _complete(rows.assign(by_hash=rows["split"].isna()), image_folder)
    flickr8k_by_hash = is_flickr8k(rows.loc[rows["by_hash"], "image"].unique())
    _check_paths(rows["image"], where)
    unknown = set(rows["split"]) - {*SPLITS, ""}
    if unknown:
        raise UserError(f"{where}: split {_shown(sorted(unknown)[0])} is not one of {', '.join(SPLITS)}")
    rows = rows[(rows["split"] != "") | (rows["problem"] != "")]
    rows = _leave_out_unusable(rows, image_folder, max_bad_rows, splits_with_images, where)
    if rows.empty:
        raise UserError(f"{where} has no rows with an image, a caption and a split")
    _check_one_split(rows, where)
    table = _with_columns(rows)
    formats = " and ".join(dict.fromkeys(source.format for source in sources))
    remark = " (split by hash of the names)" if rows["by_hash"].any() else ""
    print(f"{where}: {formats}{remark}; {_summary(table)}")
    if flickr8k_by_hash:
        print(
            "warning: these are Flickr8k's images, but not its standard split, so scores are not comparable "
            f"with published ones; put {', '.join(LISTS)} (from Flickr8k_text.zip) into a folder and set "
            "data.lists=FOLDER"
        )
    return table


def _with_columns(rows: pd.DataFrame) -> pd.DataFrame:
    """The table of the rows. Ids are kept if each image has a unique one: ids from two sources may clash."""
    has_ids = rows["image_id"].notna().all() and rows["image_id"].nunique() == rows["image"].nunique()
    columns = ["image", "caption", "split"] + (["image_id"] if has_ids else [])
    return rows[columns].infer_objects().reset_index(drop=True)


def training_captions(data: DataConfig, table: pd.DataFrame) -> "pd.Series | Captions":
    """The captions of train, which are in the table, or else in shards."""
    if is_sharded(data):
        from data.shard_set import open_shards  # here, because webdataset imports torch

        return open_shards(data, ["train"]).captions()
    return table.loc[table["split"] == "train", "caption"]


def _complete(rows: pd.DataFrame, image_folder: Path) -> pd.DataFrame:
    """The rows with stripped names and captions and with all splits; equal names share one string."""
    name, caption = rows["image"].str.strip(), rows["caption"].str.strip()
    # The hash ignores COCO's folder, so that the layout on disk does not change the splits.
    by_hash = {image: split_of(image) for image in name[rows["split"].isna()].unique()}
    split = rows["split"].fillna(name.map(by_hash))
    folders = {name: f"{name}/" for name in rows["folder"].unique() if os.path.isdir(image_folder / name)}
    codes, names = pd.factorize(rows["folder"].map({**folders, "": ""}).fillna("") + name)
    return rows.assign(image=names.take(codes), caption=caption, split=split)


def _check_paths(names: pd.Series, where: str) -> None:
    """Raise UserError for a path that is absolute on any operating system, or that contains `..`."""
    for name in names.unique():
        parts = PureWindowsPath(name)  # splits at both kinds of slash
        if parts.anchor or ".." in parts.parts:
            raise UserError(
                f"{where}: the image {_shown(name)} may lie outside of data.images; use names relative to "
                "that folder, without a drive, a leading slash or .."
            )


def _leave_out_unusable(
    rows: pd.DataFrame, image_folder: Path, max_bad_rows: float, splits_with_images: Sequence[str], where: str
) -> pd.DataFrame:
    """The rows with a name, a caption and, if they are in `splits_with_images`, an existing image."""
    if splits_with_images and not os.path.isdir(image_folder):
        raise UserError(f"no image folder at {image_folder.absolute()}; set data.images to the image folder")
    checked = rows["split"].isin(list(splits_with_images) or SPLITS)
    names = rows.loc[checked, "image"].unique() if splits_with_images else []
    missing = [name for name in names if not os.path.isfile(f"{image_folder}/{name}")]
    problems = rows["problem"].copy()
    strange = [name for name in rows["image"].unique() if CONTROL.search(name)]
    for is_bad, problem in (
        (rows["image"] == "", "a row without an image"),
        (rows["image"].isin(strange), "the name {} has control characters"),
        (rows["caption"] == "", "{} has no caption"),
        (
            rows["caption"].str.len() > LONGEST_CAPTION,
            f"{{}} has a caption of more than {LONGEST_CAPTION:,} characters",
        ),
        (checked & rows["image"].isin(missing), "no image {}"),
    ):
        is_bad &= problems == ""
        problems[is_bad] = rows.loc[is_bad, "image"].map(_shown).map(problem.format)
    bad = problems != ""
    if not bad.any():
        return rows
    first = [problem[:_MAX_SHOWN] for problem in dict.fromkeys(problems[bad])]
    named = "; ".join(first[:_MAX_NAMED]) + ("; …" if len(first) > _MAX_NAMED else "")
    share = (bad & checked).sum() / max(checked.sum(), 1)
    count = f"{bad.sum():,} of {len(rows):,} rows of {where}"
    found = f"{count} cannot be used (images in {image_folder}): {named}"
    if share > max_bad_rows:
        raise UserError(
            f"{found}. That is {share:.1%}: fix them, set data.images to the image folder, or allow more "
            f"with data.max_bad_rows (now {max_bad_rows:g})"
        )
    print(f"left out: {found}")
    return rows[~bad]


def _shown(name: str) -> str:
    """The name in quotes, shortened if it is too long to be one."""
    return _SHOW.repr(name)


def _check_one_split(rows: pd.DataFrame, where: str) -> None:
    """Raise UserError if an image is in two splits: scores on training images mean little."""
    pairs = rows[["image", "split"]].drop_duplicates()
    twice = pairs.loc[pairs["image"].duplicated(), "image"]
    if len(twice):
        splits = " and ".join(pairs.loc[pairs["image"] == twice.iloc[0], "split"])
        raise UserError(f"{where}: {twice.iloc[0]!r} is in {splits}; an image belongs to one split")


def _summary(table: pd.DataFrame) -> str:
    counts = table.drop_duplicates("image")["split"].value_counts()
    splits = ", ".join(f"{split} {counts[split]:,}" for split in SPLITS if split in counts)
    return f"{counts.sum():,} images ({splits}), {len(table):,} captions"


def references(table: pd.DataFrame, split: str | None = None) -> dict[str, list[str]]:
    """Image name -> its captions, for one split or for all of them, in the order of the file."""
    rows = table if split is None else table[table["split"] == split]
    return {image: group.tolist() for image, group in rows.groupby("image", sort=False)["caption"]}
