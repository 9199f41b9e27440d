"""How long does a dataset of COCO's size take until the first batch, and how much memory does it need?

    python -m benchmarks.coco_scale

Generates 123,000 images with five captions each in a temporary folder (about 600 MB; the features are a
sparse file), then does what train.py does: captions, vocabulary, cached features, datasets, epochs. First
the main process reads cached features, then worker processes read images, over a part of each epoch. Prints
seconds, and the memory of the process (RSS: resident memory) and of its workers (PSS: shared pages divided
among the processes that share them; USS: unshared memory). Linux only. On a machine with fewer than four
cores torch warns about too many workers; `python -W ignore` hides the warning.
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from compute import Compute
from config import Config
from config_reading import make_config
from data.captions import read_captions
from data.dataset import Batch, Flickr8kDataset, collate, make_loader, training_batches
from data.feature_index import StoreWriter, View, checksum, read_index
from data.images import ImageFolder
from data.loading import read_with_processes
from data.transforms import ImageTransform
from data.vocab import Vocabulary
from training.datasets import compute_features

CAPTIONS_PER_IMAGE = 5
NUM_WORDS = 30_000  # distinct words; COCO's captions have about 27,000
GRID = (49, 2048)  # of ResNet-50
TRANSFORM = ImageTransform(64, (0.5,) * 3, (0.5,) * 3)
CPU = Compute(torch.device("cpu"))


class Encoder:
    """Replaces the frozen encoder, which is not used because its features are cached."""

    def digest(self) -> str:
        return "none"

    def for_inference(self) -> "Encoder":
        return self

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(images), *GRID)


def generate(folder: Path, num_images: int) -> None:
    """Write images to images/train2014 and val2014, and their captions in Karpathy's format, with tokens."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(NUM_WORDS)]
    weights = np.cumsum(1 / np.arange(1, NUM_WORDS + 1)).tolist()  # Zipf's law
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(buffer, "JPEG", quality=50)
    entries = []
    for i in range(num_images):
        split = (
            "val"
            if i < num_images // 25
            else "test"
            if i < num_images // 12
            else "restval"
            if i % 4 == 0
            else "train"
        )
        subset = "train2014" if split == "train" else "val2014"
        name = f"COCO_{subset}_{i:012}.jpg"
        sentences = []
        for _ in range(CAPTIONS_PER_IMAGE):
            tokens = rng.choices(words, cum_weights=weights, k=rng.randint(8, 13))
            raw = " ".join(tokens).capitalize() + "."
            sentences.append({"tokens": tokens, "raw": raw, "imgid": i, "sentid": len(sentences)})
        entries.append(
            {
                "filepath": subset,
                "filename": name,
                "imgid": i,
                "cocoid": i,
                "split": split,
                "sentences": sentences,
            }
        )
        (folder / "images" / subset).mkdir(parents=True, exist_ok=True)
        (folder / "images" / subset / name).write_bytes(buffer.getvalue())
    (folder / "dataset_coco.json").write_text(json.dumps({"images": entries, "dataset": "coco"}), "utf-8")


def generate_features(config: Config) -> None:
    """Fill the feature store: compute one image, then extend the index and the file to all images."""
    table, zeros = read_captions(config.data.captions, config.data.images), np.zeros(GRID, np.float16)
    cached_features(config, table.head(1))
    [store] = config.features.folder.iterdir()
    index = read_index(store)
    [(done, kind)] = index.rows
    names = [name for name in table["image"].unique() if name != done]
    images = ImageFolder(config.data.images)
    with StoreWriter(store, index, len(names)) as writer:
        for name in names:
            writer.name(View(name, kind), images.fingerprint(name), checksum(name, zeros))
    os.truncate(store / "grids.f16", len(index.rows) * zeros.nbytes)


def cached_features(config: Config, table):
    model = SimpleNamespace(encoder=Encoder())
    captioner = SimpleNamespace(config=config, compute=CPU, model=model, transform=TRANSFORM)
    return compute_features(captioner, table, ("train", "val"))


def megabytes(pid: int, *kinds: str) -> int:
    """The sum of some kinds of memory of a process, such as Rss or Private_Clean (from Linux's /proc)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    values = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return sum(values[kind] for kind in kinds) // 1024


def memory() -> str:
    """The memory of this process and, if there are any, of its workers."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    text = f"RSS {megabytes(os.getpid(), 'Rss'):5,} MB (peak {peak:5,})"
    workers = [process.pid for process in multiprocessing.active_children()]
    if workers:
        pss = sum(megabytes(pid, "Pss") for pid in workers)
        uss = sum(megabytes(pid, "Private_Clean", "Private_Dirty") for pid in workers)
        text += f"; {len(workers)} workers: PSS {pss:5,} MB, USS {uss:5,} MB"
    return text


def timed(title: str, work: Callable):
    began, busy = time.perf_counter(), time.process_time()
    result = work()
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    print(f"{title:<32} {seconds:6.1f} s ({busy:5.1f} s of CPU)  {memory()}", flush=True)
    return result


def run_epochs(
    dataset: Flickr8kDataset, read: Callable[[list], Iterator[Batch]], epochs: int, batches: int
) -> None:
    """Load batches as training does, and print the memory, that of workers included."""
    for epoch in range(1, epochs + 1):
        drawn = training_batches(len(dataset), 32, seed=1, epoch=epoch)[: batches or None]
        began, captions = time.perf_counter(), 0
        for number, batch in enumerate(read(drawn), start=1):
            captions += len(batch.captions)
            if number in (len(drawn) // 2, len(drawn)):
                seconds = time.perf_counter() - began
                title = f"  epoch {epoch}, batch {number:,} of {len(drawn):,}"
                print(f"{title:<32} {seconds:6.1f} s {'':16} {memory()}", flush=True)


def measure(config: Config, epochs: int, batches: int) -> None:
    print(f"{'imports':<32} {'':25} {memory()}")
    began, busy = time.perf_counter(), time.process_time()
    table = timed(
        "captions read, images found", lambda: read_captions(config.data.captions, config.data.images)
    )
    train = table.loc[table["split"] == "train", "caption"]
    vocabulary = timed("vocabulary built", lambda: Vocabulary.build(train, config.data.min_freq))
    features = timed("cached features looked up", lambda: cached_features(config, table))

    def dataset(split: str, features=None) -> Flickr8kDataset:
        return Flickr8kDataset(table, split, vocabulary, config.data.images, TRANSFORM, features)

    train_set = timed("training set", lambda: dataset("train", features))
    timed("validation set", lambda: dataset("val", features))
    draws = training_batches(len(train_set), 32, seed=1, epoch=1)
    timed("first batch", lambda: next(iter(make_loader(train_set, draws, 4, CPU))))
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    print(f"start-up to the first batch: {seconds:.1f} s ({busy:.1f} s of CPU)")
    print("cached features, read by the main process")
    run_epochs(train_set, lambda drawn: make_loader(train_set, drawn, 4, CPU), epochs, batches)
    print("images, read by 4 workers")
    images = dataset("train")
    run_epochs(images, lambda drawn: read_with_processes(images, drawn, collate, 4), epochs, batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=123_000, help="number of images (default: 123000)")
    parser.add_argument("--epochs", type=int, default=3, help="number of epochs (default: 3)")
    parser.add_argument("--batches", type=int, default=500, help="batches per epoch; 0: all (default: 500)")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="coco_scale_"))
    config = make_config({
        "data": {"captions": str(folder / "dataset_coco.json"), "images": str(folder / "images")},
        "features": {"folder": str(folder / "features")},
    })  # fmt: skip
    try:
        # In separate processes, so that their memory is not measured.
        for work, *given in ((generate, folder, arguments.images), (generate_features, config)):
            process = multiprocessing.get_context("spawn").Process(target=work, args=given)
            process.start()
            process.join()
        measure(config, arguments.epochs, arguments.batches)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
