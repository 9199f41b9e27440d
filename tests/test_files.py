"""Files are written whole or not at all, and old checkpoints are read."""

import os

import pytest
import torch

from captioning import Captioner
from data.transforms import ImageTransform
from data.vocab import SPECIAL, Vocabulary
from files import load_checkpoint, newest_checkpoint, replacing, save_checkpoint
from models.model import build_model
from tests.helpers import CPU, IMAGES, tiny
from utils import UserError

WORDS = [*SPECIAL, "a", "dog"]


def interrupted_write(path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "file"
    with replacing(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(path)
    assert path.read_text() == "old"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_the_newest_checkpoint_is_the_one_written_last(tmp_path):
    with pytest.raises(UserError, match="no checkpoint under"):
        newest_checkpoint(tmp_path)
    for name in ("b", "a"):
        save_checkpoint(tmp_path / name / "best.pth", {"format": 2})
    os.utime(tmp_path / "b" / "best.pth", (1000, 1000))
    assert newest_checkpoint(tmp_path) == tmp_path / "a" / "best.pth"


def test_a_checkpoint_of_format_1_is_read(tmp_path):
    config = tiny(tmp_path, decoder={"kind": "lstm"})
    transform = ImageTransform(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    captioner = Captioner(build_model(config, len(WORDS)).eval(), Vocabulary(WORDS), transform, config, CPU)
    new = captioner.checkpoint()
    old = {key.replace("project_image", "picture"): value for key, value in new["model"].items()}
    assert old.keys() != new["model"].keys()
    average = {f"module.{key.removeprefix('decoder.')}": value for key, value in old.items()}
    save_checkpoint(
        tmp_path / "old.pth", {**new, "format": 1, "model": old, "training": {"average": average}}
    )
    images, options = IMAGES[:2], captioner.options(beam=2)
    found = Captioner.load(tmp_path / "old.pth", compute=CPU).search(images, options)
    assert torch.equal(found.tokens, captioner.search(images, options).tokens)
    average = load_checkpoint(tmp_path / "old.pth")["training"]["average"]
    assert "module.project_image.0.weight" in average
    assert not any("picture" in key for key in average)
