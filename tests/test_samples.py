"""samples.png: the same few validation images after each epoch."""

import pytest

from data.images import ImageFolder
from tests.helpers import write_dataset
from training.samples import Samples
from utils import UserError

REFERENCES = {f"{i:02}.png": [f"first of {i}", f"second of {i}"] for i in range(16, 24)}


def make(tmp_path) -> Samples:
    write_dataset(tmp_path / "data")
    return Samples(ImageFolder(tmp_path / "data" / "images"), REFERENCES)


def test_the_images_are_spread_evenly_and_each_has_its_first_reference(tmp_path):
    samples = make(tmp_path)
    assert samples.names == ["16.png", "17.png", "18.png", "20.png", "21.png", "22.png"]
    assert samples.references == [f"first of {i}" for i in (16, 17, 18, 20, 21, 22)]
    few = Samples(ImageFolder(tmp_path), {"a.png": ["a dog"], "b.png": ["a cat"]})
    assert few.names == ["a.png", "b.png"]


def test_the_history_has_the_captions_of_these_images_by_epoch(tmp_path):
    samples = make(tmp_path)
    samples.add(3, 0.25, {name: f"caption of {name}" for name in REFERENCES})
    captions = {name: f"caption of {name}" for name in samples.names}
    assert samples.history == [{"epoch": 3, "CIDEr": 0.25, "captions": captions}]


def test_the_sheet_is_written_and_an_image_that_has_gone_is_named(tmp_path):
    samples = make(tmp_path)
    samples.add(1, 0.5, dict.fromkeys(REFERENCES, "a dog"))
    sheet = samples.draw(tmp_path / "samples.png")
    assert (tmp_path / "samples.png").stat().st_size > 1000
    assert sheet.width > sheet.height / 4
    (tmp_path / "data" / "images" / "18.png").unlink()
    with pytest.raises(UserError, match=r"cannot draw .*samples\.png: .*18\.png"):
        samples.draw(tmp_path / "samples.png")
