"""The datasets of a configuration, prepared in the same way for training and evaluation."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pandas as pd
import torch

from captioning import Captioner
from data.dataset import Flickr8kDataset
from data.features import FeatureGrids, FeatureStore
from data.held_features import held_if_they_fit
from data.images import ImageFolder, Images
from data.shard_dataset import ShardDataset
from data.shard_features import ShardGrids
from data.shard_paths import is_sharded
from data.shard_set import open_shards
from data.splits import SPLITS
from utils import UserError


def make_datasets(
    captioner: Captioner, table: pd.DataFrame, splits: Sequence[str], training: bool = False
) -> list[Flickr8kDataset]:
    """A dataset for each split, with cached features if the captioner's configuration caches them.

    Args:
        table: if the data are shards, it is not used, and the split `all` is that of all shards.
        training: whether a model learns from the split `train`. Only then are its captions limited by
            data.max_length and data.captions_per_image, and its images augmented.
    """
    config = captioner.config
    sharded = is_sharded(config.data)
    features = None
    if config.caches_features and not sharded:
        features = compute_features(captioner, table, splits, training)
        if training:
            features = held_if_they_fit(features, captioner.compute)
    datasets: list[Flickr8kDataset] = []
    for split in splits:
        changes: dict[str, Any] = {}
        if training and split == "train":
            changes = {
                "captions_per_image": config.data.captions_per_image,
                "max_length": config.data.max_length,
                "augment": () if config.caches_features else config.data.augment,
            }
        vocabulary, folder, transform = captioner.vocabulary, config.data.images, captioner.transform
        if sharded:
            datasets.append(_of_shards(captioner, split, training, changes))
        else:
            datasets.append(Flickr8kDataset(table, split, vocabulary, folder, transform, features, **changes))
    return datasets


def _of_shards(captioner: Captioner, split: str, training: bool, changes: dict[str, Any]) -> ShardDataset:
    config = captioner.config
    shards = open_shards(config.data, SPLITS if split == "all" else [split])
    if not len(shards):
        raise UserError(f"the shards have no images in the split {split!r}; add one, such as {split}-000.tar")
    features = None
    if config.caches_features:
        views = config.views if training and split == "train" else 1
        features = ShardGrids(shards, _store_maker(captioner, is_part=True), views)
    return ShardDataset(shards, captioner.vocabulary, captioner.transform, features, **changes)


def compute_features(
    captioner: Captioner, table: pd.DataFrame, splits: Sequence[str], training: bool = False
) -> FeatureGrids:
    """The encoder's features for the images of the splits; missing ones are computed.

    Only for `training`, the images of the split `train` have features.views views.
    """
    config = captioner.config
    images = table.loc[table["split"].isin(list(splits)), ["image", "split"]].drop_duplicates("image")
    views = {
        image: config.views if training and split == "train" else 1
        for image, split in images.itertuples(index=False, name=None)
    }
    return _store_maker(captioner)(ImageFolder(config.data.images)).grids(views)


def _store_maker(captioner: Captioner, is_part: bool = False) -> Callable[[Images], FeatureStore]:
    """What returns the store of the encoder's features for a folder, or for one of several shards."""
    config, compute, encoder = captioner.config, captioner.compute, captioner.model.encoder
    encode_batch = cache(encoder.for_inference)  # prepared only if features are missing

    @torch.inference_mode()
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        [pixels] = compute.to_device(pixels)
        with compute.autocast():
            return encode_batch()(captioner.transform.normalise(pixels))

    identity = {
        "encoder": config.encoder.name,
        "weights": encoder.digest(),
        "layer": config.encoder.layer,
        "grid": config.encoder.grid,
        "precision": str(compute.precision),
        "device": compute.device.type,
    }

    def store_of(images: Images) -> FeatureStore:
        return FeatureStore(
            config.features.folder,
            identity,
            encode,
            images,
            captioner.transform,
            config.data.augment,
            config.data.workers,
            compute=compute,
            is_part=is_part,
        )

    return store_of
