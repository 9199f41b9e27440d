"""From a configuration to datasets, which training and evaluation prepare alike, and to the objective."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd
import torch

from compute import autocast
from config import Config
from data.dataset import Flickr8kDataset
from data.features import FeatureGrids, cached_features
from data.transforms import ImageTransform
from data.vocab import Vocabulary
from metrics.rewards import Rewards
from models.model import CaptionModel
from training.actor_critic import ActorCritic
from training.cross_entropy import CrossEntropy
from training.objective import Objective
from training.self_critical import SelfCritical
from utils import SOS


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
    """The encoder's features of the splits' images, from the cache as far as it has them."""
    images = table.loc[table["split"].isin(list(splits)), ["image", "split"]].drop_duplicates("image")
    views = {}
    if config.features.views > 1:
        views = dict.fromkeys(images.loc[images["split"] == "train", "image"], config.features.views)

    folded = cache(model.encoder.folded)  # not needed where all features are there

    @torch.inference_mode()
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        with autocast(device, precision):
            return folded()(transform.normalise(pixels.to(device)))

    identity = {
        "encoder": config.encoder.name,
        "weights": model.encoder.digest(),
        "layer": config.encoder.layer,
        "grid": config.encoder.grid,
        "precision": str(precision),
        "device": device.type,
    }
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


def make_objective(
    config: Config,
    model: CaptionModel,
    train_set: Flickr8kDataset,
    words: int,
    device: torch.device,
    precision: torch.dtype,
) -> Objective:
    """What `train.objective` names, with its rewards where it learns from scores."""
    if config.train.objective == "cross_entropy":
        return CrossEntropy(model, config, device, precision)
    kind = {"self_critical": SelfCritical, "actor_critic": ActorCritic}[config.train.objective]
    captions, images = all_captions(train_set)
    rewards = Rewards(captions, images, words, config.rl.cider, config.rl.bleu)
    return kind(model, config, device, precision, rewards)


def all_captions(dataset: Flickr8kDataset) -> tuple[np.ndarray, np.ndarray]:
    """Every caption of a split without <sos>, padded (R, T), and which image it describes (R,)."""
    lengths = np.diff(dataset.caption_start) - 1
    captions = np.zeros((len(lengths), lengths.max()), np.int64)
    captions[np.arange(captions.shape[1]) < lengths[:, None]] = dataset.tokens[dataset.tokens != SOS]
    return captions, np.repeat(np.arange(len(dataset)), np.diff(dataset.image_start))
