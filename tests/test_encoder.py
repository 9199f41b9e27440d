"""The CNN encoder: grids, frozen and trained stages, weights that are what they claim."""

import re
from urllib.error import URLError

import pytest
import torch
import torchvision
from torchvision.models import get_model

from models.encoder import EncoderCNN
from utils import UserError

IMAGES = torch.randn(2, 3, 64, 64)


# Model, pixels a side, cells a side, channels, a stage to fine-tune from, and all that is trained then.
# Small images where the model takes them: what is tested does not depend on their size.
MODELS = [
    ("resnet18", 64, 2, 512, "layer4", ("layer4",)),
    ("resnet34", 64, 2, 512, "layer4.2", ("layer4.2",)),
    ("resnet50", 64, 2, 2048, "layer3", ("layer3", "layer4")),
    ("resnet101", 64, 2, 2048, "layer4", ("layer4",)),
    ("resnet152", 64, 2, 2048, "layer4", ("layer4",)),
    ("efficientnet_b0", 64, 2, 1280, "features.7", ("features.7", "features.8")),
    ("inception_v3", 299, 8, 2048, "Mixed_7b", ("Mixed_7b", "Mixed_7c")),
    ("mobilenet_v2", 64, 2, 1280, "features.17", ("features.17", "features.18")),
    ("mobilenet_v3_large", 64, 2, 960, "features.15", ("features.15", "features.16")),
    ("convnext_tiny", 64, 2, 768, "features.6", ("features.6", "features.7")),
    ("densenet121", 64, 2, 1024, "features.denseblock4", ("features.denseblock4", "features.norm5")),
    ("vgg16", 64, 2, 512, "features.26", ("features.26", "features.28")),
    ("regnet_y_400mf", 64, 2, 440, "trunk_output.block4", ("trunk_output.block4",)),
    (
        "vit_b_16",
        64,
        4,
        768,
        "encoder.layers.encoder_layer_11",
        ("encoder.layers.encoder_layer_11", "encoder.ln"),
    ),
    ("swin_t", 64, 2, 768, "features.6", ("features.6", "features.7", "norm")),
]


@pytest.mark.parametrize(("name", "size", "side", "channels", "stage", "trained"), MODELS)
def test_every_backbone_gives_a_grid_and_trains_what_it_is_told(
    name, size, side, channels, stage, trained, monkeypatch
):
    models = []  # torchvision's own, as the encoder gets it
    monkeypatch.setattr(
        "models.encoder.get_model", lambda *args, **kw: models.append(get_model(*args, **kw)) or models[-1]
    )
    encoder = EncoderCNN(name, "none", fine_tune=stage, image_size=size).eval()
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
    assert all(belongs_to(key, trained) for key in changed)
    for key, weight in encoder.backbone.named_parameters():
        assert (weight.grad is not None) == belongs_to(key, trained), key


def belongs_to(key, stages):
    return key.startswith(tuple(f"{stage}." for stage in stages))


def test_the_grid_is_what_torchvisions_own_layers_give():
    encoder = EncoderCNN("resnet18", "none").eval()
    whole = torchvision.models.resnet18().eval()
    whole.load_state_dict(encoder.backbone.state_dict(), strict=False)
    with torch.no_grad():
        pooled = encoder(IMAGES).mean(dim=1)
        torch.testing.assert_close(whole.fc(pooled), whole(IMAGES), rtol=1e-4, atol=1e-4)


def test_an_earlier_stage_gives_a_finer_grid_and_the_later_ones_are_dropped():
    encoder = EncoderCNN("resnet18", "none", layer="layer2")
    assert encoder(IMAGES).shape == (2, 64, 128)
    assert not hasattr(encoder.backbone, "layer3")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "swin_t"])
def test_batch_norms_fold_into_convolutions_without_a_difference(name):
    encoder = EncoderCNN(name, "none", grid=1, image_size=64)
    encoder.eval()
    for key, value in encoder.backbone.state_dict().items():  # statistics as of a trained model
        if key.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    before = state_of(encoder)
    with torch.no_grad():
        torch.testing.assert_close(encoder.folded()(IMAGES), encoder(IMAGES), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(before[key], value) for key, value in state_of(encoder).items())


def test_no_batch_norm_of_a_mobilenet_or_resnet_is_left_unfolded():
    for name in ("resnet18", "mobilenet_v2", "efficientnet_b0"):
        backbone = EncoderCNN(name, "none", image_size=64).fold()
        assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in called(backbone))


def called(backbone):
    return [backbone.get_submodule(node.target) for node in backbone.graph.nodes if node.op == "call_module"]


def test_the_grid_is_resampled_where_asked():
    assert EncoderCNN("resnet18", "none", grid=3)(IMAGES).shape == (2, 9, 512)


def test_cells_come_row_by_row():
    encoder = EncoderCNN("resnet18", "none", layer="conv1").eval()
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
    encoder = EncoderCNN("resnet18", "none")
    before = state_of(encoder)
    train_a_step(encoder)
    assert all(torch.equal(before[key], value) for key, value in state_of(encoder).items())
    assert not encoder(IMAGES).requires_grad


def test_fine_tuning_from_a_stage_trains_exactly_that():
    encoder = EncoderCNN("resnet18", "none", fine_tune="layer4")
    before = state_of(encoder)
    train_a_step(encoder)
    for key, value in state_of(encoder).items():
        assert torch.equal(before[key], value) != key.startswith("layer4"), key


def test_images_of_a_size_that_the_model_cannot_take_are_refused():
    with pytest.raises(UserError, match=r"encoder\.image_size=64: inception_v3 .*its own is 299"):
        EncoderCNN("inception_v3", "none", image_size=64)
    with pytest.raises(UserError, match=r"encoder\.image_size=64: vit_b_16 .*its own is 384"):
        EncoderCNN("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", image_size=64)


def test_an_unknown_stage_names_those_there_are():
    with pytest.raises(UserError, match=r"encoder\.fine_tune=layer9: .*layer3, layer4"):
        EncoderCNN("resnet18", "none", fine_tune="layer9")
    with pytest.raises(UserError, match=r"encoder\.layer=layer9"):
        EncoderCNN("resnet18", "none", layer="layer9")


@pytest.mark.parametrize(
    "wrap", [dict, lambda s: {"state_dict": s}, lambda s: {f"module.{k}": v for k, v in s.items()}]
)
def test_weights_from_a_file_are_found_in_their_wrapping(tmp_path, wrap):
    whole = torchvision.models.resnet18()
    torch.save(wrap(whole.state_dict()), tmp_path / "w.pth")
    encoder = EncoderCNN("resnet18", str(tmp_path / "w.pth"))
    assert torch.equal(encoder.backbone.conv1.weight, whole.conv1.weight)
    assert torch.equal(
        encoder.backbone.get_submodule("layer4.1.bn2").running_var, whole.layer4[1].bn2.running_var
    )


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    for other in ("resnet50", "mobilenet_v2"):
        with pytest.raises(UserError, match=f"not weights of {other}"):
            EncoderCNN(other, str(tmp_path / "w.pth"))


def test_a_file_that_is_no_state_dict_is_refused(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"not a file that torch\.load reads"):
        EncoderCNN("resnet18", str(tmp_path / "w.pth"))
    with pytest.raises(UserError, match="no file at"):
        EncoderCNN("resnet18", "IMAGENET")


def test_without_a_network_the_error_says_what_to_fetch_and_where_to_put_it(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(UserError, match=r"fetch https://\S+resnet18\S+\.pth .*checkpoints.*encoder\.weights"):
        EncoderCNN("resnet18", "IMAGENET1K_V1")


def test_the_digest_is_that_of_the_weights():
    torch.manual_seed(0)
    a = EncoderCNN("resnet18", "none")
    torch.manual_seed(0)
    b = EncoderCNN("resnet18", "none")
    assert a.digest() == b.digest()
    with torch.no_grad():
        b.backbone.get_submodule("layer4.1.bn2").running_mean[3] += 1e-6
    assert a.digest() != b.digest()


def test_names_in_densenets_own_files_are_understood(tmp_path):
    state = torchvision.models.densenet121().state_dict()
    old = {re.sub(r"(denselayer\d+\.(norm|conv))(\d)", r"\1.\3", key): value for key, value in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "w.pth")
    backbone = EncoderCNN("densenet121", str(tmp_path / "w.pth"), image_size=64).backbone
    assert all(torch.equal(state[key], value) for key, value in backbone.state_dict().items())


def test_a_part_of_a_stage_can_be_named():
    encoder = EncoderCNN("resnet18", "none", layer="layer3.0", fine_tune="layer2.1")
    assert encoder(IMAGES).shape == (2, 16, 256)
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {
        name for name, _ in encoder.named_parameters() if "layer2.1" in name or "layer3.0" in name
    }
