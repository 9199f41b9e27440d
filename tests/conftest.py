"""What several tests use: a tiny dataset on disk, and the configuration of a tiny model."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from config import Config, make_config

# Tests run side by side, one a core: more threads would only wait for each other, here and in the scripts.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}
SIDES = {"left": 0, "right": 1}


def write_dataset(folder: Path) -> Path:
    """24 images, half of one colour and half black, with two captions each; returns the captions file."""
    (folder / "images").mkdir(parents=True)
    rows = ["image,caption,split"]
    for i in range(24):
        colour, side = list(COLOURS)[i % 4], list(SIDES)[(i // 4) % 2]
        pixels = np.zeros((40, 48, 3), np.uint8)
        pixels[:, 24 * SIDES[side] : 24 * SIDES[side] + 24] = COLOURS[colour]
        pixels[i % 40, :, 0] = 99  # no two images are the same
        Image.fromarray(pixels).save(folder / "images" / f"{i:02}.png")
        split = "train" if i < 16 else "val" if i < 20 else "test"
        rows.append(f"{i:02}.png,A {colour} half on the {side}.,{split}")
        rows.append(f'{i:02}.png,"On the {side}, there is {colour}!",{split}')
    (folder / "captions.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "captions.csv"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """The folder of a tiny dataset: captions.csv and images/."""
    write_dataset(tmp_path / "data")
    return tmp_path / "data"


def tiny(dataset: Path, **sections) -> Config:
    """A configuration that trains in a second; keyword arguments override it by section."""
    values = {
        "run": {
            "name": "tiny",
            "folder": str(dataset.parent / "runs"),
            "device": "cpu",
            "precision": "float32",
        },
        "data": {
            "captions": str(dataset / "captions.csv"),
            "images": str(dataset / "images"),
            "min_freq": 1,
            "augment": [],
            "workers": 0,
        },
        "encoder": {"name": "resnet18", "weights": "none", "layer": "layer1", "image_size": 32},
        "features": {"folder": str(dataset.parent / "cache")},
        "decoder": {"embed_dim": 16, "hidden_dim": 16, "attention_dim": 16, "dropout": 0.2},
        "train": {"epochs": 2, "batch_size": 4, "log_every": 2, "captions_per_image": 2, "lr": 0.01},
        "rl": {},
        "search": {"beam": 2, "max_length": 12},
    }
    values["data"]["captions_per_image"] = values["train"].pop("captions_per_image")
    for section, keys in sections.items():
        values[section] = {**values[section], **keys}
    return make_config(values)
