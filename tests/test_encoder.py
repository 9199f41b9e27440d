"""The CNN encoder: grids, frozen and trained stages, weights that are what they claim."""

import copy
import re
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import get_model, list_models

from config import EncoderConfig
from models.backbone import belongs_to
from models.encoder import EncoderCNN
from models.grid import Grid, as_map, grid_of
from models.torchvision_models import build
from tests.helpers import invent_statistics
from utils import UserError

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def make(name="resnet18", weights="none", **options) -> EncoderCNN:
    return EncoderCNN(EncoderConfig(name=name, weights=str(weights), **options))


# Model, pixels a side, cells a side, channels, a stage to fine-tune from, and all that is trained then.
# Small images where the model takes them: their size does not matter here.
MODELS = [
    ("resnet18", 64, 2, 512, "layer4", ("layer4",)),
    pytest.param("resnet34", 64, 2, 512, "layer4.2", ("layer4.2",), marks=pytest.mark.slow),
    ("resnet50", 64, 2, 2048, "layer3", ("layer3", "layer4")),
    pytest.param("resnet101", 64, 2, 2048, "layer4", ("layer4",), marks=pytest.mark.slow),
    pytest.param("resnet152", 64, 2, 2048, "layer4", ("layer4",), marks=pytest.mark.slow),
    ("efficientnet_b0", 64, 2, 1280, "features.7", ("features.7", "features.8")),
    pytest.param("inception_v3", 299, 8, 2048, "Mixed_7b", ("Mixed_7b", "Mixed_7c"), marks=pytest.mark.slow),
    ("mobilenet_v2", 64, 2, 1280, "features.17", ("features.17", "features.18")),
    ("mobilenet_v3_large", 64, 2, 960, "features.15", ("features.15", "features.16")),
    pytest.param(
        "convnext_tiny", 64, 2, 768, "features.6", ("features.6", "features.7"), marks=pytest.mark.slow
    ),
    pytest.param(
        "densenet121",
        64,
        2,
        1024,
        "features.denseblock4",
        ("features.denseblock4", "features.norm5"),
        marks=pytest.mark.slow,
    ),
    pytest.param("vgg16", 64, 2, 512, "features.26", ("features.26", "features.28"), marks=pytest.mark.slow),
    ("regnet_y_400mf", 64, 2, 440, "trunk_output.block4", ("trunk_output.block4",)),
    pytest.param(
        "vit_b_16",
        64,
        4,
        768,
        "encoder.layers.encoder_layer_11",
        ("encoder.layers.encoder_layer_11", "encoder.ln"),
        marks=pytest.mark.slow,
    ),
    ("swin_t", 64, 2, 768, "features.6", ("features.6", "features.7", "norm")),
]


@pytest.mark.parametrize(("name", "size", "side", "channels", "stage", "trained"), MODELS)
def test_every_backbone_gives_a_grid_and_trains_what_it_is_told(
    name, size, side, channels, stage, trained, monkeypatch
):
    models = watch_models(monkeypatch)
    encoder = make(name, fine_tune=stage, image_size=size).eval()
    images = torch.randn(2, 3, size, size)

    with torch.no_grad():
        full = encoder(images)
        with torch.autocast("cpu", torch.bfloat16):
            half = encoder(images).float()
    assert full.shape == (2, side * side, channels)
    assert encoder.dim == channels
    # bfloat16 keeps 8 bits of a number: a few per cent over dozens of layers.
    assert (half - full).norm() < 0.1 * full.norm()

    before = state_of(encoder)
    assert set(before) <= set(models[0].state_dict())
    train_a_step(encoder, images)
    changed = {key for key, value in state_of(encoder).items() if not torch.equal(before[key], value)}
    assert changed
    prefixes = tuple(f"{part}." for part in trained)
    assert all(key.startswith(prefixes) for key in changed)
    for key, weight in encoder.backbone.named_parameters():
        assert (weight.grad is not None) == key.startswith(prefixes), key


def watch_models(monkeypatch) -> list[nn.Module]:
    """The models of torchvision that encoders are built from, as they get them."""
    models = []

    def get_and_keep(*args, **kwargs):
        models.append(get_model(*args, **kwargs))
        return models[-1]

    monkeypatch.setattr("models.torchvision_models.get_model", get_and_keep)
    return models


def test_the_grid_is_what_torchvisions_own_layers_give():
    encoder = make().eval()
    whole = torchvision.models.resnet18().eval()
    whole.load_state_dict(encoder.backbone.state_dict(), strict=False)
    with torch.no_grad():
        pooled = encoder(IMAGES).mean(dim=1)
        torch.testing.assert_close(whole.fc(pooled), whole(IMAGES), rtol=1e-4, atol=1e-4)


def test_an_earlier_stage_gives_a_finer_grid_and_the_later_ones_are_dropped():
    encoder = make(layer="layer2")
    assert encoder(IMAGES).shape == (2, 64, 128)
    assert not hasattr(encoder.backbone, "layer3")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "swin_t"])
def test_batch_norms_fold_into_convolutions_without_a_difference(name):
    encoder = make(name, grid=1, image_size=64)
    encoder.eval()
    invent_statistics(encoder)
    before = state_of(encoder)
    with torch.no_grad():
        fast = encoder.for_inference()
        grid = encoder(IMAGES)
        torch.testing.assert_close(fast(IMAGES), grid, rtol=1e-3, atol=1e-4)
    assert grid.std() > 0.01
    assert all(torch.equal(before[key], value) for key, value in state_of(encoder).items())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_b0"])
def test_no_batch_norm_after_a_convolution_is_left_unfolded(name):
    encoder = make(name, image_size=64)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in encoder.backbone.modules())
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in encoder.fold_batch_norms().modules())


def test_the_grid_is_resampled_to_the_configured_size():
    assert make(grid=3)(IMAGES).shape == (2, 9, 512)
    encoder = make().eval()
    mean = encoder(IMAGES).mean(dim=1, keepdim=True)  # of 4 cells
    encoder.config.grid = 1
    torch.testing.assert_close(encoder(IMAGES), mean)


def test_features_for_inference_leave_a_trained_encoder_in_training_mode():
    encoder = make(fine_tune="layer4").train()
    encoder.for_inference()(IMAGES)
    modes = [encoder.backbone.get_submodule(name).training for name in ("layer4.0.bn1", "layer3.0.bn1")]
    assert modes == [True, False]


def test_googlenet_gets_images_as_it_was_trained_with_whatever_its_weights():
    assert build(EncoderConfig(name="googlenet"), "none", 64).model.transform_input


def test_cells_come_row_by_row():
    encoder = make(layer="conv1").eval()
    images = torch.zeros(1, 3, 64, 64)
    images[:, :, :4] = 5  # something in the top rows only
    energy = encoder(images)[0].abs().sum(dim=1).view(32, 32)
    assert energy[0].min() > 0
    assert energy[20].max() == 0


def state_of(encoder):
    return {key: value.clone() for key, value in encoder.backbone.state_dict().items()}


def train_a_step(encoder, images=IMAGES):
    encoder.train()
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    grid = encoder(images)
    if parameters:
        (grid * torch.randn_like(grid)).sum().backward()
        with torch.no_grad():
            for p in parameters:
                p -= 0.1 * p.grad


def test_frozen_means_frozen_statistics_too():
    encoder = make()
    before = state_of(encoder)
    train_a_step(encoder)
    assert all(torch.equal(before[key], value) for key, value in state_of(encoder).items())
    assert not encoder(IMAGES).requires_grad


def test_fine_tuning_from_a_stage_trains_exactly_that():
    encoder = make(fine_tune="layer4")
    before = state_of(encoder)
    train_a_step(encoder)
    for key, value in state_of(encoder).items():
        assert torch.equal(before[key], value) != key.startswith("layer4"), key


@pytest.mark.parametrize("fine_tune", ["layer3", "all"])
def test_a_network_that_was_trained_before_keeps_its_statistics_while_it_is_trained(tmp_path, fine_tune):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    encoder = make(weights=tmp_path / "w.pth", fine_tune=fine_tune)
    before = state_of(encoder)
    train_a_step(encoder)
    changed = {key for key, value in state_of(encoder).items() if not torch.equal(before[key], value)}
    assert changed == {key for key, p in encoder.backbone.named_parameters() if p.requires_grad}
    assert {"layer4.1.bn2.weight", "layer4.1.bn2.bias"} <= changed


def test_a_network_that_is_trained_from_nothing_learns_its_statistics():
    encoder = make(fine_tune="all")
    before = state_of(encoder)
    train_a_step(encoder)
    after = state_of(encoder)
    statistics = [key for key in before if key.endswith(("running_mean", "running_var"))]
    assert len(statistics) == 40
    assert not any(torch.equal(before[key], after[key]) for key in statistics)


def test_images_of_a_size_that_the_model_cannot_take_are_refused_in_one_line(capsys):
    with pytest.raises(UserError, match=r"encoder\.image_size=64: inception_v3 .*its own is 299"):
        make("inception_v3", image_size=64)
    with pytest.raises(UserError, match=r"encoder\.image_size=64: vit_b_16 .*its own is 384"):
        make("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", image_size=64)
    with pytest.raises(UserError, match=r"encoder\.image_size=72: vit_b_16 .*its own is 224"):
        make("vit_b_16", image_size=72)  # no multiple of the 16 pixels of a token
    assert capsys.readouterr().err == ""  # torch.fx prints a traceback when a graph fails


def test_a_layer_whose_output_is_no_grid_is_refused():
    with pytest.raises(UserError, match=r"encoder\.layer=fc: its output is no grid .*layer3, layer4"):
        make(layer="fc")
    with pytest.raises(UserError, match=r"encoder\.layer=encoder\.layers\.\S+\.self_attention: .*no grid"):
        make("vit_b_16", layer="encoder.layers.encoder_layer_3.self_attention", image_size=64)


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((512, 7, 7), Grid("channels first", 512, 7)),
        ((7, 7, 768), Grid("channels last", 768, 7)),
        ((64, 64, 64), Grid("channels first", 64, 64)),
        ((512, 1, 1), Grid("channels first", 512, 1)),
        ((49, 512), Grid("tokens", 512, 7)),
        ((197, 768), Grid("tokens", 768, 14)),
        ((4, 2), Grid("tokens", 2, 2)),
        ((7, 512), None),
        ((198, 768), None),
        ((64, 49, 64), None),  # windows of cells, as inside a MaxViT
        ((512, 8, 7), None),
        ((512,), None),
        ((4, 7, 7, 64), None),
    ],
)
def test_the_layout_of_an_output_follows_from_its_shape(shape, grid):
    assert grid_of(shape) == grid


def test_every_layout_becomes_the_same_map():
    x = torch.arange(2 * 4 * 2 * 2).view(2, 4, 2, 2)  # (N, C, H, W)
    channels_last = x.permute(0, 2, 3, 1)
    tokens = channels_last.flatten(1, 2)
    class_token = torch.full((2, 1, 4), -1)
    for layout in (x, channels_last, tokens, torch.cat([class_token, tokens], 1)):
        assert torch.equal(as_map(layout), x)


def test_a_stage_is_not_another_one_whose_name_begins_like_it():
    assert belongs_to("features.1.conv.0", "features.1")
    assert belongs_to("features.1", "features.1")
    assert not belongs_to("features.18.0", "features.1")


@pytest.mark.parametrize(
    ("name", "layer", "shapes"),
    [
        ("resnet18", "layer2", {"conv1": (64, 32, 32), "layer1": (64, 16, 16), "layer2": (128, 8, 8)}),
        ("densenet121", "last", {"features.denseblock1": (256, 16, 16), "features.norm5": (1024, 2, 2)}),
        ("swin_t", "last", {"features.1": (16, 16, 96), "permute": (768, 2, 2)}),
        ("vit_b_16", "last", {"conv_proj": (768, 4, 4), "encoder.layers.encoder_layer_3": (17, 768)}),
    ],
)
def test_the_shape_of_a_stage_is_that_of_its_last_step(name, layer, shapes):
    encoder = make(name, layer=layer, image_size=64)
    stages = encoder.stage_shapes(64)
    assert {stage: stages[stage] for stage in shapes} == shapes
    parameters = {"class_token", "encoder.pos_embedding"}  # stages of vit_b_16 without an output
    assert set(stages) == set(encoder.stages) - parameters
    assert encoder.to("meta").stage_shapes(64) == stages


def test_an_unknown_stage_is_answered_with_those_that_exist():
    with pytest.raises(UserError, match=r"encoder\.fine_tune=layer9: .*layer3, layer4"):
        make(fine_tune="layer9")
    with pytest.raises(UserError, match=r"encoder\.layer=layer9"):
        make(layer="layer9")


@pytest.mark.parametrize(
    "wrap", [dict, lambda s: {"state_dict": s}, lambda s: {f"module.{k}": v for k, v in s.items()}]
)
def test_weights_from_a_file_are_found_in_their_wrapping(tmp_path, wrap):
    whole = torchvision.models.resnet18()
    torch.save(wrap(whole.state_dict()), tmp_path / "w.pth")
    encoder = make("resnet18", tmp_path / "w.pth")
    assert torch.equal(encoder.backbone.conv1.weight, whole.conv1.weight)
    assert torch.equal(
        encoder.backbone.get_submodule("layer4.1.bn2").running_var, whole.layer4[1].bn2.running_var
    )


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    for other in ("resnet50", "mobilenet_v2"):
        with pytest.raises(UserError, match=f"not weights of {other}"):
            make(other, tmp_path / "w.pth")


class Permuted(nn.Module):
    """A model in which tracing finds a constant: the index, reshaped."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.register_buffer("index", torch.tensor([[2, 1], [0, 3]]))
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.conv(x)[:, self.index.view(-1)].mean((2, 3)))


def test_constants_of_the_code_are_no_weights(tmp_path, monkeypatch):
    whole = Permuted()
    monkeypatch.setattr("models.torchvision_models.get_model", lambda *args, **kwargs: Permuted())
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    encoder = make(weights=tmp_path / "w.pth", image_size=32)
    images = IMAGES[:, :, :32, :32]
    expected = whole.conv(images)[:, [2, 1, 0, 3]].flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder(images), expected)
    for backbone in (encoder.backbone, copy.deepcopy(encoder).backbone):  # the copy: averaged weights are one
        assert backbone.state_dict().keys() == {"conv.weight", "conv.bias"}


class Untraceable(nn.Module):
    """A model whose code looks at the numbers of an image, so that it cannot be traced."""

    def forward(self, x):
        return x if x.mean() > 0 else -x


def test_a_model_that_cannot_be_traced_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("models.torchvision_models.get_model", lambda *args, **kwargs: Untraceable())
    with pytest.raises(UserError, match=r"^encoder\.name=resnet18: torch\.fx cannot trace this model \(.+\)"):
        make()


# Pixels a side of models that do not take 64.
SIZES = {"inception_v3": 139, "maxvit_t": 224, "vit_h_14": 56}


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models(module=torchvision.models))
def test_the_state_dict_of_every_model_carries_over(name, tmp_path, monkeypatch):
    models = watch_models(monkeypatch)
    size = SIZES.get(name, 64)
    direct = make(name, image_size=size).eval()
    [whole] = models
    invent_statistics(whole)
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    loaded = make(name, tmp_path / "w.pth", image_size=size).eval()
    (tmp_path / "w.pth").unlink()  # up to 2.6 GB

    own, expected = loaded.backbone.state_dict(), whole.state_dict()
    assert own
    assert all(torch.equal(value, expected[key]) for key, value in own.items())
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        grid = direct(images)
        assert torch.equal(loaded(images), grid)
    assert grid.shape[1] > 1
    assert grid.isfinite().all()
    assert grid.std() > 0
    shapes = loaded.stage_shapes(size)
    assert all(grid_of(shape) for shape in shapes.values()), shapes


def test_a_file_that_is_no_state_dict_is_refused(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"not a file that torch\.load reads"):
        make("resnet18", tmp_path / "w.pth")
    with pytest.raises(UserError, match="no file at"):
        make("resnet18", "IMAGENET")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state["conv1.weight"].fill_(torch.nan),
            r"conv1\.weight has .* not finite",
        ),
        (lambda state: state["bn1.running_var"].sub_(2), r"bn1\.running_var has a negative variance"),
        (lambda state: state.update({7: torch.zeros(1)}), "not a state dict"),
        (lambda state: state.update({"bn1.bias": torch.zeros(65)}), r"bn1\.bias has the shape \(65,\)"),
        (lambda state: state.update({"bn1.bias": torch.zeros(1).expand(64)}), "do not suffice"),
        (lambda state: state.update({"bn1.bias": torch.zeros(64).to_sparse()}), "not an ordinary tensor"),
    ],
)
def test_weights_that_cannot_be_used_are_named(tmp_path, change, message):
    state = torchvision.models.resnet18().state_dict()
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"encoder\.weights=.*{message}"):
        make("resnet18", tmp_path / "w.pth", layer="layer1")


def test_damaged_weights_are_noticed(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    data = bytearray((tmp_path / "w.pth").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(UserError, match=r"encoder\.weights=.*checksum"):
        make("resnet18", tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes(data[:5000])
    with pytest.raises(UserError, match=r"encoder\.weights=.*not a file that torch\.load reads"):
        make("resnet18", tmp_path / "w.pth")
    with pytest.raises(UserError, match="no file at"):
        make("resnet18", "long" * 50)


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"PK\x03\x04"])
def test_a_broken_download_says_what_to_fetch(monkeypatch, tmp_path, content):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"fetch https://\S+resnet18-f37072fd\.pth .*checkpoints"):
        make("resnet18", "IMAGENET1K_V1")


def test_without_a_network_the_error_says_what_to_fetch_and_where_to_put_it(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(UserError, match=r"fetch https://\S+resnet18\S+\.pth .*checkpoints.*encoder\.weights"):
        make("resnet18", "IMAGENET1K_V1")


def test_the_digest_is_that_of_the_weights():
    a = make()
    b = copy.deepcopy(a)
    assert a.digest() == b.digest()
    with torch.no_grad():
        b.backbone.get_submodule("layer4.1.bn2").running_mean[3] += 1e-6
    assert a.digest() != b.digest()


def test_names_in_densenets_own_files_are_understood(tmp_path):
    state = torchvision.models.densenet121().state_dict()
    old = {re.sub(r"(denselayer\d+\.(norm|conv))(\d)", r"\1.\3", key): value for key, value in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "w.pth")
    backbone = make("densenet121", tmp_path / "w.pth", image_size=64).backbone
    assert all(torch.equal(state[key], value) for key, value in backbone.state_dict().items())


def test_a_part_of_a_stage_can_be_named():
    encoder = make(layer="layer3.0", fine_tune="layer2.1")
    assert encoder(IMAGES).shape == (2, 16, 256)
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {
        name for name, _ in encoder.named_parameters() if "layer2.1" in name or "layer3.0" in name
    }
