"""The model that comes with the project, and packing a checkpoint to pass it on."""

import hashlib
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from captioning import Captioner
from data.sample import draw_sample
from data.transforms import ImageTransform
from data.vocab import SPECIAL, Vocabulary
from models.checkpoint import PRETRAINED, load_checkpoint, newest_checkpoint, save_checkpoint
from models.model import build_model
from models.pack import packed
from tests.helpers import CPU, invent_statistics, tiny
from tests.script_helpers import ROOT, run
from utils import UserError

WORDS = [*SPECIAL, "a", "dog", "cat", "runs"]
NOISE = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
in_the_clone = pytest.mark.skipif(not PRETRAINED.exists(), reason=f"there is no {PRETRAINED.name}")


@pytest.fixture
def trained_model(tmp_path: Path) -> Path:
    """A checkpoint with the state of a training."""
    config = tiny(tmp_path, search={"beam": 3, "max_length": 5})
    transform = ImageTransform(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    model = build_model(config, len(WORDS)).eval()
    invent_statistics(model)
    captioner = Captioner(model, Vocabulary(WORDS), transform, config, CPU)
    save_checkpoint(tmp_path / "best.pth", {**captioner.checkpoint(), "training": {"epoch": 1}})
    return tmp_path / "best.pth"


def pack(*arguments) -> None:
    """`python -m models.pack`."""
    before, sys.argv = sys.argv, ["models/pack.py", *map(str, arguments)]
    try:
        runpy.run_path(str(ROOT / "models/pack.py"))["main"]()
    finally:
        sys.argv = before


def test_a_packed_model_has_half_the_size_and_captions_like_the_whole_one(trained_model, tmp_path, capsys):
    small = tmp_path / "small.pth"
    pack(trained_model, small)
    printed = capsys.readouterr().out
    assert hashlib.sha256(small.read_bytes()).hexdigest() in printed
    assert small.stat().st_size < 0.6 * trained_model.stat().st_size
    whole, half = (load_checkpoint(path) for path in (trained_model, small))
    assert half.training is None
    assert half.config == whole.config
    assert half.encoder_digest != whole.encoder_digest  # that of the rounded weights
    for name, tensor in half.model.items():
        assert tensor.dtype == (torch.float16 if tensor.dim() > 1 else whole.model[name].dtype)
        assert torch.equal(tensor, whole.model[name].to(tensor.dtype))
    [expected], [found] = (Captioner.load(path, compute=CPU)([NOISE]) for path in (trained_model, small))
    assert found.caption == expected.caption
    assert found.log_prob == pytest.approx(expected.log_prob, rel=1e-2)


def test_weights_that_are_shared_are_packed_once(trained_model):
    model = packed(load_checkpoint(trained_model), [])["model"]
    assert model["decoder.output.score.weight"].data_ptr() == model["decoder.embedding.weight"].data_ptr()


def test_packing_changes_the_default_of_the_search_and_replaces_nothing(trained_model, tmp_path):
    small = tmp_path / "small.pth"
    pack(trained_model, small, "search.beam=2")
    assert load_checkpoint(small).config.search.beam == 2
    with pytest.raises(UserError, match=r"small\.pth exists; move it"):
        pack(trained_model, small)


def test_a_weight_beyond_half_precision_is_not_packed(trained_model):
    checkpoint = load_checkpoint(trained_model)
    checkpoint.model["decoder.init.weight"][0, 0] = 1e5
    with pytest.raises(UserError, match=r"decoder\.init\.weight has numbers too large for half precision"):
        packed(checkpoint, [])


def test_without_a_run_the_model_of_the_project_captions_and_a_line_says_which(
    trained_model, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("models.checkpoint.PRETRAINED", trained_model)
    images = tmp_path / "images"
    draw_sample(images, 3)
    text = run(tmp_path, "inference_visualize", images)
    assert f"checkpoint: {trained_model} (no run in {tmp_path / 'runs'} has one)\n" in text
    assert (tmp_path / "outputs" / "captions_result.html").exists()
    save_checkpoint(tmp_path / "runs" / "mine" / "best.pth", {})
    assert newest_checkpoint(tmp_path / "runs") == tmp_path / "runs" / "mine" / "best.pth"


@in_the_clone
def test_the_card_is_that_of_the_file():
    card = (PRETRAINED.parent / "README.md").read_text("utf-8")
    assert re.findall(r"\b[0-9a-f]{64}\b", card) == [hashlib.sha256(PRETRAINED.read_bytes()).hexdigest()]
    assert PRETRAINED.stat().st_size <= 20_000_000


@in_the_clone
def test_the_model_of_the_project_captions_a_drawn_scene(tmp_path):
    draw_sample(tmp_path / "sample", 3)
    [image, *_] = sorted((tmp_path / "sample" / "images").iterdir())
    captioner = Captioner.load(PRETRAINED, compute=CPU)
    assert captioner.config.search.beam == 60
    assert captioner.config.search.rerank == "neighbours"
    [result] = captioner([image])
    assert len(result.words) > 3
    assert result.attention.shape[0] == len(result.words)
