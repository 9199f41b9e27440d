"""Every configuration of the project trains: one step each, on tiny data with random weights."""

from pathlib import Path

import pytest
import torch

from config_reading import load_config
from data.dataset import collate, training_batches
from jobs.train import find_data
from tests.helpers import CPU, write_dataset
from training.datasets import make_datasets
from training.objective import Part
from training.objectives import OBJECTIVES
from training.start import make_captioner
from training.trainer import Trainer

ROOT = Path(__file__).parents[1]
SMALLEST = {"inception_v3": 128}  # pixels that leave more than one cell; 64 are enough for the others
CONFIGS = [ROOT / "config.yaml", *sorted((ROOT / "configs").glob("*.yaml"))]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("configs") / "data"
    write_dataset(folder)
    return folder


# The CLIP model has 86 million weights, whatever the size of its images.
SLOW = {"flickr8k_clip": [pytest.mark.slow]}


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=SLOW.get(path.stem, []), id=path.stem) for path in CONFIGS]
)
def test_a_configuration_takes_a_training_step(data, path):
    name = load_config(path).encoder.name
    config = load_config(
        path,
        [
            f"data.captions={data / 'captions.csv'}",
            f"data.images={data / 'images'}",
            "data.workers=0",
            "encoder.weights=none",
            f"encoder.image_size={SMALLEST.get(name, 64)}",
            # Random weights over 152 layers leave the range of the cache's float16.
            "features.cache=false",
            "features.views=1",
            "train.batch_size=2",
        ],
    )
    table = find_data(config)
    captioner = make_captioner(config, None, table, CPU)
    (train_set,) = make_datasets(captioner, table, ["train"], training=True)
    objective = OBJECTIVES[config.train.objective](captioner.model, config, CPU, train_set)
    trainer = Trainer(objective, steps_per_epoch=1)
    before = [parameter.clone() for parameter in trainer.parameters()]

    draws = training_batches(len(train_set), 2, 1, 1)[0]
    batch = collate([train_set[draw] for draw in draws])
    trainer.step([Part(batch, [index for index, _ in draws])], 1)

    assert len(batch.captions) == 2 * min(config.data.captions_per_image, 2)
    assert trainer.is_finite
    moved = [not torch.equal(a, b) for a, b in zip(before, trainer.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_says_what_it_is_and_has_a_run_folder_of_its_own(path):
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert sum(load_config(other).run.name == load_config(path).run.name for other in CONFIGS) == 1
