"""The built-in sample: the same files everywhere, captions that are right, splits that do not overlap."""

import contextlib
import csv
import io
import os
import random
import stat
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data import sample
from data.png import encode_png
from data.sample import (
    COLOURS,
    PLACES,
    SIDE,
    Group,
    Scene,
    describe,
    draw_if_missing,
    draw_sample,
    draw_scene,
    invent_scenes,
)
from utils import UserError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def captions_by_split(folder: Path) -> dict[str, dict[str, list[str]]]:
    splits = defaultdict(lambda: defaultdict(list))
    with open(folder / "captions.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            splits[row["split"]][row["image"]].append(row["caption"])
    return splits


def blobs(image: Image.Image) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per shape in an image: where its pixels are (P, 2), in units of the side, and their colours (P, 3)."""
    pixels = np.asarray(image).astype(int)
    shapes = (np.abs(pixels - pixels[0, 0]).max(axis=2) > 100).astype(np.uint8)
    mask = Image.fromarray(shapes).copy()  # without the copy Pillow cannot write to it
    found = []
    for y, x in np.argwhere(shapes):
        if mask.getpixel((int(x), int(y))) == 1:
            label = 2 + len(found)
            ImageDraw.floodfill(mask, (int(x), int(y)), label)
            found.append(np.argwhere(np.asarray(mask) == label))
    found = [places for places in found if len(places) > 5]  # the tip of a star can come off
    return [(places[:, ::-1] / SIDE, pixels[tuple(places.T)]) for places in found]


def colour_name(colours: np.ndarray) -> str:
    return min(COLOURS, key=lambda name: np.abs(np.median(colours, axis=0) - COLOURS[name]).sum())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "sample"
    draw_sample(folder, scenes=240)
    return folder


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        draw_sample(tmp_path / name, scenes=12, seed=seed)
    one, again, two = (contents(tmp_path / name) for name in ("one", "again", "two"))
    assert one == again
    assert one.keys() == two.keys()
    assert all(one[name] != two[name] for name in one)


def test_the_order_of_sets_and_dictionaries_of_another_process_changes_nothing(tmp_path):
    draw_sample(tmp_path / "here", scenes=12)
    code = "import sys; from data.sample import draw_sample; draw_sample(sys.argv[1], scenes=12)"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    root = Path(sample.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code, tmp_path / "there"], cwd=root, env=environment, check=True)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


def test_files_and_splits(folder):
    splits = captions_by_split(folder)
    assert {split: len(names) for split, names in splits.items()} == {
        "train": 200,
        "val": 20,
        "test": 20,
    }
    names = [name for by_image in splits.values() for name in by_image]
    assert names == [f"scene_{i:04d}.png" for i in range(1, 241)]
    assert sorted(path.name for path in (folder / "images").iterdir()) == names
    assert {path.name for path in folder.iterdir()} == {"captions.csv", "images"}
    with Image.open(folder / "images" / "scene_0001.png") as image:
        assert image.size == (SIDE, SIDE)


def test_a_file_holds_the_image_pixel_for_pixel():
    rng = random.Random(0)
    for scene in invent_scenes(10, rng):
        image = draw_scene(scene, rng)
        with Image.open(io.BytesIO(encode_png(image))) as read:
            np.testing.assert_array_equal(np.asarray(read.convert("RGB")), np.asarray(image))


def test_every_scene_has_five_captions_that_differ(folder):
    for by_image in captions_by_split(folder).values():
        for captions in by_image.values():
            assert len(captions) == len(set(captions)) == 5
            assert all(6 <= len(caption.split()) <= 15 for caption in captions)


def test_no_caption_of_val_or_test_occurs_elsewhere(folder):
    captions = [
        c for by_image in captions_by_split(folder).values() for own in by_image.values() for c in own
    ]
    assert len(set(captions)) == len(captions)


def test_val_and_test_use_only_words_of_train(folder):
    splits = captions_by_split(folder)
    words = {
        split: {word for captions in by_image.values() for caption in captions for word in caption.split()}
        for split, by_image in splits.items()
    }
    assert words["val"] | words["test"] <= words["train"]
    assert 50 <= len(words["train"]) <= 80


def test_captions_are_english():
    one, two = Group(1, "large", "red", "circle"), Group(2, "small", "blue", "star")
    assert describe(Scene((two,), "centre")) == [
        "two small blue stars in the centre",
        "there are two little blue stars in the middle",
        "the centre holds two small blue stars",
        "in the middle you can see two little blue stars",
        "two stars that are small and blue sit in the middle",
    ]
    assert describe(Scene((one,), "top left")) == [
        "a large red circle in the top left corner",
        "there is a big red circle at the top left",
        "the top left corner holds a large red circle",
        "at the top left you can see a big red circle",
        "a circle that is large and red sits at the top left",
    ]
    assert describe(Scene((one, two), "above")) == [
        "a large red circle above two small blue stars",
        "two small blue stars below a large red circle",
        "there is a big red circle over two little blue stars",
        "under a big red circle there are two little blue stars",
        "a large red circle with two small blue stars below it",
    ]
    assert describe(Scene((two, one), "left")) == [
        "two small blue stars to the left of a large red circle",
        "a large red circle to the right of two small blue stars",
        "there are two little blue stars on the left of a big red circle",
        "on the right of two little blue stars there is a big red circle",
        "two small blue stars with a large red circle to their right",
    ]


def test_two_groups_in_a_scene_differ_in_colour_or_shape():
    pairs = [scene.groups for scene in invent_scenes(5000, random.Random(1)) if len(scene.groups) == 2]
    assert len(pairs) > 2000
    assert all(first[2:] != second[2:] for first, second in pairs)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("colour", COLOURS)
def test_the_named_place_has_the_named_colour(place, colour):
    image = draw_scene(Scene((Group(1, "large", colour, "square"),), place), random.Random(3))
    x, y = (round(c * SIDE) for c in (PLACES[place].real, PLACES[place].imag))
    np.testing.assert_allclose(image.getpixel((x, y)), COLOURS[colour], atol=8)


def test_images_show_the_number_size_colour_and_relation_that_captions_tell():
    rng = random.Random(0)
    for scene in invent_scenes(200, rng):
        shapes = blobs(draw_scene(scene, rng))
        assert len(shapes) == sum(group.number for group in scene.groups), scene
        axis = {"left": 0, "above": 1}.get(scene.where)
        if axis is None:
            centre = np.mean([places.mean(axis=0) for places, _ in shapes], axis=0)
            place = min(PLACES, key=lambda name: abs(complex(*centre) - PLACES[name]))
            assert place == scene.where
            halves = [shapes]
        else:
            # Each group keeps to its half.
            halves = [
                [shape for shape in shapes if shape[0][:, axis].max() < 0.5],
                [shape for shape in shapes if shape[0][:, axis].min() >= 0.5],
            ]
        for group, half in zip(scene.groups, halves, strict=True):
            assert len(half) == group.number, scene
            assert {colour_name(colours) for _, colours in half} == {group.colour}
            sizes = {"large" if len(places) > 190 else "small" for places, _ in half}
            assert sizes == {group.size}, scene


def test_shapes_look_like_their_names():
    def filled(shape: str) -> float:
        ((places, _),) = blobs(
            draw_scene(Scene((Group(1, "large", "black", shape),), "centre"), random.Random(0))
        )
        return len(places) / SIDE**2 / np.prod(np.ptp(places, axis=0) + 1 / SIDE)

    # The share of the bounding box that is filled: a circle's is pi / 4.
    assert filled("square") > 0.85 > filled("circle") > 0.7
    assert 0.6 > filled("triangle") > 0.45 > filled("star") > 0.3


def test_an_interrupted_drawing_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(image):
        # By now there is something to leave behind.
        assert len(list(tmp_path.rglob("captions.csv"))) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "encode_png", interrupt)
    with pytest.raises(KeyboardInterrupt):
        draw_sample(tmp_path / "sample", scenes=12)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def few_scenes(monkeypatch, tmp_path):
    """The current folder is empty, and the built-in sample has 12 scenes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(draw_sample, "__defaults__", (12, 0))


def test_the_sample_is_drawn_once_and_only_for_its_own_captions_file(few_scenes):
    for other in ("archive/captions.csv", "archive/sample/other.csv"):
        draw_if_missing([Path(other)])
    assert not Path("archive").exists()
    draw_if_missing([Path("archive/sample/captions.csv")])
    drawn = contents(Path("archive/sample"))
    assert len(drawn) == 13
    Path("archive/sample/captions.csv").write_text("mine")
    draw_if_missing([Path("archive/sample/captions.csv")])
    assert contents(Path("archive/sample")) == {**drawn, "captions.csv": b"mine"}


def test_a_folder_of_the_user_is_not_taken_for_the_sample(few_scenes):
    Path("archive/sample/images").mkdir(parents=True)
    Path("archive/sample/images/scene_0001.png").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        draw_if_missing([Path("archive/sample/captions.csv")])
    assert contents(Path("archive/sample")) == {"images/scene_0001.png": b"mine"}


def test_what_a_killed_drawing_left_is_removed_and_not_taken_as_complete(few_scenes, monkeypatch):
    if (child := os.fork()) == 0:
        monkeypatch.setattr(sample, "encode_png", lambda image: os._exit(9))
        draw_if_missing([Path("archive/sample/captions.csv")])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not Path("archive/sample").exists()
    assert len(list(Path("archive").glob(".sample-*"))) == 1
    draw_if_missing([Path("archive/sample/captions.csv")])
    assert len(contents(Path("archive/sample"))) == 13
    assert not list(Path("archive").glob(".sample-*"))


def test_a_drawing_waits_for_another_one_and_finds_what_it_drew(few_scenes, monkeypatch):
    @contextlib.contextmanager
    def locked(path, busy, wait):
        assert wait
        draw_sample(Path("archive/sample"))  # by the process that had the lock before
        yield

    monkeypatch.setattr(sample, "locked", locked)
    draw_if_missing([Path("archive/sample/captions.csv")])
    assert len(contents(Path("archive/sample"))) == 13


def test_a_disk_that_cannot_hold_the_sample_is_named_before_it_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("files.shutil.disk_usage", lambda folder: SimpleNamespace(free=100))
    with pytest.raises(UserError, match="not enough space for the sample dataset"):
        draw_sample(tmp_path / "sample")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_not_overwritten(tmp_path):
    (tmp_path / "captions.csv").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        draw_sample(tmp_path, scenes=12)
    assert contents(tmp_path) == {"captions.csv": b"mine"}


def test_an_empty_folder_is_filled_and_others_may_read_it(tmp_path):
    (tmp_path / "sample").mkdir()
    (tmp_path / "other").mkdir()
    draw_sample(tmp_path / "sample", scenes=12)
    assert (tmp_path / "sample" / "captions.csv").exists()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("sample", "other")}
    assert len(modes) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "sample"):
        with pytest.raises(UserError, match="cannot draw the sample dataset into"):
            draw_sample(folder, scenes=12)


@pytest.mark.parametrize("scenes", [0, 2, 60_000])
def test_an_impossible_number_of_scenes_is_refused(tmp_path, scenes):
    with pytest.raises(ValueError, match=str(scenes)):
        draw_sample(tmp_path / "sample", scenes=scenes)
    assert list(tmp_path.iterdir()) == []
