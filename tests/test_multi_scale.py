"""Several stages of an encoder in one grid (encoder.layer is a list)."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from captioning import Captioner
from config import EncoderConfig
from config_reading import make_config
from data.transforms import transform_for
from models.checkpoint import save_checkpoint
from models.diagram import Diagram
from models.encoder import EncoderCNN
from models.grid import join
from models.model import build_model, pack_model
from models.summary import summarise
from reports.architecture import draw_architecture
from show_model import main
from tests.helpers import CPU, IMAGES, tiny
from utils import UserError


def make(layer, **options) -> EncoderCNN:
    torch.manual_seed(0)
    config = EncoderConfig(name="resnet18", weights="none", image_size=64, layer=layer, **options)
    return EncoderCNN(config).eval()


def test_two_by_two_cells_of_a_finer_map_become_the_channels_of_one():
    fine = torch.arange(16.0).view(1, 1, 4, 4)
    coarse = torch.tensor([[[[-1.0, -2.0], [-3.0, -4.0]]]])
    joined = join([fine, coarse])
    assert joined.shape == (1, 5, 2, 2)
    assert joined[0, :, 0, 1].tolist() == [2, 3, 6, 7, -2]
    assert joined[0, :, 1, 0].tolist() == [8, 9, 12, 13, -3]


def test_cells_that_do_not_fit_whole_are_averaged():
    fine = torch.arange(9.0).view(1, 1, 3, 3)
    assert join([fine, torch.zeros(1, 1, 2, 2)])[0, 0].tolist() == [[2, 3], [5, 6]]


def test_a_single_map_stays_as_it_is():
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(join([x]), x)


def test_the_grid_has_the_outputs_of_the_stages_in_the_order_in_which_they_run():
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        both, fine, coarse = (make(layer)(images) for layer in (["layer3", "layer2"], "layer2", "layer3"))
    assert both.shape == (2, 16, 4 * 128 + 256)
    assert torch.equal(both[..., 4 * 128 :], coarse)
    # The upper left of 4 x 4 cells has 2 x 2 of the 8 x 8 cells of layer2.
    upper_left = both[:, 0, : 4 * 128].unflatten(1, (128, 4)).transpose(1, 2)
    assert torch.equal(upper_left, fine.unflatten(1, (8, 8))[:, :2, :2].flatten(1, 2))


def test_what_follows_the_last_of_the_stages_is_dropped():
    backbone = make(["layer1", "layer2"]).backbone
    assert hasattr(backbone, "layer2")
    assert not hasattr(backbone, "layer3")


def test_inference_and_resampling_work_as_with_one_stage():
    encoder = make(["layer1", "layer2"], grid=1)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder.for_inference()(images), encoder(images), rtol=1e-4, atol=1e-5)
    assert encoder(images).shape == (2, 1, 4 * 64 + 128)
    folded = encoder.fold_batch_norms()
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())


def test_each_stage_is_checked():
    with pytest.raises(UserError, match=r"encoder\.layer=layer9: .*layer3, layer4"):
        make(["layer2", "layer9"])
    with pytest.raises(UserError, match=r"encoder\.layer=fc: its output is no grid"):
        make(["layer2", "fc"])


def test_a_list_of_stages_is_read_from_the_command_line_and_kept_in_the_configuration():
    config = make_config({}, ["encoder.layer=[features.13,features.18]"])
    assert config.encoder.layer == ["features.13", "features.18"]
    assert make_config(config.as_dict()) == config
    for text in ("layer3", "[layer3]"):  # equal, so that the feature cache is the same
        assert make_config({}, [f"encoder.layer={text}"]).encoder.layer == "layer3"


@pytest.mark.parametrize("text", ["[]", "''", "[layer3,2]", "{a: b}"])
def test_what_is_neither_a_stage_nor_a_list_of_stages_is_refused(text):
    with pytest.raises(UserError, match=r"encoder\.layer=.*: it must be a stage, or a list of stages \("):
        make_config({}, [f"encoder.layer={text}"])


def test_the_figure_has_an_arrow_over_the_maps_from_each_that_is_read_before_the_last(tmp_path):
    model = build_model(tiny(tmp_path, encoder={"layer": ["layer1", "layer3"]}), 50)
    summary = summarise(model, 64)
    assert [one.is_read for one in summary.maps] == [False, True, False, True]
    draw_architecture(summary, Diagram("x", 51, [], []), "resnet18", tmp_path / "m.png")
    sheet = np.asarray(Image.open(tmp_path / "m.png").convert("L"))
    row = sheet[round((118 - 103.3) * sheet.shape[0] / 118)]
    dark = np.flatnonzero(row < 120) * 200 / sheet.shape[1]  # from the second of four maps to the grid
    assert (dark.min(), dark.max()) == pytest.approx((81, 176.5), abs=0.3)


def test_show_model_names_the_stages(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jobs.show_model.draw_architecture", lambda *_: None)
    arguments = ["encoder.name=resnet18", "encoder.layer=[layer1,layer2]", "encoder.image_size=32"]
    monkeypatch.setattr(sys, "argv", ["show_model.py", *arguments])
    main()
    assert "grid: 16 cells of 384 channels, from layer1, layer2" in capsys.readouterr().out


def test_a_checkpoint_keeps_the_stages(tmp_path):
    config = tiny(tmp_path, encoder={"layer": ["layer1", "layer2"]})
    model = build_model(config, 6).eval()
    words = ["<pad>", "<sos>", "<eos>", "<unk>", "a", "dog"]
    transform = transform_for(config.encoder).as_dict()
    save_checkpoint(tmp_path / "best.pth", pack_model(model, config, words, transform))
    loaded = Captioner.load(tmp_path / "best.pth", compute=CPU)
    assert loaded.config.encoder.layer == ["layer1", "layer2"]
    assert torch.equal(loaded.model.encoder(IMAGES), model.encoder(IMAGES))
