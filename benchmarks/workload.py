"""What the benchmarks compute with: sizes, and captions, grids and models that are made on the spot.

The captions have lengths as those of Flickr8k (5 to 24 tokens with <eos>, 12.6 on average): 32 images with
five captions each have 2,019 tokens to predict. Words are drawn by Zipf's law.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from compute import Compute
from config import Config
from config_reading import make_config
from data.dataset import Batch, Flickr8kDataset, collate
from data.features import FeatureGrids
from data.transforms import ImageTransform
from data.vocab import SPECIAL, Vocabulary
from models.decoder import Decoder
from models.decoders import DECODERS
from models.model import CaptionModel
from training.objectives import OBJECTIVES
from training.trainer import Trainer
from utils import EOS, SOS

_SEED = 0
TRANSFORM = ImageTransform(32, (0.5,) * 3, (0.5,) * 3)


@dataclass(frozen=True)
class Settings:
    """What is measured and for how long. The numbers are those of Flickr8k; tests take smaller ones."""

    compute: Compute
    seconds: float = 10.0  # for each comparison, about
    rounds: int = 3  # of each comparison, at least
    num_images: int = 32  # in a batch, with five captions each
    vocab_size: int = 2540
    dim: int = 512  # of embeddings, keys and the LSTM's state
    grids: tuple[tuple[int, int], ...] = ((49, 1280), (49, 2048), (196, 2048))  # L cells, C channels
    beam: int = 5
    words: int = 12  # in the captions that are searched; <eos> is one step more
    split_sizes: tuple[int, int] = (6000, 1000)  # images for training and for validation
    num_cached: int = 256  # images whose cached features are read
    num_encoded: int = 160  # images whose features are computed
    encoders: tuple[str, ...] = ("mobilenet_v2", "resnet50")
    image_size: int | None = None
    image_folder: Path | None = None  # images to compute features of, instead of drawn ones

    @property
    def precisions(self) -> list[Compute]:
        """The device in float32, and in the precision of run.precision=auto if that is another one."""
        return [
            replace(self.compute, precision=dtype)
            for dtype in dict.fromkeys((torch.float32, self.compute.precision))
        ]


CAPTIONS_PER_IMAGE = 5


def name_of(compute: Compute) -> str:
    """The precision as in run.precision."""
    return str(compute.precision).removeprefix("torch.")


def captions(num_images: int, vocab_size: int) -> list[torch.Tensor]:
    """Five captions per image, `<sos> words <eos>` (T,) int64, in the order of the images."""
    random = np.random.default_rng(_SEED)
    count = CAPTIONS_PER_IMAGE * num_images
    lengths = np.exp(random.normal(np.log(11.9), 0.34, count)).round().clip(4, 28).astype(int)  # with <eos>
    frequency = 1 / np.arange(1, vocab_size - len(SPECIAL) + 1)
    words = len(SPECIAL) + random.choice(len(frequency), lengths.sum(), p=frequency / frequency.sum())
    ends = np.cumsum(lengths)
    return [
        torch.from_numpy(np.array([SOS, *words[end - length : end - 1], EOS]))
        for length, end in zip(lengths, ends, strict=True)
    ]


def batch(settings: Settings, cells: int, channels: int) -> Batch:
    """A batch of random grids with their captions, as the dataset loads it."""
    torch.manual_seed(_SEED)
    texts = captions(settings.num_images, settings.vocab_size)
    grids = torch.randn(settings.num_images, cells, channels)
    k = CAPTIONS_PER_IMAGE
    return collate([(grid, texts[i * k : (i + 1) * k]) for i, grid in enumerate(grids)])


def num_tokens(texts: Sequence[torch.Tensor]) -> int:
    """The tokens to predict: words and <eos>."""
    return sum(len(text) - 1 for text in texts)


def config(settings: Settings, **sections) -> Config:
    """The defaults with the sizes of `settings`; keyword arguments override it by section."""
    dim = settings.dim
    values = {"decoder": {"embed_dim": dim, "hidden_dim": dim, "attention_dim": dim}}
    for section, keys in sections.items():
        values[section] = {**values.get(section, {}), **keys}
    return make_config(values)


def decoder(settings: Settings, channels: int, **options) -> Decoder:
    """A new decoder on the device, the same weights in every run; `options` of the section `decoder`."""
    torch.manual_seed(_SEED)
    section = config(settings, decoder=options).decoder
    return DECODERS[section.name](channels, settings.vocab_size, section).to(settings.compute.device)


class _NoEncoder(nn.Module):
    """Replaces the frozen encoder, because the batches have grids."""

    trained: tuple[str, ...] = ()


def trainer(
    model: Decoder, config: Config, compute: Compute, train_set: Flickr8kDataset | None = None
) -> Trainer:
    """What train.py calls `step` of. `train_set` is only used by objectives that learn from scores."""
    whole = CaptionModel(_NoEncoder(), model).train()
    objective = OBJECTIVES[config.train.objective](whole, config, compute, train_set)
    return Trainer(objective, steps_per_epoch=1000)


def captions_table(num_images: int, vocab_size: int, split: str = "train") -> pd.DataFrame:
    """A captions table of images `0000.jpg`, … whose words are `w4`, `w5`, …"""
    texts = captions(num_images, vocab_size)
    return pd.DataFrame({
        "image": [f"{i // CAPTIONS_PER_IMAGE:04}.jpg" for i in range(len(texts))],
        "caption": [" ".join(f"w{word}" for word in text[1:-1].tolist()) for text in texts],
        "split": split,
    })  # fmt: skip


def vocabulary_words(settings: Settings) -> list[str]:
    """All words of the vocabulary, in the order of their indices."""
    return [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), settings.vocab_size))]


def dataset(settings: Settings, table: pd.DataFrame, features: FeatureGrids | None = None) -> Flickr8kDataset:
    """The training split of `captions_table`; without `features` it has captions only."""
    vocabulary = Vocabulary(vocabulary_words(settings))
    return Flickr8kDataset(table, "train", vocabulary, Path(), TRANSFORM, features)
