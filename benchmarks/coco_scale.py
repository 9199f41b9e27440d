"""How long does a dataset of COCO's size take to the first batch, and how much memory does it hold?

    python benchmarks/coco_scale.py

Invents 123,000 images with five captions each in a temporary folder (about 600 MB; the features are a
sparse file), then goes the way of train.py: captions, vocabulary, cached features, datasets, epochs. With
cached features the loader reads in its own process; then images are read by worker processes over a part
of each epoch. Prints seconds, and the memory of the process (RSS: all of it that is in RAM) and of its
workers (PSS: shared pages divided among those who share them; USS: what only they have). Linux only. On a
machine with fewer than four cores torch warns of too many workers: `python -W ignore` keeps it quiet.
"""

import argparse
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from compute import Compute
from config import Config
from config_reading import make_config
from data.captions import read_captions
from data.dataset import Flickr8kDataset, make_loader, training_batches
from data.features import Entry, View, fingerprint, read_index, write_index
from data.transforms import ImageTransform
from data.vocab import Vocabulary
from training.datasets import compute_features

CAPTIONS_PER_IMAGE = 5
WORDS = 30_000  # different ones; COCO's captions have about 27,000
GRID = (49, 2048)  # of a ResNet-50
TRANSFORM = ImageTransform(64, (0.5,) * 3, (0.5,) * 3)
CPU = Compute(torch.device("cpu"))


class Encoder:
    """Stands for the frozen encoder, which has nothing to do: its features are there."""

    def digest(self) -> str:
        return "none"

    def for_inference(self) -> "Encoder":
        return self

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(images), *GRID)


def invent(folder: Path, images: int) -> None:
    """Images in images/train2014 and val2014, and their captions in Karpathy's format, tokens included."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(WORDS)]
    weights = np.cumsum(1 / np.arange(1, WORDS + 1)).tolist()  # Zipf's law
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(buffer, "JPEG", quality=50)
    entries = []
    for i in range(images):
        split = (
            "val"
            if i < images // 25
            else "test"
            if i < images // 12
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


def invent_features(config: Config) -> None:
    """A full store: one that holds a single image, its index and its size extended to all of them."""
    table = read_captions(config.data.captions, config.data.images)
    compute(config, table.head(1))
    [store] = config.features.folder.iterdir()
    index = read_index(store)
    [(_, kind)] = index.entries
    for row, name in enumerate(table["image"].unique()):
        index.entries[View(name, kind)] = Entry(row, fingerprint(config.data.images / name))
    write_index(store, index)
    os.truncate(store / "grids.f16", len(index.entries) * int(np.prod(GRID)) * 2)


def compute(config: Config, table):
    model = SimpleNamespace(encoder=Encoder())
    captioner = SimpleNamespace(config=config, compute=CPU, model=model, transform=TRANSFORM)
    return compute_features(captioner, table, ("train", "val"))


def megabytes(pid: int, *kinds: str) -> int:
    """The sum of some lines of Linux's account of a process's memory, such as Rss or Private_Clean."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    values = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return sum(values[kind] for kind in kinds) // 1024


def memory() -> str:
    """Of this process and, where there are some, of its workers."""
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


def run_epochs(dataset: Flickr8kDataset, workers: int, epochs: int, batches: int) -> None:
    """Draw batches as training does; memory is looked at while the workers are there."""
    for epoch in range(1, epochs + 1):
        drawn = training_batches(len(dataset), 32, seed=1, epoch=epoch)[: batches or None]
        loader = make_loader(dataset, drawn, workers, CPU)
        began, captions = time.perf_counter(), 0
        for number, batch in enumerate(loader, start=1):
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
    features = timed("cached features looked up", lambda: compute(config, table))

    def dataset(split: str, features=None) -> Flickr8kDataset:
        return Flickr8kDataset(table, split, vocabulary, config.data.images, TRANSFORM, features)

    train_set = timed("training set", lambda: dataset("train", features))
    timed("validation set", lambda: dataset("val", features))
    draws = training_batches(len(train_set), 32, seed=1, epoch=1)
    timed("first batch", lambda: next(iter(make_loader(train_set, draws, 4, CPU))))
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    print(f"start-up to the first batch: {seconds:.1f} s ({busy:.1f} s of CPU)")
    print("cached features, read in the process itself")
    run_epochs(train_set, 4, epochs, batches)
    print("images, read by 4 workers")
    run_epochs(dataset("train"), 4, epochs, batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=123_000, help="images (123000)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs (3)")
    parser.add_argument("--batches", type=int, default=500, help="batches of each epoch, 0 for all (500)")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="coco_scale_"))
    config = make_config({
        "data": {"captions": str(folder / "dataset_coco.json"), "images": str(folder / "images")},
        "features": {"folder": str(folder / "features")},
    })  # fmt: skip
    try:
        # In a process of its own, whose memory is not the one to be measured.
        for work, *given in ((invent, folder, arguments.images), (invent_features, config)):
            process = multiprocessing.get_context("spawn").Process(target=work, args=given)
            process.start()
            process.join()
        measure(config, arguments.epochs, arguments.batches)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
