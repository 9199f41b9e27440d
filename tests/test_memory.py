"""Trainings and searches beyond the memory are refused before they start, with the key to lower."""

import pytest
import torch

from models.memory import require_search_memory, require_training_memory
from models.model import build_model
from tests.helpers import CPU, tiny
from utils import UserError

IMAGES = (10**6, 10**6)  # for training and validation


@pytest.fixture
def little(monkeypatch) -> None:
    """A machine whose memory suffices for the tiny model, but not for the largest of all settings."""
    monkeypatch.setattr("compute.total_memory", lambda device: 3 * 2**19)


def check(tmp_path, images=IMAGES, **sections) -> None:
    config = tiny(tmp_path, **sections)
    require_training_memory(build_model(config, 6), config, images, 6, CPU)


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"train": {"batch_size": 65_536}}, r"train\.batch_size=65536"),
        ({"train": {"batch_size": 65_536}, "features": {"cache": False}}, r"train\.batch_size=65536"),
        ({"train": {"beam": 10_000}}, r"train\.beam=10000"),
        ({"search": {"beam": 10_000}}, r"search\.beam=10000"),
        (
            {"train": {"objective": "self_critical", "init_from": "a.pth"}, "rl": {"samples": 10_000}},
            r"rl\.samples=10000",
        ),
    ],
)
def test_a_training_beyond_the_memory_is_refused_with_the_key_to_lower(tmp_path, little, sections, key):
    with pytest.raises(UserError, match=rf"^{key}.* needs .*; lower it"):
        check(tmp_path, **sections)


def test_a_batch_is_never_larger_than_its_split(tmp_path, little):
    check(tmp_path, (4, 4), train={"batch_size": 65_536})


def test_what_is_not_used_is_not_refused(tmp_path, little):
    check(tmp_path, rl={"samples": 10_000})


def test_adam_needs_four_times_the_trained_weights(tmp_path, monkeypatch):
    config = tiny(tmp_path, train={"batch_size": 1})
    model = build_model(config, 6)
    size = sum(p.nbytes for p in model.decoder.parameters())  # the encoder is frozen
    frozen = sum(p.nbytes for p in model.encoder.parameters())
    assert 4 * size < 2**20 < 4 * (size + frozen)
    monkeypatch.setattr("compute.total_memory", lambda device: 2**20)
    require_training_memory(model, config, (1, 1), 6, CPU)
    monkeypatch.setattr("compute.total_memory", lambda device: 4 * size - 1)
    with pytest.raises(UserError, match=r"training the model's weights needs .* lower decoder\.hidden_dim"):
        require_training_memory(model, config, (1, 1), 6, CPU)


def test_the_least_that_a_search_takes_is_three_tables_of_beams_by_words(monkeypatch):
    monkeypatch.setattr("compute.total_memory", lambda device: 3 * 4 * 2 * 5 * 11)
    require_search_memory(2, 5, 11, torch.device("cpu"))
    with pytest.raises(UserError, match=r"search\.beam=6 for 2 images at once"):
        require_search_memory(2, 6, 11, torch.device("cpu"))
