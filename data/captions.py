"""Captions files -> one table: image, caption, split."""

import os
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

import pandas as pd

from data.formats import Row, open_captions, split_of
from utils import UserError

SPLITS = ("train", "val", "test")
NAMED = 3  # rows that a message about unusable ones names


def read_captions(
    paths: Path | Sequence[Path],
    images: Path,
    max_bad_rows: float = 0.05,
    images_of: Sequence[str] = SPLITS,
) -> pd.DataFrame:
    """Read captions in any format of data/formats.py, and say what was found.

    Rows that cannot be used (no caption, no such image, not of the format) are left out and counted. Rows
    that a file sets aside, by an empty split or by naming the image in no list, are left out without a word.

    Args:
        images: the folder of the images; COCO's may lie in train2014/ and the like in it.
        max_bad_rows: share of the rows that may be unusable before that is an error.
        images_of: the splits whose images have to be there.

    Returns:
        DataFrame with `image` (path relative to `images`), `caption`, `split` (train, val or test) and, where
        the format has one, `image_id`. A file without splits gets them by a hash of the images' names.

    Raises:
        UserError: a file cannot be read, a path leads out of `images`, a split is unknown or an image is in
            two, too many rows are unusable, nothing is left, or there is no folder `images`.
    """
    paths = [paths] if isinstance(paths, Path) else list(paths)
    where = ", ".join(map(str, paths))
    sources = open_captions(paths)
    rows = pd.DataFrame((row for source in sources for row in source.rows), columns=Row._fields, dtype=object)
    by_hash = bool(rows["split"].isna().any())
    rows = complete(rows, images)
    check_paths(rows["image"], where)
    unknown = set(rows["split"]) - {*SPLITS, ""}
    if unknown:
        raise UserError(f"{where}: split {sorted(unknown)[0]!r} is not one of {', '.join(SPLITS)}")
    rows = rows[(rows["split"] != "") | (rows["problem"] != "")]
    rows = leave_out_unusable(rows, images, max_bad_rows, images_of, where)
    if rows.empty:
        raise UserError(f"{where} has no rows with an image, a caption and a split")
    check_one_split(rows, where)
    # Only ids that name each image: those of two files, or of half of them, would mean nothing.
    has_ids = rows["image_id"].notna().all() and rows["image_id"].nunique() == rows["image"].nunique()
    columns = ["image", "caption", "split"] + (["image_id"] if has_ids else [])
    table = rows[columns].infer_objects().reset_index(drop=True)
    formats = " and ".join(dict.fromkeys(source.format for source in sources))
    print(f"{where}: {formats}{' (split by hash of the names)' if by_hash else ''}; {summary(table)}")
    return table


def complete(rows: pd.DataFrame, images: Path) -> pd.DataFrame:
    """The rows with their names and captions stripped, every split filled in, and each name held once."""
    name, caption = rows["image"].str.strip(), rows["caption"].str.strip()
    # The hash is of the name without COCO's folder: how the images lie on disk moves none of them.
    by_hash = {image: split_of(image) for image in name[rows["split"].isna()].unique()}
    split = rows["split"].fillna(name.map(by_hash))
    folders = {folder: folder + "/" for folder in rows["folder"].unique() if (images / folder).is_dir()}
    codes, names = pd.factorize(rows["folder"].map({**folders, "": ""}).fillna("") + name)
    return rows.assign(image=names.take(codes), caption=caption, split=split)


def check_paths(images: pd.Series, where: str) -> None:
    """Raise UserError for an absolute path, of any system, or one through `..`."""
    for name in images.unique():
        parts = PureWindowsPath(name)  # knows both kinds of slash
        if parts.anchor or ".." in parts.parts:
            raise UserError(
                f"{where}: the image {name!r} may lie outside of data.images; name images relative to "
                "that folder, without a drive, a leading slash or .."
            )


def leave_out_unusable(
    rows: pd.DataFrame, images: Path, max_bad_rows: float, images_of: Sequence[str], where: str
) -> pd.DataFrame:
    """The rows with an image, a caption and, in the splits `images_of`, an image; others are counted."""
    if images_of and not images.is_dir():
        raise UserError(f"no images folder at {images.absolute()}; set data.images to yours")
    looked_at = rows["split"].isin(list(images_of) or SPLITS)
    names = rows.loc[looked_at, "image"].unique() if images_of else []
    missing = [name for name in names if not os.path.isfile(f"{images}/{name}")]
    problems = rows["problem"].copy()
    for is_bad, problem in (
        (rows["image"] == "", "a row without an image"),
        (rows["caption"] == "", "{!r} has no caption"),
        (looked_at & rows["image"].isin(missing), "no image {!r}"),
    ):
        is_bad &= problems == ""
        problems[is_bad] = rows.loc[is_bad, "image"].map(problem.format)
    bad = problems != ""
    if not bad.any():
        return rows
    first = list(dict.fromkeys(problems[bad]))
    named = "; ".join(first[:NAMED]) + ("; …" if len(first) > NAMED else "")
    share = (bad & looked_at).sum() / max(looked_at.sum(), 1)
    found = f"{bad.sum():,} of {len(rows):,} rows of {where} cannot be used (images in {images}): {named}"
    if share > max_bad_rows:
        raise UserError(
            f"{found}. That is {share:.1%}: mend them, set data.images to the images' folder, or allow "
            f"more with data.max_bad_rows (now {max_bad_rows:g})"
        )
    print(f"left out: {found}")
    return rows[~bad]


def check_one_split(rows: pd.DataFrame, where: str) -> None:
    """Raise UserError where an image is in two splits: a test of what was trained on tests nothing."""
    pairs = rows[["image", "split"]].drop_duplicates()
    twice = pairs.loc[pairs["image"].duplicated(), "image"]
    if len(twice):
        splits = " and ".join(pairs.loc[pairs["image"] == twice.iloc[0], "split"])
        raise UserError(f"{where}: {twice.iloc[0]!r} is in {splits}; an image belongs to one split")


def summary(table: pd.DataFrame) -> str:
    counts = table.drop_duplicates("image")["split"].value_counts()
    splits = ", ".join(f"{split} {counts[split]:,}" for split in SPLITS if split in counts)
    return f"{counts.sum():,} images ({splits}), {len(table):,} captions"


def references(table: pd.DataFrame, split: str) -> dict[str, list[str]]:
    """Image -> its captions, for the images of one split in the order of the file."""
    rows = table[table["split"] == split]
    return {image: group.tolist() for image, group in rows.groupby("image", sort=False)["caption"]}
