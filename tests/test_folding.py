"""A backbone with folded batch norms computes what it computes without, and learns the same."""

import pytest
import torch
from torch import fx, nn
from torchvision.models import resnet18

from config import EncoderConfig
from models.encoder import EncoderCNN
from models.folding import FoldedBatchNorms, fold


class Example(nn.Module):
    """Batch norms after a convolution, after one that is read twice, and after a pooling layer."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, bias=True), nn.Conv2d(4, 4, 1, groups=2, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x):
        x = self.norms[0](self.one(x)).relu()
        y = self.two(x)
        return self.norms[2](self.pool(self.norms[1](y) + y))


def example() -> fx.GraphModule:
    backbone = fx.symbolic_trace(Example()).eval()
    for norm in backbone.norms.children():
        for value in (norm.weight, norm.running_var):
            nn.init.uniform_(value, 0.5, 2.0)
        for value in (norm.bias, norm.running_mean):
            nn.init.normal_(value)
    return backbone


def gradients(backbone: fx.GraphModule, run, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    output = run(x)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    return output.detach(), torch.autograd.grad((output * weights).sum(), list(backbone.parameters()))


def test_output_and_gradients_of_all_weights_are_the_same():
    backbone, x = example(), torch.randn(2, 3, 8, 8)
    expected, expected_gradients = gradients(backbone, backbone, x)
    found, found_gradients = gradients(backbone, FoldedBatchNorms(backbone).run, x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_gradients, expected_gradients)


def test_only_a_convolution_that_the_batch_norm_alone_reads_is_folded():
    folded = FoldedBatchNorms(example()).folded
    assert {str(norm.target): str(source.target) for norm, source in folded.items()} == {"norms.0": "one"}


def test_a_folded_copy_computes_the_same_and_keeps_the_weights_that_it_was_made_of():
    backbone, x = example(), torch.randn(2, 3, 8, 8)
    expected, copy = backbone(x), fold(backbone.train())
    assert backbone.training
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.zero_()
    torch.testing.assert_close(copy(x), expected)
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in copy.modules()) == 2


def test_a_convolution_that_runs_twice_stays_as_it_is():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 3, 3)
            self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(2))

        def forward(self, x):
            return self.norms[1](self.convolution(self.norms[0](self.convolution(x))))

    backbone, x = fx.symbolic_trace(Twice()).eval(), torch.randn(2, 3, 8, 8)
    backbone.get_submodule("norms.0").running_var.fill_(3.0)
    torch.testing.assert_close(fold(backbone)(x), backbone(x))
    torch.testing.assert_close(FoldedBatchNorms(backbone).run(x), backbone(x))


@pytest.mark.parametrize("without", ["affine", "track_running_stats"])
def test_a_batch_norm_without_weights_or_statistics_stays_as_it_is(without):
    norm = nn.BatchNorm2d(4, **{without: False})
    backbone = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), norm)).eval()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(fold(backbone)(x), backbone(x))
    torch.testing.assert_close(FoldedBatchNorms(backbone).run(x), backbone(x))


@pytest.mark.parametrize("is_fixed", [True, False])
def test_an_encoder_folds_batch_norms_in_training_if_their_statistics_are_fixed(
    tmp_path, monkeypatch, is_fixed
):
    runs, run = [], FoldedBatchNorms.run
    monkeypatch.setattr(FoldedBatchNorms, "run", lambda self, x: runs.append(self) or run(self, x))
    weights = "none"
    if is_fixed:
        torch.save(resnet18().state_dict(), tmp_path / "weights.pth")
        weights = str(tmp_path / "weights.pth")
    options = {"layer": "layer1", "fine_tune": "layer1", "image_size": 32}
    encoder = EncoderCNN(EncoderConfig(name="resnet18", weights=weights, **options))
    images = torch.randn(2, 3, 32, 32)
    trained = encoder.train()(images)
    assert len(runs) == is_fixed
    evaluated = encoder.eval()(images)
    assert len(runs) == is_fixed
    assert torch.allclose(trained, evaluated, atol=1e-5) == is_fixed
    EncoderCNN(EncoderConfig(name="resnet18", weights=weights, layer="layer1", image_size=32)).train()(images)
    assert len(runs) == is_fixed  # a frozen encoder only computes features, with weights that were folded
