"""From a configuration to datasets: what training and evaluation prepare alike."""

from collections.abc import Sequence

import pandas as pd
import torch

from config import Config
from data.dataset import Flickr8kDataset
from data.features import FeatureGrids, cached_features
from data.transforms import ImageTransform
from data.vocab import Vocabulary
from models.model import CaptionModel
from utils import autocast


def make_datasets(
    config: Config,
    table: pd.DataFrame,
    splits: Sequence[str],
    vocabulary: Vocabulary,
    model: CaptionModel,
    transform: ImageTransform,
    device: torch.device,
    precision: torch.dtype,
) -> list[Flickr8kDataset]:
    """A dataset for each split, over cached features where the configuration caches them.

    Only `train` is cut to data.max_length and captions_per_image, and only it is augmented.
    """
    features = None
    if config.caches_features:
        features = compute_features(config, table, splits, model, transform, device, precision)
    datasets = []
    for split in splits:
        training = {}
        if split == "train":
            training = {
                "captions_per_image": config.data.captions_per_image,
                "max_length": config.data.max_length,
                "augment": config.data.augment if features is None else (),
            }
        datasets.append(
            Flickr8kDataset(table, split, vocabulary, config.data.images, transform, features, **training)
        )
    return datasets


def compute_features(
    config: Config,
    table: pd.DataFrame,
    splits: Sequence[str],
    model: CaptionModel,
    transform: ImageTransform,
    device: torch.device,
    precision: torch.dtype,
) -> FeatureGrids:
    """The encoder's features of the splits' pictures, from the cache as far as it has them."""
    images = table.loc[table["split"].isin(list(splits)), ["image", "split"]].drop_duplicates("image")
    views = {}
    if config.features.views > 1:
        views = dict.fromkeys(images.loc[images["split"] == "train", "image"], config.features.views)

    @torch.inference_mode()
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        with autocast(device, precision):
            return model.encoder(transform.normalise(pixels.to(device)))

    identity = {
        "encoder": config.encoder.name,
        "weights": model.encoder.digest(),
        "layer": config.encoder.layer,
        "grid": config.encoder.grid,
        "precision": str(precision),
        "device": device.type,
    }
    model.encoder.eval()
    return cached_features(
        config.features.folder,
        identity,
        encode,
        config.data.images,
        images["image"].tolist(),
        transform,
        views=views,
        augment=config.data.augment,
        workers=config.data.workers,
    )
