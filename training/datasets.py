"""The datasets of a configuration, prepared in the same way for training and evaluation."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pandas as pd
import torch

from captioning import Captioner
from data.dataset import Flickr8kDataset
from data.features import FeatureGrids, FeatureStore
from data.images import ImageFolder


def make_datasets(
    captioner: Captioner, table: pd.DataFrame, splits: Sequence[str], training: bool = False
) -> list[Flickr8kDataset]:
    """A dataset for each split, with cached features if the captioner's configuration caches them.

    Args:
        training: whether a model learns from the split `train`. Only then are its captions limited by
            data.max_length and data.captions_per_image, and its images augmented.
    """
    config = captioner.config
    features = compute_features(captioner, table, splits, training) if config.caches_features else None
    datasets = []
    for split in splits:
        changes: dict[str, Any] = {}
        if training and split == "train":
            changes = {
                "captions_per_image": config.data.captions_per_image,
                "max_length": config.data.max_length,
                "augment": config.data.augment if features is None else (),
            }
        vocabulary, folder, transform = captioner.vocabulary, config.data.images, captioner.transform
        datasets.append(Flickr8kDataset(table, split, vocabulary, folder, transform, features, **changes))
    return datasets


def compute_features(
    captioner: Captioner, table: pd.DataFrame, splits: Sequence[str], training: bool = False
) -> FeatureGrids:
    """The encoder's features for the images of the splits; missing ones are computed.

    Only for `training`, the images of the split `train` have features.views views.
    """
    config, compute, encoder = captioner.config, captioner.compute, captioner.model.encoder
    images = table.loc[table["split"].isin(list(splits)), ["image", "split"]].drop_duplicates("image")
    views = {
        image: config.views if training and split == "train" else 1
        for image, split in images.itertuples(index=False, name=None)
    }

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
    store = FeatureStore(
        config.features.folder,
        identity,
        encode,
        ImageFolder(config.data.images),
        captioner.transform,
        config.data.augment,
        config.data.workers,
        compute=compute,
    )
    return store.grids(views)
