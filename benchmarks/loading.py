"""Reading cached features, batch by batch in random order, as training does.

Reference: one .npy file per image, read with np.load. Bound: reading the same number of bytes from one file
from start to end. `cold`: the system has dropped the files from its memory before (Linux only). For an epoch
of training on cold features, the bound is the same epoch on warm ones.
"""

from startup import run_script

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import Alternative, Row, compare
from benchmarks.report import run_benchmarks
from benchmarks.workload import (
    TRANSFORM,
    Settings,
    captions_table,
    config,
    dataset,
    decoder,
    name_of,
    trainer,
)
from data.dataset import Flickr8kDataset, make_loader, training_batches
from training.datasets import compute_features
from training.objective import Part


class _Encoder:
    """Replaces the frozen encoder: its features are random numbers."""

    def __init__(self, cells: int, channels: int):
        self.shape = cells, channels

    def digest(self) -> str:
        return "random"

    def for_inference(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda images: torch.randn(len(images), *self.shape)


def benchmark(settings: Settings) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        return _rows(settings, Path(folder))


def _rows(settings: Settings, folder: Path) -> list[Row]:
    cells, channels = settings.grids[0]
    train_set = cached_set(settings, folder, cells, channels)
    compute = settings.compute
    draws = training_batches(len(train_set), settings.num_images, seed=1, epoch=1)
    model = trainer(
        decoder(settings, channels, kind="lstm"), config(settings, decoder={"kind": "lstm"}), compute
    )
    arrays, plain = _arrays(train_set, folder), folder / "plain" / "grids"

    def load() -> None:
        for _ in make_loader(train_set, draws, 0, compute):
            pass

    def train() -> None:
        for batch_draws, batch in zip(draws, make_loader(train_set, draws, 0, compute), strict=True):
            model.step([Part(batch, [index for index, _ in batch_draws])], epoch=1)

    def load_arrays() -> None:
        for batch_draws in draws:
            torch.stack([torch.from_numpy(np.load(arrays[index])) for index, _ in batch_draws])

    def read() -> None:
        block = bytearray(plain.stat().st_size // len(draws))
        with open(plain, "rb", buffering=0) as file:
            while file.readinto(block):
                pass

    def cold(run: Callable[[], None], files: Path) -> Callable[[], float]:
        def seconds() -> float:
            _drop_from_memory(files)
            began = time.perf_counter()
            run()
            return time.perf_counter() - began

        return seconds

    count, shape = len(train_set), f"{len(train_set)} x {cells} x {channels}"
    bound, reference = Alternative("read", read, count), Alternative("arrays", load_arrays, count)
    warm = Alternative("features, warm", load, count, "float16", {"reference": reference, "bound": bound})
    found = [bound, reference, warm]
    warm_epoch = Alternative("LSTM epoch, warm", train, count, name_of(compute))
    epochs = [warm_epoch]
    if hasattr(os, "posix_fadvise"):
        cold_bound = Alternative("read, cold", cold(read, plain.parent), count)
        cold_arrays = Alternative("arrays, cold", cold(load_arrays, folder / "arrays"), count)
        against = {"reference": cold_arrays, "bound": cold_bound}
        found += [
            cold_bound,
            cold_arrays,
            Alternative("features, cold", cold(load, folder / "cache"), count, "float16", against),
        ]
        epochs.append(
            Alternative(
                "LSTM epoch, cold",
                cold(train, folder / "cache"),
                count,
                name_of(compute),
                {"bound": warm_epoch},
            )
        )
    rows = compare("loading", shape, "images", found, settings)
    return rows + compare("loading", shape, "images", epochs, settings)


def cached_set(settings: Settings, folder: Path, cells: int, channels: int) -> Flickr8kDataset:
    """A training set with its feature cache; the images are there only because the cache looks at them."""
    table = captions_table(settings.num_cached, settings.vocab_size)
    options = config(
        settings,
        data={"images": str(folder / "images"), "workers": 0},
        features={"folder": str(folder / "cache")},
    )
    options.data.images.mkdir()
    for name in table["image"].unique():
        Image.new("RGB", (8, 8)).save(options.data.images / name)
    model = SimpleNamespace(encoder=_Encoder(cells, channels))
    cpu = replace(settings.compute, device=torch.device("cpu"))
    captioner = SimpleNamespace(config=options, compute=cpu, model=model, transform=TRANSFORM)
    return dataset(settings, table, compute_features(captioner, table, ["train"]))


def _arrays(train_set: Flickr8kDataset, folder: Path) -> list[Path]:
    """Write the features once more, as one file and as one array file per image; returns the latter."""
    (folder / "arrays").mkdir()
    (folder / "plain").mkdir()
    paths = [folder / "arrays" / f"{i}.npy" for i in range(len(train_set))]
    with open(folder / "plain" / "grids", "wb") as plain:
        for i, path in enumerate(paths):
            array = train_set.image(i).numpy()
            np.save(path, array)
            plain.write(array.tobytes())
    return paths


def _drop_from_memory(folder: Path) -> None:
    """Let the system forget the content of the files in a folder, so that reading them waits for the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fdatasync(file)
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    run_script(lambda: run_benchmarks([benchmark]))
