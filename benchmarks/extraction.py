"""Computing the features of images: from the files to the cache on disk.

Reference: one batch after the other in one process, in float32, with torchvision's own transforms. Bound: the
bare backbone on a batch in memory. For reading alone, in one process, the bound is Pillow's bare decoding.
"""

from startup import run_script

import random
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torchvision.models import get_model_weights

from benchmarks.measure import Alternative, Row, compare
from benchmarks.report import run_benchmarks
from benchmarks.workload import Settings, config, name_of
from data.loading import read_listed_image
from data.sample import draw_scene, invent_scenes
from data.transforms import transform_for
from models.encoder import EncoderCNN
from training.datasets import compute_features
from utils import UserError

_SIZE = (500, 375)  # pixels, as most photographs of Flickr8k
_NOISE = 12  # standard deviation of the grain that makes drawn scenes as long to decode as photographs
_BATCH = 32


def benchmark(settings: Settings) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        images = settings.image_folder
        if images is None:
            images = Path(folder) / "images"
            _draw(images, settings.num_encoded)
        paths = sorted(path for path in images.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        paths = paths[: settings.num_encoded]
        if len(paths) < 2:
            raise UserError(f"--images {images}: it has {len(paths)} images; pass a folder with 2 or more")
        rows = _reading(settings, paths)
        for name in settings.encoders:
            rows += _extraction(settings, name, paths, Path(folder))
    return rows


def _draw(folder: Path, count: int) -> None:
    """Scenes of the built-in sample as JPEG files of the size of photographs."""
    folder.mkdir()
    rng, noise = random.Random(0), np.random.default_rng(0)
    for i, scene in enumerate(invent_scenes(max(count, 3), rng)[:count]):
        pixels = np.asarray(draw_scene(scene, rng).resize(_SIZE), np.float32)
        grain = noise.normal(0, _NOISE, pixels.shape)
        Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(
            folder / f"{i:04}.jpg", quality=90
        )


def _reading(settings: Settings, paths: list[Path]) -> list[Row]:
    transform = transform_for(config(settings, encoder=_encoder(settings, settings.encoders[0])).encoder)

    def decode() -> None:
        for path in paths:
            with Image.open(path) as image:
                image.load()

    def read() -> None:
        for path in paths:
            transform.pixels(read_listed_image(path))

    bound = Alternative("decoding", decode, len(paths))
    own = Alternative("read and resized", read, len(paths), against={"bound": bound})
    return compare("features", f"{len(paths)} files", "images", [bound, own], settings)


def _encoder(settings: Settings, name: str) -> dict:
    """The section `encoder`. Random weights take as long as trained ones, and nothing is downloaded."""
    return {"name": name, "weights": "none", "image_size": settings.image_size}


def _extraction(settings: Settings, name: str, paths: list[Path], folder: Path) -> list[Row]:
    compute = settings.compute
    section = config(settings, encoder=_encoder(settings, name)).encoder
    torch.manual_seed(0)
    encoder, transform = EncoderCNN(section).to(compute.device).eval(), transform_for(section)
    few = paths[:_BATCH]
    pixels = torch.stack([transform.pixels(read_listed_image(path)) for path in few])
    batch = transform.normalise(pixels.to(compute.device))
    preset = get_model_weights(name).DEFAULT.transforms()
    table = pd.DataFrame({"image": [path.name for path in paths], "caption": "w4", "split": "train"})
    passes = iter(range(10**6))

    @torch.inference_mode()
    def backbone() -> None:
        with compute.autocast():
            encoder(batch)

    @torch.inference_mode()
    def plain() -> None:
        images = [preset(Image.open(path).convert("RGB")) for path in few]
        encoder(torch.stack(images).to(compute.device))

    def extraction() -> None:
        options = config(
            settings,
            encoder=_encoder(settings, name),
            data={"images": str(paths[0].parent)},
            features={"folder": str(folder / f"{name}-{next(passes)}")},  # a new cache every time
        )
        model = SimpleNamespace(encoder=encoder)
        captioner = SimpleNamespace(config=options, compute=compute, model=model, transform=transform)
        compute_features(captioner, table, ["train"])

    precision = name_of(compute)
    bound = Alternative("backbone", backbone, len(few), precision)
    reference = Alternative("plain", plain, len(few), "float32")
    against = {"reference": reference, "bound": bound}
    own = Alternative(name, extraction, len(paths), precision, against)
    shape = f"{len(paths)} files, {transform.size} x {transform.size}"
    return compare("features", shape, "images", [bound, reference, own], settings)


if __name__ == "__main__":
    run_script(lambda: run_benchmarks([benchmark]))
