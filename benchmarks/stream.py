"""Does memory grow with the number of images in shards, and does any step get slower?

    python -m benchmarks.stream                             # 10,000 and 100,000 images
    python -m benchmarks.stream --samples 100000 1000000

For each number it writes shards of tiny images into a temporary folder (about 3 kB an image), and then, in a
process of its own, does with them what train.py and evaluate.py do: index, vocabulary, features, one epoch
of training on the features, captions of all images. Encoder and decoder are tiny, so that most of the time
goes into reading. It takes about 1 ms of CPU for each image.

Prints the largest memory of the process in each part (RSS: resident memory), its growth since the tenth step
of the part, the time of a step (milliseconds of CPU, which other programs do not change; the median, and the
99th percentile), and images per second. A step is one of 256 images, or of 32 when features are computed.
Linux only.
"""

import argparse
import io
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from webdataset import TarWriter

from benchmarks.workload import TRANSFORM
from captioning import Captioner
from compute import Compute
from config import Config
from config_reading import make_config
from data.captions import read_table
from data.dataset import Draw, Flickr8kDataset, make_loader
from data.vocab import Vocabulary, find_vocabulary
from models.decoders import DECODERS
from models.model import CaptionModel
from models.search import SearchOptions
from training.datasets import make_datasets
from training.objectives import OBJECTIVES
from training.parts import read_parts
from training.trainer import Trainer

CPU = Compute(torch.device("cpu"))
IMAGES_PER_SHARD = 1000
WORDS = 200  # distinct ones
CHANNELS, CELLS = 3, 16
BATCH = 256
PAGE = 4096  # bytes
PARTS = ("index", "vocabulary", "features", "training", "captions")


@dataclass
class Part:
    """What one part of the work takes."""

    memory: list[int] = field(default_factory=list)  # MB after each step
    seconds: list[float] = field(default_factory=list)  # of CPU, of each step
    began: float = field(default_factory=time.process_time)
    wall_began: float = field(default_factory=time.monotonic)
    wall: float = 0.0  # seconds, with those in which other programs ran

    def step(self) -> None:
        """A step has ended."""
        now = time.process_time()
        self.seconds.append(now - self.began)
        self.began, self.wall = now, time.monotonic() - self.wall_began
        self.memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * PAGE // 2**20)


class Encoder(nn.Module):
    """A mean of the pixels of each cell."""

    trained: tuple[str, ...] = ()

    def digest(self) -> str:
        return "mean"

    def for_inference(self) -> "Encoder":
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(images, int(CELLS**0.5)).flatten(2).transpose(1, 2)


def generate(folder: Path, num_images: int) -> None:
    """Write shards of train with `num_images` images, and one of val."""
    rng = random.Random(0)
    noise = np.random.default_rng(0)
    images = []
    for _ in range(16):
        buffer = io.BytesIO()
        Image.fromarray(noise.integers(0, 255, (32, 32, 3), np.uint8)).save(buffer, "JPEG", quality=50)
        images.append(buffer.getvalue())
    shards = {"val-0000": range(num_images, num_images + 1)}
    for s, first in enumerate(range(0, num_images, IMAGES_PER_SHARD)):
        shards[f"train-{s:04}"] = range(first, min(first + IMAGES_PER_SHARD, num_images))
    for name, numbers in shards.items():
        with open(folder / f"{name}.tar", "wb") as file, TarWriter(file, mtime=0) as tar:
            for i in numbers:
                texts = [
                    " ".join(f"w{rng.randrange(WORDS)}" for _ in range(rng.randint(5, 12))) for _ in "12"
                ]
                tar.write({
                    "__key__": f"{i:09}",
                    "jpg": images[i % len(images)],
                    "json": json.dumps({"captions": texts}).encode(),
                })  # fmt: skip


def configuration(folder: Path) -> Config:
    last = len(list(folder.glob("train-*.tar"))) - 1
    return make_config({
        "run": {"device": "cpu", "precision": "float32"},
        "data": {
            "captions": f"{folder}/{{train-{{0000..{last:04}}},val-0000}}.tar",
            "index_folder": str(folder / "index"),
            "min_freq": 1, "captions_per_image": 1, "workers": 0, "augment": [],
        },
        "features": {"folder": str(folder / "features")},
        "decoder": {"embed_dim": 32, "hidden_dim": 32, "attention_dim": 32},
        "train": {"batch_size": BATCH},
    })  # fmt: skip


def measure(folder: Path) -> dict[str, Part]:
    """Index, vocabulary, features, training and captioning over the shards in `folder`."""
    torch.set_num_threads(1)
    config, parts = configuration(folder), {}

    def timed(name: str) -> Part:
        parts[name] = Part()
        return parts[name]

    part = timed("index")
    table = read_table(config.data, in_memory=["val"])
    part.step()
    part = timed("vocabulary")
    vocabulary = find_vocabulary(config.data, table)
    part.step()
    captioner = captioner_of(config, vocabulary)
    part = timed("features")
    captioner.model.encoder.register_forward_hook(lambda *_: part.step())
    train_set, _ = make_datasets(captioner, table, ("train", "val"), training=True)
    part = Part()  # of no interest: the encoder captions, too

    objective = OBJECTIVES["cross_entropy"](captioner.model, config, CPU, train_set)
    trainer = Trainer(objective, steps_per_epoch=-(-len(train_set) // BATCH))
    captioner.model.train()
    epoch = timed("training")
    for of_step in read_parts(train_set, train_set.batches(BATCH, 1, 1), 1, 0, CPU):
        trainer.step(of_step, 1)
        epoch.step()

    images, _ = make_datasets(with_images(captioner), table, ("train", "val"))
    caption(captioner, images, timed("captions"))
    return parts


def captioner_of(config: Config, vocabulary: Vocabulary) -> Captioner:
    torch.manual_seed(0)
    decoder = DECODERS[config.decoder.name](CHANNELS, len(vocabulary), config.decoder)
    return Captioner(CaptionModel(Encoder(), decoder), vocabulary, TRANSFORM, config, CPU)


def with_images(captioner: Captioner) -> Captioner:
    """The captioner without a cache of features."""
    features = captioner.config.features.model_copy(update={"cache": False})
    config = captioner.config.model_copy(update={"features": features})
    return Captioner(captioner.model, captioner.vocabulary, TRANSFORM, config, CPU)


def caption(captioner: Captioner, dataset: Flickr8kDataset, part: Part) -> None:
    """Caption all images in the order of the shards."""
    options = SearchOptions(beam=1, max_length=8)
    for batch in make_loader(dataset, in_order(len(dataset)), 0, CPU):
        captioner.texts(captioner.search(batch.images, options))
        part.step()


def in_order(num_images: int) -> Iterator[list[Draw]]:
    for at in range(0, num_images, BATCH):
        yield [(i, 0) for i in range(at, min(at + BATCH, num_images))]


def in_own_process(work: Callable, *arguments):
    """`work` in a new process, so that its memory is not that of the others."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def line(num_images: int, name: str, part: Part) -> str:
    steps = part.seconds[1:] or part.seconds
    slow = quantiles(steps, n=100)[-1] if len(steps) > 1 else steps[0]
    growth = max(part.memory) - part.memory[min(len(part.memory) - 1, 10)]
    rate = num_images / part.wall
    return (
        f"{num_images:>11,}  {name:<11} {max(part.memory):>7,} {growth:>7,} "
        f"{1000 * median(steps):>10,.1f} {1000 * slow:>10,.1f} {rate:>9,.0f}"
    )


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--samples", type=int, nargs="+", default=[10_000, 100_000], metavar="N",
        help="numbers of images (default: 10000 100000)",
    )  # fmt: skip
    args = parser.parse_args(None if arguments is None else list(arguments))
    results: dict[int, dict[str, Part]] = {}
    print(f"{'images':>11}  {'':<11} {'MB':>7} {'growth':>7} {'ms':>10} {'99% ms':>10} {'images/s':>9}")
    for num_images in args.samples:
        with tempfile.TemporaryDirectory(prefix="stream_") as folder:
            in_own_process(generate, Path(folder), num_images)
            results[num_images] = in_own_process(measure, Path(folder))
        for name, part in results[num_images].items():
            print(line(num_images, name, part), flush=True)
    few, many = results[min(results)], results[max(results)]
    if few is not many:
        for name in PARTS:
            memory = max(many[name].memory) / max(few[name].memory) - 1
            speed = median(many[name].seconds) / median(few[name].seconds) - 1
            step = f", a step {speed:+.1%}" if len(few[name].seconds) > 1 else ""
            print(f"{name}: memory {memory:+.1%}{step}")


if __name__ == "__main__":
    main()
