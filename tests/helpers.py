"""What several tests use: a tiny dataset, tiny models, and captions files in every format."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from compute import Compute
from config import Config, DecoderConfig
from config_reading import make_config
from data.dataset import Batch
from data.packing import PackedCaptions, pack
from models.choices import RANDOM_BITS
from models.decoder import Decoder
from models.decoders import DECODERS
from training.objective import Loss, Objective, Part
from utils import PAD

CPU = Compute(torch.device("cpu"))
GPU = Compute(torch.device("mps"))  # for what must not depend on the machine; nothing is computed on it
# Images that went through a transform, (3, 3, 32, 32): the same ones in every process.
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}
SIDES = {"left": 0, "right": 1}
Rows = list[tuple[str, str, str]]  # image, caption, split


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
            "captions_per_image": 2,
        },
        "encoder": {"name": "resnet18", "weights": "none", "layer": "layer1", "image_size": 32},
        "features": {"folder": str(dataset.parent / "cache")},
        "decoder": {"embed_dim": 16, "hidden_dim": 16, "attention_dim": 16, "dropout": 0.2},
        "train": {"epochs": 2, "batch_size": 4, "log_every": 2, "lr": 0.01},
        "rl": {},
        "search": {"beam": 2, "max_length": 12},
    }
    for section, keys in sections.items():
        values[section] = {**values[section], **keys}
    return make_config(values)


def small_decoder(kind: str, grid_dim: int = 6, vocab_size: int = 11, **config) -> Decoder:
    """A decoder of `kind` with random weights, in evaluation mode."""
    sizes = {
        "embed_dim": 8,
        "hidden_dim": 10,
        "attention_dim": 6,
        "heads": 2,
        "feedforward_dim": 12,
        "dropout": 0.5,
    }
    return DECODERS[kind](grid_dim, vocab_size, DecoderConfig(**{**sizes, **config})).eval()


def invent_statistics(model: torch.nn.Module) -> None:
    """Fill in statistics of batch norms, as if the model were trained."""
    for key, value in model.state_dict().items():
        if key.endswith("running_mean"):
            value.uniform_(-0.1, 0.1)
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5)


def randoms(*shape: int) -> torch.Tensor:
    """Random numbers as training/randomness.py gives them."""
    return torch.randint(2**RANDOM_BITS, shape, generator=torch.Generator().manual_seed(0))


def loss_of(objective: Objective, batch: Batch, indices: Sequence[int], epoch: int = 1) -> Loss:
    """The loss of a step on one batch."""
    with torch.no_grad():
        prepared = objective.prepare(Part(batch, indices), epoch)
    return objective(prepared, prepared.totals)


def packed(captions: torch.Tensor, image_index: torch.Tensor, num_images: int) -> PackedCaptions:
    """Padded captions (M, T) as teacher forcing reads them."""
    return pack(captions, (captions != PAD).sum(dim=1), image_index, num_images)


def teacher_forcing(decoder: Decoder, grid: torch.Tensor, captions: torch.Tensor, image_index: torch.Tensor):
    """`decoder.forward` with padded captions: logits (M, T - 1, V), alphas (M, T - 1, L); 0 for padding."""
    rows = packed(captions, image_index, len(grid))
    return [None if x is None else unpacked(x, rows, captions) for x in decoder(grid, rows)]


def unpacked(rows: torch.Tensor, packed: PackedCaptions, captions: torch.Tensor) -> torch.Tensor:
    """Rows (P, ...) -> (M, T - 1, ...), with zeros for padding."""
    zeros = rows.new_zeros(len(captions), captions.shape[1] - 1, *rows.shape[1:])
    return zeros.index_put((packed.captions, packed.steps), rows)


def by_image(rows: Rows) -> dict[tuple[str, str], list[str]]:
    """(image, split) -> captions."""
    captions = {}
    for image, caption, split in rows:
        captions.setdefault((image, split), []).append(caption)
    return captions


def write_csv(folder: Path, rows: Rows) -> list[Path]:
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "caption", "split"), *rows])
    return [folder / "captions.csv"]


def write_lists(folder: Path, rows: Rows) -> None:
    """Flickr8k's three lists of the images of each split."""
    for split, name in {"train": "train", "val": "dev", "test": "test"}.items():
        names = [image for image, of_image in by_image(rows) if of_image == split]
        (folder / f"Flickr_8k.{name}Images.txt").write_bytes("\r\n".join([*names, ""]).encode())


def write_token(folder: Path, rows: Rows) -> list[Path]:
    """Flickr8k.token.txt and the lists beside it."""
    lines = []
    for (image, _), captions in by_image(rows).items():
        name = image + ".1" * (image == "image_003.jpg")  # one name of the real file has this ending
        lines += [f"{name}#{n}\t{caption}" for n, caption in enumerate(captions)]
    lines.append("in_no_list.jpg#0\tset aside")
    (folder / "Flickr8k.token.txt").write_bytes("\r\n".join([*lines, ""]).encode())
    write_lists(folder, rows)
    return [folder / "Flickr8k.token.txt"]


def write_karpathy(folder: Path, rows: Rows, **more) -> list[Path]:
    images = [
        {
            "filename": image,
            "imgid": i,
            "split": "restval" if image == "image_001.jpg" else split,
            "sentences": [{"raw": caption, "tokens": caption.split()} for caption in captions],
            **more,
        }
        for i, ((image, split), captions) in enumerate(by_image(rows).items())
    ]
    content = {"images": images, "dataset": "flickr8k"}
    (folder / "dataset_flickr8k.json").write_text(json.dumps(content), "utf-8")
    return [folder / "dataset_flickr8k.json"]


def write_coco(folder: Path, rows: Rows, year: str = "2014") -> list[Path]:
    paths, ids = [], {image: 1000 + i for i, (image, _) in enumerate(by_image(rows))}
    for kind in ("train", "val"):
        of_kind = [row for row in rows if (row[2] == "train") == (kind == "train")]
        content = {
            "info": {},
            "images": [{"id": ids[image], "file_name": image} for image, _ in by_image(of_kind)],
            "annotations": [
                {"image_id": ids[image], "id": n, "caption": caption}
                for n, (image, caption, _) in enumerate(of_kind)
            ],
        }
        path = folder / f"captions_{kind}{year}.json"
        path.write_text(json.dumps(content, ensure_ascii=False), "utf-8-sig")
        paths.append(path)
    return paths
