"""Encoders of the library timm: its own features, weights and transform, and what is said without them."""

import copy
import sys

import pytest
import torch

from captioning import Captioner
from config import EncoderConfig
from data.transforms import ImageTransform, transform_for
from models.backbone import belongs_to
from models.checkpoint import save_checkpoint
from models.encoder import EncoderCNN
from models.grid import as_map, grid_of
from models.model import build_model, pack_model
from models.summary import summarise
from tests.helpers import CPU, invent_statistics, tiny
from utils import UserError

WORDS = ["<pad>", "<sos>", "<eos>", "<unk>", "a", "dog"]


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm")


def make(name: str, weights: object = "none", size: int = 64, **options) -> EncoderCNN:
    return EncoderCNN(
        EncoderConfig(name=f"timm/{name}", weights=str(weights), image_size=size, **options)
    ).eval()


def images(size: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


# Models that timm has for tests: cells a side (of 64 pixels), channels, a stage to train from, all trained.
MODELS = [
    ("test_resnet", 2, 96, "layer4", ("layer4",)),
    ("test_efficientnet", 2, 256, "blocks.4", ("blocks.4", "conv_head", "bn2")),
    ("test_convnext", 2, 64, "stages.3", ("stages.3",)),
    ("test_mambaout", 2, 64, "stages.3", ("stages.3",)),  # channels last
    ("test_vit", 4, 64, "blocks.5", ("blocks.5", "norm")),  # with a class token
    pytest.param(  # with a register token
        *("test_vit2", 4, 64, "blocks.6", ("blocks.6", "blocks.7", "norm")), marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize(("name", "side", "channels", "stage", "trained"), MODELS)
def test_the_grid_is_what_timms_own_forward_features_gives(
    timm, tmp_path, name, side, channels, stage, trained
):
    fixed = timm.get_pretrained_cfg(name).fixed_input_size
    whole = timm.create_model(name, **({"img_size": 64} if fixed else {})).eval()
    invent_statistics(whole)
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    encoder = make(name, tmp_path / "w.pth", fine_tune=stage)
    with torch.no_grad():
        features = whole.forward_features(images())
        if features.dim() == 3:
            features = features[:, whole.num_prefix_tokens :].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        elif features.shape[1] != channels:
            features = features.permute(0, 3, 1, 2)
        grid = encoder(images())
        assert grid.shape == (2, side * side, channels)
        torch.testing.assert_close(grid, features.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)
        # A copy for inference gives the same, up to rounding.
        torch.testing.assert_close(encoder.for_inference()(images()), grid, rtol=1e-3, atol=1e-4)

    before = {key: value.clone() for key, value in encoder.backbone.state_dict().items()}
    assert set(before) <= set(whole.state_dict())
    encoder.train()
    (encoder(images()) * torch.randn_like(grid)).sum().backward()
    for key, weight in encoder.backbone.named_parameters():
        assert (weight.grad is not None) == any(belongs_to(key, part) for part in trained), key
    after = encoder.backbone.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)  # statistics of batch norms, too


def test_stages_are_cut_and_joined_as_with_torchvision(timm):
    encoder = make("test_vit", layer=["blocks.2", "last"])
    assert encoder(images()).shape == (2, 16, 128)
    assert make("test_resnet", layer="layer2", grid=3)(images()).shape == (2, 9, 48)
    with pytest.raises(UserError, match=r"encoder\.layer=blocks\.9: .*blocks\.4, blocks\.5, norm"):
        make("test_vit", layer="blocks.9")


def test_registers_and_class_tokens_are_no_cells():
    tokens = torch.arange(2 * 16 * 3).view(2, 16, 3)
    with_prefix = torch.cat([torch.full((2, 5, 3), -1), tokens], 1)
    assert torch.equal(as_map(with_prefix, prefix_tokens=5), as_map(tokens, prefix_tokens=5))
    assert grid_of((9, 3), prefix_tokens=5).side == 2
    assert grid_of((21, 3), prefix_tokens=1) is None


# --- weights ---


def test_weights_that_are_downloaded_by_name_are_not_stored(timm, tmp_path, monkeypatch):
    published = timm.create_model("test_vit").state_dict()  # for images of 160 pixels
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf", lambda *_, **__: copy.deepcopy(published)
    )
    options = {"name": "timm/test_vit.r160_in1k", "weights": "DEFAULT", "layer": "last", "image_size": None}
    config = tiny(tmp_path, encoder=options)
    model = build_model(config, len(WORDS))
    assert torch.equal(model.encoder.backbone.state_dict()["pos_embed"], published["pos_embed"])
    packed = pack_model(model, config, WORDS, transform_for(config.encoder).as_dict())
    assert not any(key.startswith("encoder.") for key in packed["model"])
    save_checkpoint(tmp_path / "best.pth", packed)
    loaded = Captioner.load(tmp_path / "best.pth", compute=CPU)
    assert loaded.model.encoder.digest() == model.encoder.digest()
    # Resampled to other images they may be rounded differently elsewhere, so they are stored.
    smaller = make("test_vit", "r160_in1k")
    assert smaller.backbone.state_dict()["pos_embed"].shape != published["pos_embed"].shape
    assert smaller.named_digest is None


@pytest.mark.parametrize("classes", [1000, 7, 0])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_may_have_any_classifier_or_none(timm, tmp_path, classes, suffix):
    from safetensors.torch import save_file

    whole = timm.create_model("test_resnet", num_classes=classes)
    save = save_file if suffix == "safetensors" else torch.save
    save(whole.state_dict(), tmp_path / f"w.{suffix}")
    backbone = make("test_resnet", tmp_path / f"w.{suffix}").backbone
    own = whole.state_dict()
    assert all(torch.equal(own[key], value) for key, value in backbone.state_dict().items())


def test_position_embeddings_in_a_file_are_resampled_to_the_size_of_the_images(timm, tmp_path):
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "w.pth")
    assert make("test_vit", tmp_path / "w.pth", size=96)(images(96)).shape == (2, 36, 64)


def test_files_without_the_weights_are_refused(timm, tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    torch.save({key: x for key, x in state.items() if key != "layer4.0.conv1.weight"}, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"not weights of timm/test_resnet \(.*layer4\.0\.conv1\.weight"):
        make("test_resnet", tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"not weights of timm/test_vit \("):
        make("test_vit", tmp_path / "part.pth")
    state["layer4.0.conv1.weight"].fill_(torch.nan)
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(UserError, match=r"layer4\.0\.conv1\.weight has .* not finite"):
        make("test_resnet", tmp_path / "nan.pth")
    (tmp_path / "w.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="not a file that safetensors reads"):
        make("test_resnet", tmp_path / "w.safetensors")


def test_without_a_network_the_error_says_what_to_fetch(timm, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network\nmore")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    message = r"\(no network more\); fetch https://huggingface\.co/timm/test_resnet\S+/model\.safetensors .*"
    with pytest.raises(UserError, match=message + r"encoder\.weights to its path$"):
        make("test_resnet", "DEFAULT")


def test_random_weights_are_stored_and_summed_up(timm, tmp_path):
    config = tiny(tmp_path, encoder={"name": "timm/test_vit", "layer": "last", "image_size": 64})
    model = build_model(config, len(WORDS)).eval()
    transform = transform_for(config.encoder).as_dict()
    save_checkpoint(tmp_path / "best.pth", pack_model(model, config, WORDS, transform))
    loaded = Captioner.load(tmp_path / "best.pth", compute=CPU)
    grid = model.encoder(images())
    assert torch.equal(loaded.model.encoder(images()), grid)
    assert loaded.transform == ImageTransform(64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    num_parameters = sum(p.numel() for p in model.parameters())
    summary = summarise(model, 64)
    assert summary.parameters == num_parameters
    assert [(one.channels, one.side) for one in summary.maps] == [(64, 4)]
    assert summary.grid == (16, 64)


# --- names and transforms ---


def test_the_transform_is_that_of_the_tag(timm):
    for name, weights in (
        ("resnet50.tv_in1k", "DEFAULT"),
        ("resnet50", "tv_in1k"),
        ("resnet50.tv_in1k", "w.pth"),
    ):
        transform = transform_for(EncoderConfig(name=f"timm/{name}", weights=weights))
        assert transform == ImageTransform(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")
    clip = transform_for(EncoderConfig(name="timm/vit_base_patch32_clip_224.openai", weights="w.pth"))
    assert clip.mean == (0.48145466, 0.4578275, 0.40821073)
    assert clip.interpolation == "bicubic"
    assert transform_for(EncoderConfig(name="timm/vit_small_patch14_dinov2", weights="DEFAULT")).size == 518


def test_wrong_names_are_answered_with_right_ones(timm):
    with pytest.raises(UserError, match=r"encoder\.name=timm/test_resnt: timm has no .*'test_resnet'"):
        make("test_resnt")
    with pytest.raises(UserError, match=r"encoder\.name=timm/test_vit\.x: .* weights .*\(it has r160_in1k\)"):
        make("test_vit.x")
    with pytest.raises(
        UserError, match=r"encoder\.weights=IMAGENET1K_V2: .*it has r160_in1k, DEFAULT.*no file at"
    ):
        make("test_vit", "IMAGENET1K_V2")


@pytest.mark.slow
def test_images_that_do_not_fit_are_refused(timm):
    with pytest.raises(UserError, match=r"encoder\.image_size=72: timm/test_maxvit .*its own is 160"):
        make("test_maxvit", size=72)


def test_without_timm_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        UserError, match=r"^encoder\.name=timm/resnet50 .*pip install -r requirements-extra\.txt$"
    ):
        transform_for(EncoderConfig(name="timm/resnet50"))
