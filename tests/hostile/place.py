"""Where hostile inputs are tried: a folder with a small dataset, a configuration, a model and a run."""

import functools
import os
import shutil
from pathlib import Path

from captioning import Captioner
from data.transforms import ImageTransform
from data.vocab import SPECIAL, Vocabulary
from models.checkpoint import save_checkpoint
from models.model import build_model
from tests.helpers import CPU, tiny, write_dataset
from tests.script_helpers import ended, write_config

WORDS = [*SPECIAL, "a", "half", "on", "the", "left", "right", "red", "green", "blue", "white", "there", "is"]
# A small encoder that is built in a few hundredths of a second.
ENCODER = {"name": "squeezenet1_1", "layer": "features.3", "image_size": 32}
SETTINGS = {
    "encoder": ENCODER,
    "decoder": {"embed_dim": 8, "hidden_dim": 8, "attention_dim": 8},
    "train": {"epochs": 1, "batch_size": 16, "log_every": 1},
}


def build(folder: Path) -> Path:
    """data/ (24 images), tiny.yaml, model.pth (never trained) and runs/tiny (one epoch)."""
    write_dataset(folder / "data")
    write_config(folder, **SETTINGS)
    save_checkpoint(folder / "model.pth", small_captioner().checkpoint())
    status, out, err = ended(folder, "train", "--config", "tiny.yaml")
    assert status == 0, out + err
    return folder


@functools.cache
def small_captioner() -> Captioner:
    """A captioner with random weights, the same ones every time."""
    config = tiny(Path("data"), **SETTINGS)
    transform = ImageTransform(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Captioner(build_model(config, len(WORDS)).eval(), Vocabulary(WORDS), transform, config, CPU)


def copy_of(place: Path, to: Path) -> Path:
    """A fresh copy of the place, so that no input sees the files of another. Images are linked."""
    return shutil.copytree(place, to, symlinks=True, copy_function=_copy)


def _copy(path: str, to: str) -> None:
    (os.link if path.endswith(".png") else shutil.copyfile)(path, to)
