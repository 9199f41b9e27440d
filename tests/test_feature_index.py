"""A feature store gives back what was computed, whatever has happened to its files."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.features import FeatureStore
from data.images import ImageFolder
from data.loading import read_ahead
from data.transforms import ImageTransform
from utils import UserError

try:
    import resource
except ImportError:  # Windows
    resource = None

NAMES = [f"{i}.png" for i in range(6)]
FILES = ("index.jsonl", "grids.f16")
TRANSFORM = ImageTransform(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of images, and a cache with their features."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "images").mkdir()
    for i, name in enumerate(NAMES):
        Image.new("RGB", (10, 10), (40 * i, 0, 0)).save(folder / "images" / name)
    compute(folder / "images", folder / "cache")
    return folder / "images", folder / "cache"


def compute(images: Path, cache: Path, names=NAMES, cells=1):
    """The grids, of `cells` times the mean colour, and how many images were encoded for them."""
    counts = [0]

    def encode(pixels):
        counts.append(len(pixels))
        return (pixels / 255).mean(dim=(2, 3)).unsqueeze(1).expand(-1, cells, -1)

    store = FeatureStore(cache, {"encoder": 1}, encode, ImageFolder(images), TRANSFORM, batch_size=1)
    return store.grids(dict.fromkeys(names, 1)), sum(counts)


def reds(grids) -> list[int]:
    return reds_of([grids.grid(name) for name in NAMES])


def reds_of(grids) -> list[int]:
    return [round(float(grid[0, 0]) * 255) for grid in grids]


RIGHT = [0, 40, 80, 120, 160, 200]


def store_of(cache: Path) -> Path:
    [path] = (path for path in cache.iterdir() if ".damaged" not in path.name)
    return path


def copy_of(made, folder: Path) -> tuple[Path, Path, Path]:
    """The images, a new copy of the cache, and the store in it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made[1], folder)
    return made[0], folder, store_of(folder)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_a_store_that_a_kill_has_cut_off_anywhere_continues(made, tmp_path_factory, data):
    images, cache, store = copy_of(made, tmp_path_factory.getbasetemp() / "cut")
    index = (store / "index.jsonl").read_bytes()
    kept = index[: data.draw(st.integers(0, len(index)))]
    named = max(kept.count(b"\n") - 1, 0)
    (store / "index.jsonl").write_bytes(kept)
    os.truncate(store / "grids.f16", data.draw(st.integers(6 * named, 6 * 6)))
    grids, count = compute(images, cache)
    assert reds(grids) == RIGHT
    assert count == 6 - named
    assert not list(cache.glob("*.damaged-*"))
    assert (store / "grids.f16").stat().st_size == 6 * 6  # nothing that no line names
    assert compute(images, cache)[1] == 0


@given(st.sampled_from(FILES), st.integers(0, 10**6), st.integers(1, 255))
@settings(max_examples=50, deadline=None)
def test_a_changed_byte_never_gives_other_features(made, tmp_path_factory, file, at, change):
    images, cache, store = copy_of(made, tmp_path_factory.getbasetemp() / "changed")
    content = bytearray((store / file).read_bytes())
    content[at % len(content)] ^= change
    (store / file).write_bytes(content)
    try:
        found = reds(compute(images, cache)[0])
    except UserError:  # found while a row was read, so the next run computes anew
        found = reds(compute(images, cache)[0])
    assert found == RIGHT


def test_rows_are_on_the_disk_before_they_are_named(made, tmp_path, monkeypatch):
    """A power cut takes what was not flushed from `grids.f16`, and anything or nothing from the index."""
    flushed, cuts = b"", []
    flush = os.fsync

    def fsync(file):
        nonlocal flushed
        flush(file)
        if hasattr(file, "name"):  # not a folder
            store = Path(file.name).parent
            cuts.append((flushed, (store / "index.jsonl").read_bytes()))
            if Path(file.name).name == "grids.f16":
                flushed = (store / "grids.f16").read_bytes()
                cuts.append((flushed, (store / "index.jsonl").read_bytes()))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr("data.features.SAVE_EVERY", 2)
    compute(made[0], tmp_path / "cache")
    monkeypatch.undo()
    assert len(cuts) >= 9  # three times rows and names
    counts = set()
    for rows, index in cuts:
        images, cache, store = copy_of(made, tmp_path / "cut")
        (store / "grids.f16").write_bytes(rows)
        (store / "index.jsonl").write_bytes(index)
        grids, count = compute(images, cache)
        assert reds(grids) == RIGHT
        assert not list(cache.glob("*.damaged-*"))
        counts.add(count)
    assert counts == {6, 4, 2, 0}


def test_an_index_ahead_of_its_rows_is_noticed(made, tmp_path, capsys):
    """As a power cut left the stores of earlier versions: the next run gave the lost rows to other images."""
    images, cache, store = copy_of(made, tmp_path / "cache")
    os.truncate(store / "grids.f16", 6 * 3)
    Image.new("RGB", (10, 10), (9, 0, 0)).save(images / "new.png")
    grids, count = compute(images, cache, [*NAMES, "new.png"])
    assert count == 7
    assert reds(grids) == RIGHT
    [line] = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert "grids.f16 is shorter than index.jsonl says; it is computed anew" in line
    assert f"{store.name}.damaged-1" in line
    assert {path.name for path in (cache / f"{store.name}.damaged-1").iterdir()} == set(FILES)


LINES = {
    "no JSON": b"\x00\x00\x00\n",
    "another row": b'["0.png", "plain", 5, 1, 1, 1, 1]\n',
    "a text as row": b'["0.png", "plain", "6", 1, 1, 1, 1]\n',
    "a truth value": b'["0.png", "plain", 6, true, 1, 1, 1]\n',
    "a large checksum": b'["0.png", "plain", 6, 1, 1, 1, 4294967296]\n',
    "a value too many": b'["0.png", "plain", 6, 1, 1, 1, 1, 1]\n',
    "deep nesting": b"[" * 100_000 + b"\n",
    "a long number": b'["0.png", "plain", 6, 1, 1, 1, ' + b"9" * 5000 + b"]\n",
    "a second header": b'{"format": 2, "shape": [1, 3]}\n',
}
HEADERS = {
    "no JSON": b"\x00\n",
    "another format": b'{"format": 3, "shape": [1, 3]}\n',
    "no shape": b'{"format": 2}\n',
    "an empty shape": b'{"format": 2, "shape": []}\n',
    "a huge shape": b'{"format": 2, "shape": [1000000000, 1000000000]}\n',
    "a negative shape": b'{"format": 2, "shape": [-1, -3]}\n',
    "a row": b'["0.png", "plain", 0, 1, 1, 1, 1]\n',
}


@pytest.mark.parametrize("part", ["header", "last line"])
def test_a_line_that_was_not_written_like_this_is_noticed(made, tmp_path, capsys, part):
    for i, line in enumerate((HEADERS if part == "header" else LINES).values(), start=1):
        images, cache, store = copy_of(made, tmp_path / str(i))
        lines = (store / "index.jsonl").read_bytes().splitlines(keepends=True)
        (store / "index.jsonl").write_bytes(
            b"".join([line, *lines[1:]] if part == "header" else [*lines, line])
        )
        grids, count = compute(images, cache)
        # Nothing is missing in the second case if the line is only read over.
        assert (reds(grids), count) == (RIGHT, 6)
        assert "is damaged: " in capsys.readouterr().out


def test_damage_that_training_finds_ends_it_and_the_next_run_computes_anew(made, tmp_path):
    images, cache, store = copy_of(made, tmp_path / "cache")
    grids, _ = compute(images, cache)
    other, _ = compute(images, cache)  # of a run at the same time
    with open(store / "grids.f16", "r+b") as file:
        file.seek(6 * 2 + 1)
        file.write(b"\xff")
    for training in (grids, other):
        assert training.grid("1.png") is not None
    with pytest.raises(UserError, match=r"row 2 of grids\.f16 .*damaged-1.*run again .*--resume"):
        grids.grid("2.png")
    repaired, count = compute(images, cache)
    assert count == 6
    with pytest.raises(UserError, match=r"was damaged.*run again"):
        other.grid("2.png")
    assert reds(repaired) == reds(compute(images, cache)[0]) == RIGHT  # `other` has not set it aside
    assert not list(cache.glob("*.damaged-2"))


def test_damage_that_is_read_ahead_is_raised_at_the_turn_of_its_batch(made, tmp_path):
    images, cache, store = copy_of(made, tmp_path / "cache")
    grids, _ = compute(images, cache)
    with open(store / "grids.f16", "r+b") as file:
        file.seek(6 * 2 + 1)
        file.write(b"\xff")
    batches = read_ahead(grids.read, [[(name, 0)] for name in NAMES])
    assert [reds_of(next(batches)), reds_of(next(batches))] == [[0], [40]]
    with pytest.raises(UserError, match=r"row 2 of grids\.f16 .*damaged-1.*run again .*--resume"):
        next(batches)
    assert compute(images, cache)[1] == 6


def test_rows_of_another_shape_are_damage(made, tmp_path):
    images, cache, store = copy_of(made, tmp_path / "cache")
    index = (store / "index.jsonl").read_text()
    (store / "index.jsonl").write_text(index.replace('"shape": [1, 3]', '"shape": [1, 2]'))
    Image.new("RGB", (10, 10), (9, 0, 0)).save(images / "new.png")
    with pytest.raises(UserError, match=r"shape \(1, 2\), not \(1, 3\).*run again"):
        compute(images, cache, [*NAMES, "new.png"])
    assert compute(images, cache)[1] == 6


def test_damaged_stores_do_not_replace_each_other(made, tmp_path):
    images, cache, store = copy_of(made, tmp_path / "cache")
    for i in (1, 2):
        (store / "grids.f16").write_bytes(b"")
        assert compute(images, cache)[1] == 6
        assert (cache / f"{store.name}.damaged-{i}").is_dir()


def test_a_store_of_an_earlier_format_is_computed_anew_with_a_line(made, tmp_path, capsys):
    images, cache, store = copy_of(made, tmp_path / "cache")
    (store / "index.jsonl").unlink()
    (store / "index.json").write_text('{"shape": [1, 3], "rows": []}')
    (store / "grids.f16").write_bytes(torch.full((18,), 7.0).half().numpy().tobytes())
    assert reds(compute(images, cache)[0]) == RIGHT
    assert "has an earlier format; it is computed anew" in capsys.readouterr().out
    assert compute(images, cache)[1] == 0
    assert capsys.readouterr().out == ""
    assert not (store / "index.json").exists()


def test_a_full_disk_is_said_before_anything_is_computed_for_it(made, tmp_path, monkeypatch):
    monkeypatch.setattr("files.free_space", lambda folder: 100)
    with pytest.raises(UserError, match=r"not enough space for the features of 6 images: \d+ bytes needed"):
        compute(made[0], tmp_path / "cache")
    monkeypatch.undo()
    assert compute(made[0], tmp_path / "cache")[1] == 6


@pytest.mark.skipif(resource is None, reason="Windows has no limit of the size of files")
@pytest.mark.parametrize(("file", "cells"), [("grids.f16", 100), ("index.jsonl", 1)])
def test_a_disk_that_fills_up_leaves_a_whole_store(made, tmp_path, monkeypatch, file, cells):
    """The system refuses to let files grow any further."""
    monkeypatch.setattr("data.features.SAVE_EVERY", 1)
    images, cache = made[0], tmp_path / "cache"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1300 if cells > 1 else 400, before[1]))
    try:
        with pytest.raises(UserError, match=rf"cannot write .*{file}: File too large for .*; make room"):
            compute(images, cache, cells=cells)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    grids, count = compute(images, cache, cells=cells)
    assert reds(grids) == RIGHT
    assert 0 < count < 6
    assert not list(cache.glob("*.damaged-*"))


def test_rows_that_the_disk_lost_are_not_named(made, tmp_path, monkeypatch):
    """After an error the system reports no second one: what a later flush says means nothing."""
    failures = [OSError(errno.EIO, "Input/output error")]
    flush = os.fsync

    def fsync(file):
        if getattr(file, "name", "") == str(store / "grids.f16") and failures:
            raise failures.pop()
        flush(file)

    store = tmp_path / "cache" / store_of(made[1]).name
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match=r"grids\.f16.*Input/output error"):
        compute(made[0], tmp_path / "cache")
    assert not failures
    assert (store / "index.jsonl").read_bytes() == b""
    assert compute(made[0], tmp_path / "cache")[1] == 6


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_in_a_store_is_set_aside_and_not_waited_for(made, tmp_path, capsys, name):
    images, cache, store = copy_of(made, tmp_path / "cache")
    (store / name).unlink()
    os.mkfifo(store / name)
    grids, count = compute(images, cache)
    assert (reds(grids), count) == (RIGHT, len(NAMES))
    assert f"is damaged: {name} is not a file" in capsys.readouterr().out
