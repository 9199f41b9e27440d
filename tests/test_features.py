"""Cached features are what the encoder would give now."""

from startup import Terminated

import hashlib
import json
import os
import pickle
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from data.feature_index import checksum
from data.features import FeatureStore
from data.held_features import HeldGrids, held_if_they_fit
from data.images import ImageFolder
from data.transforms import ImageTransform
from utils import UserError

TRANSFORM = ImageTransform(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
NAMES = [f"{i}.png" for i in range(6)]


class Encoder:
    """The mean colour as one cell; counts the images it encodes."""

    def __init__(self):
        self.count = 0

    def __call__(self, pixels):
        self.count += len(pixels)
        return (pixels / 255).mean(dim=(2, 3)).unsqueeze(1)


@pytest.fixture
def image_folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, name in enumerate(NAMES):
        Image.new("RGB", (10, 10), (40 * i, 0, 0)).save(folder / name)
    return folder


def features(tmp_path, views=NAMES, encode=None, **options):
    """The grids, and how many images were encoded for them."""
    store = {"identity": {"encoder": 1}, "transform": TRANSFORM, "batch_size": 2, **options}
    encode = encode or Encoder()
    grids = FeatureStore(
        cache_folder=tmp_path / "cache", images=ImageFolder(tmp_path / "images"), encode=encode, **store
    ).grids(views if isinstance(views, dict) else dict.fromkeys(views, 1))
    return grids, encode.count


class Full(Encoder):
    """The largest number that float16 has, in every cell."""

    def __call__(self, pixels):
        return torch.full_like(super().__call__(pixels), 65504.0)


def red(grid) -> int:
    return round(float(grid[0, 0]) * 255)


def test_features_are_those_of_the_named_image(tmp_path, image_folder):
    grids, count = features(tmp_path)
    assert count == 6
    assert [red(grids.grid(name)) for name in NAMES] == [0, 40, 80, 120, 160, 200]
    assert grids.grid("1.png").shape == (1, 3)


def test_each_image_is_computed_once(tmp_path, image_folder):
    features(tmp_path, NAMES[:4])
    grids, count = features(tmp_path)
    assert count == 2
    assert [red(grids.grid(name)) for name in NAMES] == [0, 40, 80, 120, 160, 200]
    assert features(tmp_path)[1] == 0


def test_a_changed_image_is_noticed(tmp_path, image_folder):
    features(tmp_path)
    Image.new("RGB", (10, 10), (7, 0, 0)).save(image_folder / "2.png")
    grids, count = features(tmp_path)
    assert count == 1
    assert red(grids.grid("2.png")) == 7
    assert red(grids.grid("3.png")) == 120


def test_an_image_changed_behind_its_date_is_noticed(tmp_path, image_folder):
    features(tmp_path)
    before = (image_folder / "2.png").stat()
    Image.new("RGB", (10, 10), (81, 0, 0)).save(image_folder / "2.png")
    os.utime(image_folder / "2.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert red(features(tmp_path)[0].grid("2.png")) == 81


@pytest.mark.parametrize(
    "change", [{"identity": {"encoder": 2}}, {"transform": ImageTransform(9, (0.0,) * 3, (1.0,) * 3)}]
)
def test_another_encoder_or_transform_is_another_store(tmp_path, image_folder, change):
    features(tmp_path)
    assert features(tmp_path, **change)[1] == 6
    assert features(tmp_path)[1] == 0


def test_an_interrupted_pass_leaves_a_store_that_is_right(tmp_path, image_folder):
    def fail(pixels):
        raise KeyboardInterrupt

    features(tmp_path, NAMES[:2])
    with pytest.raises(KeyboardInterrupt):
        features(tmp_path, encode=fail)
    [data] = (tmp_path / "cache").glob("*/grids.f16")
    with open(data, "ab") as file:
        file.write(b"abc")  # half a row
    grids, count = features(tmp_path)
    assert count == 4
    assert [red(grids.grid(name)) for name in NAMES] == [0, 40, 80, 120, 160, 200]


class Ending(Encoder):
    """Calls `end` when 70 images are encoded."""

    def __init__(self, end):
        super().__init__()
        self.end = end

    def __call__(self, pixels):
        if self.count == 70:
            self.end()
        return super().__call__(pixels)


@pytest.fixture
def many_names(image_folder):
    names = [f"more/{i}.png" for i in range(80)]
    (image_folder / "more").mkdir()
    for name in names:
        (image_folder / name).write_bytes((image_folder / "1.png").read_bytes())
    return names


@pytest.mark.parametrize("ending", [KeyboardInterrupt, Terminated])
def test_a_pass_ended_by_a_signal_keeps_all_that_was_computed(tmp_path, many_names, ending):
    def end():
        raise ending

    with pytest.raises(ending):
        features(tmp_path, many_names, Ending(end), batch_size=1)
    assert features(tmp_path, many_names, batch_size=1)[1] == 10


@pytest.mark.skipif(os.name == "nt", reason="Windows has no fork")
def test_a_killed_pass_continues_where_its_index_was_last_written(tmp_path, many_names):
    child = os.fork()
    if not child:
        kill = Ending(lambda: os.kill(os.getpid(), signal.SIGKILL))
        features(tmp_path, many_names, kill, batch_size=1)
    os.waitpid(child, 0)
    grids, count = features(tmp_path, many_names, batch_size=1)
    assert 10 < count < 80
    assert {red(grids.grid(name)) for name in many_names} == {40}


def test_a_run_that_misses_nothing_does_not_wait_for_another_one(tmp_path, image_folder, monkeypatch):
    features(tmp_path)
    monkeypatch.setattr("data.features.locked", lambda *_, **__: pytest.fail("waits for the lock"))
    assert features(tmp_path)[1] == 0


def test_views_are_drawn_by_the_seed_and_the_first_is_plain(tmp_path, image_folder):
    noise = Image.effect_noise((30, 30), 90).convert("RGB")
    noise.save(image_folder / "0.png")
    views = {**dict.fromkeys(NAMES, 1), "0.png": 3}
    grids, count = features(tmp_path, views, augment=["crop"])
    assert count == 8
    assert len({tuple(grids.grid("0.png", seed).flatten().tolist()) for seed in range(3)}) == 3
    assert torch.equal(grids.grid("0.png", 0), features(tmp_path)[0].grid("0.png"))
    assert torch.equal(grids.grid("1.png", 5), grids.grid("1.png"))
    assert features(tmp_path, views, augment=["crop", "flip"])[1] == 2


def test_equal_images_have_different_views(tmp_path, image_folder):
    Image.effect_noise((30, 30), 90).convert("RGB").save(image_folder / "0.png")
    (image_folder / "1.png").write_bytes((image_folder / "0.png").read_bytes())
    grids, _ = features(tmp_path, dict.fromkeys(NAMES[:2], 2), augment=["crop"])
    assert torch.equal(grids.grid("0.png"), grids.grid("1.png"))
    assert not torch.equal(grids.grid("0.png", 1), grids.grid("1.png", 1))


def test_a_store_on_disk_stays_readable(tmp_path, image_folder):
    """Its name and its files as format 2 has them, so that nobody computes anew."""
    identity = {
        "encoder": 1,
        "transform": {"size": 8, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
        "images": str(image_folder.resolve()),
    }
    text = json.dumps(identity, sort_keys=True)
    store = tmp_path / "cache" / hashlib.sha256(text.encode()).hexdigest()[:16]
    store.mkdir(parents=True)
    content = np.arange(9, dtype=np.float16).reshape(3, 1, 3)
    (store / "grids.f16").write_bytes(content.tobytes())
    views = [("1.png", "plain"), ("0.png", "crop/1"), ("0.png", "plain")]
    rows = [
        [name, kind, row, *ImageFolder(image_folder).fingerprint(name), checksum(name, content[row])]
        for row, (name, kind) in enumerate(views)
    ]
    lines = [{"format": 2, "shape": [1, 3]}, *rows]
    (store / "index.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), "ascii")

    grids, count = features(tmp_path, {"0.png": 2, "1.png": 1}, augment=["crop"])
    assert count == 0
    assert grids.grid("0.png", 0).tolist() == [[6, 7, 8]]
    assert grids.grid("0.png", 1).tolist() == [[3, 4, 5]]
    assert grids.grid("1.png").tolist() == [[0, 1, 2]]

    features(tmp_path)  # appends the others
    written = [json.loads(line) for line in (store / "index.jsonl").read_text("ascii").splitlines()]
    assert written[:4] == lines
    assert [row[:3] for row in written[4:]] == [[f"{i}.png", "plain", i + 1] for i in (2, 3, 4, 5)]


def test_an_image_may_have_any_name(tmp_path, image_folder):
    names = ['hé\n"lo\u2028.png', os.fsdecode(b"caf\xe9.png"), "\\u0041\x1b.png", "x" * 251 + ".png"]
    for i, name in enumerate(names):
        (image_folder / name).write_bytes((image_folder / f"{i}.png").read_bytes())
    features(tmp_path, dict.fromkeys(names, 2), augment=["crop"])
    grids, count = features(tmp_path, dict.fromkeys(names, 2), augment=["crop"])
    assert count == 0
    assert [red(grids.grid(name)) for name in names] == [0, 40, 80, 120]


def test_features_that_are_not_finite_are_not_kept(tmp_path, image_folder):
    class Overflowing(Encoder):
        def __call__(self, pixels):
            return super().__call__(pixels) * 1e6

    with pytest.raises(UserError, match=r"images such as 0\.png are not finite.*features\.cache=false"):
        features(tmp_path, encode=Overflowing())
    assert features(tmp_path)[1] == 6


def test_the_largest_features_of_float16_are_kept(tmp_path, image_folder):
    grids, _ = features(tmp_path, encode=Full())
    assert (grids.grid("1.png") == 65504).all()


def test_a_batch_of_grids_is_one_array_in_the_order_asked_for(tmp_path, image_folder):
    Image.effect_noise((30, 30), 90).convert("RGB").save(image_folder / "0.png")
    grids, _ = features(tmp_path, {**dict.fromkeys(NAMES, 1), "0.png": 2}, augment=["crop"])
    views = [("3.png", 0), ("0.png", 1), ("1.png", 7), ("0.png", 0), ("3.png", 0)]
    batch = grids.read(views)
    assert (batch.shape, batch.dtype) == ((5, 1, 3), torch.float16)
    assert torch.equal(batch, torch.stack([grids.grid(name, seed) for name, seed in views]))
    assert not torch.equal(batch[1], batch[3])


@pytest.mark.parametrize("at_once", [2, 100])
def test_grids_on_a_device_are_those_of_the_file(tmp_path, image_folder, monkeypatch, at_once):
    monkeypatch.setattr("data.held_features.AT_ONCE", at_once)
    Image.effect_noise((30, 30), 90).convert("RGB").save(image_folder / "1.png")
    grids, _ = features(tmp_path, {**dict.fromkeys(NAMES, 1), "1.png": 3, "4.png": 2}, augment=["crop"])
    held = HeldGrids(grids, torch.device("cpu"))
    views = [(name, seed) for seed in (5, 0, 1, 2**48 - 1) for name in reversed(NAMES)]
    expected = grids.read(views)
    grids.path.unlink()
    assert torch.equal(held.read(views), expected)
    assert torch.equal(held.grid("1.png", 2), expected[[views.index(("1.png", 5))]][0])  # 5 is 2 of 3 views


def test_grids_lie_on_a_gpu_if_they_take_half_of_its_free_memory_or_less(tmp_path, image_folder):
    grids, _ = features(tmp_path, {**dict.fromkeys(NAMES, 1), "0.png": 3})
    size = 8 * 3 * 2  # bytes of 8 grids of one cell
    for free, is_held in ((0, False), (2 * size - 1, False), (2 * size, True)):
        gpu = SimpleNamespace(device=torch.device("cpu"), free_gpu_memory=lambda free=free: free)
        assert isinstance(held_if_they_fit(grids, gpu), HeldGrids) == is_held


@pytest.mark.skipif(os.name == "nt", reason="Windows has no reads at a position")
def test_reading_moves_no_position_that_threads_and_forks_would_share(tmp_path, image_folder):
    grids, _ = features(tmp_path)
    grids.read([("2.png", 0), ("4.png", 0)])
    assert grids.file.tell() == 0


@pytest.mark.cuda
def test_grids_can_be_read_into_page_locked_memory(tmp_path, image_folder):
    grids, _ = features(tmp_path)
    pinned = grids.read([("2.png", 0), ("4.png", 0)], pin_memory=True)
    assert pinned.is_pinned()
    assert torch.equal(pinned, grids.read([("2.png", 0), ("4.png", 0)]))


def test_features_travel_to_another_process_as_a_path(tmp_path, image_folder):
    grids, _ = features(tmp_path)
    grids.grid("1.png")
    assert len(pickle.dumps(grids)) < 2000
    assert red(pickle.loads(pickle.dumps(grids)).grid("1.png")) == 40


def test_images_that_cannot_be_read_are_named(tmp_path, image_folder):
    (image_folder / "3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"3\.png cannot be read"):
        features(tmp_path)
    (image_folder / "3.png").unlink()
    with pytest.raises(UserError, match=r"no image at .*3\.png"):
        features(tmp_path)
    for impossible in ("\0.png", "\ud800.png", "x" * 300):
        with pytest.raises(UserError, match=r"no image at"):
            features(tmp_path, [impossible])
