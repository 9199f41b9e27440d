"""Training and captioning on a CUDA device."""

import pytest
import torch

from captioning import Captioner
from compute import Compute
from data.captions import read_table, references
from tests.helpers import tiny
from training.datasets import make_datasets
from training.run import Run
from training.start import make_captioner

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("precision", ["float32", "auto", "float16"])
@pytest.mark.parametrize("fine_tune", ["none", "all"])
def test_a_run_trains_and_its_model_captions_on_the_cpu_as_well(dataset, precision, fine_tune):
    config = tiny(dataset, run={"device": "cuda", "precision": precision}, encoder={"fine_tune": fine_tune})
    compute = Compute.choose("cuda", precision)
    table = read_table(config.data)
    captioner = make_captioner(config, None, table, compute)
    train_set, val_set = make_datasets(captioner, table, ("train", "val"), training=True)
    assert Run(captioner, train_set, val_set, references(table, "val")).train() == 0
    images = [dataset / "images" / f"{i:02}.png" for i in range(4)]
    best = config.run_folder / "best.pth"
    on_cuda = list(Captioner.load(best, ["run.precision=float32"])(images))
    on_cpu = list(Captioner.load(best, ["run.device=cpu", "run.precision=float32"])(images))
    assert [result.caption for result in on_cuda] == [result.caption for result in on_cpu]


def test_the_random_state_of_the_device_is_restored():
    compute = Compute.choose("cuda", "float32")
    state = compute.random_state()
    first = torch.rand(3, device="cuda")
    compute.restore_random_state(state)
    assert torch.equal(torch.rand(3, device="cuda"), first)


def test_autograd_under_mixed_precision_reaches_every_weight():
    compute = Compute.choose("cuda", "auto")
    layer = torch.nn.Linear(4, 4, device="cuda")
    with compute.autocast():
        out = layer(torch.randn(2, 4, device="cuda"))
    assert out.dtype is compute.precision
    out.float().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
