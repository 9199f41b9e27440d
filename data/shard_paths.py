"""Which tar files data.captions names, and the split of each."""

import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from config import DataConfig
from data.splits import SPLITS
from files import require_regular
from utils import UserError


def is_sharded(data: DataConfig) -> bool:
    """Whether the data are shards, not captions files; raises UserError if they are both."""
    found = {path.suffix.lower() == ".tar" for path in data.captions}
    if len(found) > 1:
        raise UserError(
            "data.captions has shards (.tar) and captions files; pass one or the other: "
            "python -m data.shards writes shards from captions files"
        )
    return found == {True}


def require_all_captions(data: DataConfig, setting: str, otherwise: str = "") -> None:
    """Raise a UserError, which ends with `otherwise`, for a setting that shards cannot serve."""
    if is_sharded(data):
        raise UserError(
            f"{setting} needs the captions of all training images at once, but those in shards are read when "
            f"they are needed; train with data.captions=FILE{otherwise}"
        )


def caption_paths(data: DataConfig) -> list[Path]:
    """The files of data.captions. In those of shards, a-{000..002}.tar stands for three files.

    Raises UserError if braces cannot be expanded.
    """
    if not is_sharded(data):
        return list(data.captions)
    paths = []
    for path in data.captions:
        if "{" not in str(path):
            paths.append(path)
            continue
        require_webdataset()
        from braceexpand import braceexpand

        try:
            paths += map(Path, braceexpand(str(path)))
        except ValueError:
            raise UserError(
                f"data.captions={path}: a brace has no partner; write a-{{000..009}}.tar"
            ) from None
    return paths


def shard_paths(data: DataConfig, splits: Sequence[str]) -> list[Path]:
    """The shards of some splits, in the order of the configuration.

    Raises:
        UserError: a file is missing or named twice, or a name does not say its split.
    """
    paths = caption_paths(data)
    split_of = {path: shard_split(path) for path in paths}
    if len(split_of) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"data.captions names {twice} twice; leave one of them out")
    for path in paths:
        require_regular(path)
        if not path.exists():
            raise UserError(
                f"no shard at {path.absolute()}; set data.captions to shards that exist, or write them with "
                "python -m data.shards"
            )
    return [path for path, split in split_of.items() if split in splits]


def shard_split(path: Path) -> str:
    """The split that the name of a shard says, or else the name of its folder; raises UserError."""
    for name in (path.stem, path.parent.name):
        words = set(SPLITS) & set(re.findall("[a-z]+", name.lower()))
        if len(words) == 1:
            return words.pop()
    raise UserError(
        f"{path}: the name of a shard, or that of its folder, says the split of its images; rename it, for "
        "example to train-000.tar, val-000.tar or test-000.tar"
    )


def require_webdataset() -> ModuleType:
    """The package webdataset; raises UserError if it is not installed."""
    try:
        import webdataset
    except ImportError:
        raise UserError(
            "shards (.tar) need webdataset: pip install -r requirements-extra.txt, or use captions files"
        ) from None
    return webdataset
