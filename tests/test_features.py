"""Cached features are what the encoder would give now."""

import os
import pickle

import pytest
import torch
from PIL import Image

from data.features import cached_features, locked
from data.transforms import ImageTransform
from utils import UserError

TRANSFORM = ImageTransform(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
NAMES = [f"{i}.png" for i in range(6)]


class Encoder:
    """The mean colour as one cell; counts the images it is asked for."""

    def __init__(self):
        self.seen = 0

    def __call__(self, images):
        self.seen += len(images)
        return (images / 255).mean(dim=(2, 3)).unsqueeze(1)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, name in enumerate(NAMES):
        Image.new("RGB", (10, 10), (40 * i, 0, 0)).save(folder / name)
    return folder


def features(tmp_path, images, names=NAMES, identity=None, transform=TRANSFORM, **options):
    encoder = Encoder()
    grids = cached_features(
        tmp_path / "cache",
        identity or {"encoder": 1},
        encoder,
        images,
        names,
        transform,
        batch_size=2,
        **options,
    )
    return grids, encoder.seen


def red(grid) -> int:
    return round(float(grid[0, 0]) * 255)


def test_features_are_those_of_the_named_image(tmp_path, images):
    grids, seen = features(tmp_path, images)
    assert seen == 6
    assert [red(grids.grid(name)) for name in NAMES] == [0, 40, 80, 120, 160, 200]
    assert grids.grid("1.png").shape == (1, 3)


def test_each_image_is_computed_once(tmp_path, images):
    features(tmp_path, images, NAMES[:4])
    grids, seen = features(tmp_path, images)
    assert seen == 2
    assert [red(grids.grid(name)) for name in NAMES] == [0, 40, 80, 120, 160, 200]
    assert features(tmp_path, images)[1] == 0


def test_a_changed_image_is_noticed(tmp_path, images):
    features(tmp_path, images)
    Image.new("RGB", (10, 10), (7, 0, 0)).save(images / "2.png")
    grids, seen = features(tmp_path, images)
    assert seen == 1
    assert red(grids.grid("2.png")) == 7
    assert red(grids.grid("3.png")) == 120


def test_an_image_changed_behind_its_date_is_noticed(tmp_path, images):
    features(tmp_path, images)
    before = (images / "2.png").stat()
    Image.new("RGB", (10, 10), (81, 0, 0)).save(images / "2.png")
    os.utime(images / "2.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert red(features(tmp_path, images)[0].grid("2.png")) == 81


@pytest.mark.parametrize(
    "change", [{"identity": {"encoder": 2}}, {"transform": ImageTransform(9, (0.0,) * 3, (1.0,) * 3)}]
)
def test_another_encoder_or_transform_is_another_store(tmp_path, images, change):
    features(tmp_path, images)
    assert features(tmp_path, images, **change)[1] == 6
    assert features(tmp_path, images)[1] == 0


def test_an_interrupted_pass_leaves_a_store_that_is_right(tmp_path, images):
    def fail(images):
        raise KeyboardInterrupt

    features(tmp_path, images, NAMES[:2])
    with pytest.raises(KeyboardInterrupt):
        cached_features(tmp_path / "cache", {"encoder": 1}, fail, images, NAMES, TRANSFORM)
    [data] = (tmp_path / "cache").glob("*/grids.f16")
    with open(data, "ab") as file:
        file.write(b"abc")  # half a row
    grids, seen = features(tmp_path, images)
    assert seen == 4
    assert [red(grids.grid(name)) for name in NAMES] == [0, 40, 80, 120, 160, 200]


def test_who_misses_nothing_waits_for_nobody(tmp_path, images):
    features(tmp_path, images)
    [store] = (tmp_path / "cache").iterdir()
    with locked(store / "lock"):  # as another run holds it that computes more
        assert features(tmp_path, images)[1] == 0


def test_views_are_drawn_by_the_seed_and_the_first_is_plain(tmp_path, images):
    noise = Image.effect_noise((30, 30), 90).convert("RGB")
    noise.save(images / "0.png")
    options = {"views": {"0.png": 3}, "augment": ["crop"]}
    grids, seen = features(tmp_path, images, **options)
    assert seen == 8
    assert len({tuple(grids.grid("0.png", seed).flatten().tolist()) for seed in range(3)}) == 3
    assert torch.equal(grids.grid("0.png", 0), features(tmp_path, images)[0].grid("0.png"))
    assert torch.equal(grids.grid("1.png", 5), grids.grid("1.png"))
    assert features(tmp_path, images, **{**options, "augment": ["crop", "flip"]})[1] == 2


def test_features_travel_to_another_process_as_a_path(tmp_path, images):
    grids, _ = features(tmp_path, images)
    grids.grid("1.png")
    assert len(pickle.dumps(grids)) < 2000
    assert red(pickle.loads(pickle.dumps(grids)).grid("1.png")) == 40


def test_images_that_cannot_be_read_are_named(tmp_path, images):
    (images / "3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"3\.png cannot be read"):
        features(tmp_path, images)
    (images / "3.png").unlink()
    with pytest.raises(UserError, match=r"no image at .*3\.png"):
        features(tmp_path, images)
