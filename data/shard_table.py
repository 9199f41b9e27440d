"""The captions table of shards; those of train are not in it, because there may be too many of them."""

from collections.abc import Sequence

import pandas as pd

from config import DataConfig
from data.captions_file import Row
from data.shard_index import index_shards
from data.shard_paths import shard_paths, shard_split
from data.shard_set import open_shards
from data.splits import SPLITS
from utils import UserError

_MAX_NAMED = 3  # most unusable samples that a message names


def read_shards(data: DataConfig, splits: Sequence[str]) -> pd.DataFrame:
    """The rows of the captions table for some splits, after a check of all shards; prints what was found.

    Raises:
        UserError: a shard cannot be used, too many samples are unusable, or an image is in two shards.
    """
    where = ", ".join(map(str, data.captions))
    paths = shard_paths(data, SPLITS)
    facts = index_shards(paths, data.index_folder)
    counts = dict.fromkeys(SPLITS, 0)
    for path, known in zip(paths, facts, strict=True):
        counts[shard_split(path)] += known.num_images
    found, num_bad = sum(counts.values()), sum(known.num_bad for known in facts)
    if num_bad:
        problems = [problem for known in facts for problem in known.problems][:_MAX_NAMED]
        named = "; ".join(problems) + "; …" * (num_bad > len(problems))
        text = f"{num_bad:,} of {found + num_bad:,} samples of {where} cannot be used: {named}"
        if num_bad / (found + num_bad) > data.max_bad_rows:
            raise UserError(
                f"{text}. That is {num_bad / (found + num_bad):.1%}: fix them, or allow more with "
                f"data.max_bad_rows (now {data.max_bad_rows:g})"
            )
        print(f"left out: {text}")
    if not found:
        raise UserError(f"{where} has no samples with an image and a caption")
    shown = ", ".join(f"{split} {count:,}" for split, count in counts.items() if count)
    captions = sum(known.num_captions for known in facts)
    print(f"{where}: WebDataset, {len(paths):,} shards; {found:,} images ({shown}), {captions:,} captions")

    shards = open_shards(data, splits)
    names = pd.Series(list(shards.names()), dtype=object)
    if names.duplicated().any():
        name = names[names.duplicated()].iloc[0]
        raise UserError(f"{where}: {name!r} is in two shards; leave one of them out, or rename the image")
    return pd.DataFrame(shards.rows(), columns=Row._fields, dtype=object)
