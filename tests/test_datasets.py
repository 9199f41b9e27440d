"""From a configuration to datasets: what is cut, augmented and cached, and for which split."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from captioning import Captioner
from data.captions import read_table
from data.transforms import transform_for
from data.vocab import Vocabulary
from models.model import build_model
from tests.helpers import CPU, tiny
from training.datasets import make_datasets


def make(dataset: Path, **sections) -> tuple[Captioner, pd.DataFrame]:
    config = tiny(dataset, **sections)
    table = read_table(config.data)
    vocabulary = Vocabulary.build(table["caption"], 1)
    model = build_model(config, len(vocabulary))
    return Captioner(model, vocabulary, transform_for(config.encoder), config, CPU), table


def test_only_the_captions_of_training_are_cut_and_drawn(dataset):
    captioner, table = make(
        dataset, data={"captions_per_image": 1, "max_length": 3}, features={"cache": False}
    )
    # Of <sos>, 6 words and <eos>: a caption that was cut has no <eos>.
    for split, count, length in (("train", 1, 4), ("val", 2, 8), ("test", 2, 8)):
        [made] = make_datasets(captioner, table, [split], training=True)
        _, captions = made[0, 0]
        assert [len(caption) for caption in captions] == [length] * count


@pytest.mark.parametrize("cache", [True, False])
def test_only_images_of_training_are_augmented_when_they_are_read(dataset, cache):
    captioner, table = make(dataset, data={"augment": ["crop", "flip"]}, features={"cache": cache})
    train, val = make_datasets(captioner, table, ("train", "val"), training=True)
    assert train.augment == ([] if cache else ["crop", "flip"])
    assert val.augment == []
    assert (train.features is not None) == cache


def test_only_training_images_have_several_views(dataset):
    captioner, table = make(dataset, data={"augment": ["crop"]}, features={"views": 3})
    train, val = make_datasets(captioner, table, ("train", "val"), training=True)
    views = {name: len(rows) for name, rows in train.features.rows.items()}
    assert {views[name] for name in train.names} == {3}
    assert {views[name] for name in val.names} == {1}
    assert not torch.equal(train.image(0, seed=0), train.image(0, seed=1))


@pytest.mark.parametrize("cache", [True, False])
def test_a_training_split_that_is_only_evaluated_is_not_augmented_and_not_cut(dataset, cache):
    augment = ["crop", "flip"]
    captioner, table = make(
        dataset,
        data={"augment": augment, "captions_per_image": 1, "max_length": 3},
        features={"cache": cache, "views": 3 if cache else 1},
    )
    [evaluated] = make_datasets(captioner, table, ["train"])
    image, captions = evaluated[0, 0]
    assert [len(caption) for caption in captions] == [8, 8]
    plain = captioner.transform(Image.open(dataset / "images" / evaluated.names[0]).convert("RGB"))
    if cache:
        assert {len(rows) for rows in evaluated.features.rows.values()} == {1}
        with torch.no_grad():
            plain = captioner.model.eval().encoder(plain.unsqueeze(0))[0]
    torch.testing.assert_close(image.float(), plain, atol=5e-3, rtol=5e-3)


def test_cached_grids_are_those_of_the_encoder_and_of_its_weights(dataset):
    for _ in range(2):  # the second model has other random weights, and must not get the first one's grids
        captioner, table = make(dataset)
        [test] = make_datasets(captioner, table, ["test"])
        captioner.model.eval()
        for i in range(len(test)):
            pixels = captioner.transform(Image.open(dataset / "images" / test.names[i]).convert("RGB"))
            with torch.no_grad():
                expected = captioner.model.encoder(pixels.unsqueeze(0))[0]
            torch.testing.assert_close(test.image(i).float(), expected, atol=5e-3, rtol=5e-3)
