"""Images with their captions, in batches."""

import multiprocessing
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch

from data.captions import read_captions
from data.dataset import Flickr8kDataset, collate, make_loader, ordered_batches, training_batches
from data.features import FeatureGrids
from data.transforms import ImageTransform
from data.vocab import Vocabulary
from tests.helpers import CPU, GPU
from utils import SOS

TRANSFORM = ImageTransform(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def make(dataset, split="train", **options):
    table = read_captions(dataset / "captions.csv", dataset / "images")
    vocabulary = Vocabulary.build(table["caption"], 1)
    return Flickr8kDataset(table, split, vocabulary, dataset / "images", TRANSFORM, **options), vocabulary


def test_a_batch_holds_each_image_once_and_all_its_captions(dataset):
    data, vocabulary = make(dataset)
    batch = collate([data[0, 0], data[5, 0]])
    assert batch.images.shape == (2, 3, 16, 16)
    assert batch.image_index.tolist() == [0, 0, 1, 1]
    texts = [" ".join(vocabulary.decode(caption)) for caption in batch.captions.tolist()]
    assert texts == ["a red half on the left", "on the left there is red", "a green half on the right",
                     "on the right there is green"]  # fmt: skip
    assert batch.lengths.tolist() == [8, 8, 8, 8]
    assert (batch.captions[:, 0] == SOS).all()


def test_fewer_captions_are_drawn_by_the_seed_of_the_item(dataset):
    data, _ = make(dataset, captions_per_image=1)
    drawn = {tuple(data[0, seed][1][0].tolist()) for seed in range(20)}
    assert len(drawn) == 2
    assert all(len(data[0, seed][1]) == 1 for seed in range(3))


def test_an_epoch_visits_every_image_once_and_no_two_epochs_have_the_same_order():
    batches = training_batches(10, 4, seed=1, epoch=1)
    assert [len(b) for b in batches] == [4, 4, 2]
    assert sorted(i for b in batches for i, _ in b) == list(range(10))
    assert batches == training_batches(10, 4, seed=1, epoch=1)
    assert batches != training_batches(10, 4, seed=1, epoch=2)
    assert batches != training_batches(10, 4, seed=2, epoch=1)


def test_who_reads_changes_nothing(dataset):
    data, _ = make(dataset, captions_per_image=1, augment=["crop", "flip", "colour"])
    batches = training_batches(len(data), 5, seed=3, epoch=1)
    alone = [collate([data[draw] for draw in batch]) for batch in batches]
    for others in (make_loader(data, batches, 0, CPU), make_loader(data, batches, 2, GPU)):
        for a, b in zip(alone, others, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_loader_leaves_the_random_state_alone(dataset):
    data, _ = make(dataset)
    before = torch.get_rng_state()
    list(make_loader(data, ordered_batches(len(data), 4), 0, CPU))
    assert torch.equal(before, torch.get_rng_state())


def test_captions_of_an_image_keep_their_order_wherever_they_are_in_the_table():
    images = [f"{i}.png" for i in range(40)]
    captions = [f"a{i}" for i in range(40)] + [f"b{i}" for i in range(40)]
    table = pd.DataFrame({"image": images * 2, "caption": captions, "split": "train"})
    vocabulary = Vocabulary.build(captions, 1)
    data = Flickr8kDataset(table, "train", vocabulary, Path("images"), TRANSFORM)
    data.image = lambda i, seed: torch.zeros(())
    for i in range(40):
        _, found = data[i, 0]
        assert [vocabulary.decode(tokens.tolist()) for tokens in found] == [[f"a{i}"], [f"b{i}"]]


@pytest.mark.parametrize("is_cached", [True, False])
def test_cached_features_are_read_without_workers(dataset, is_cached):
    data, _ = make(dataset)
    if is_cached:
        data.features = Mock(FeatureGrids, read=lambda views, pin_memory: torch.zeros(len(views), 1, 3))
    batches = make_loader(data, ordered_batches(4, 2), 2, GPU)
    next(batches)
    assert len(multiprocessing.active_children()) == (0 if is_cached else 2)


def test_captions_lie_in_flat_arrays(dataset):
    data, _ = make(dataset)
    assert isinstance(data.tokens, np.ndarray)
    assert len(data.tokens) == 32 * 8
