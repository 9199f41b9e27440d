"""What only a GPU shows; without one, these tests are skipped.

python -m pytest -m cuda
"""

import os
import warnings

import pytest
import torch

from compute import Compute
from data.dataset import Batch
from data.features import FeatureStore
from data.held_features import held_if_they_fit
from data.images import ImageFolder
from data.transforms import ImageTransform
from models.decoders import DECODERS
from models.model import build_model
from tests.helpers import IMAGES, packed, small_decoder, teacher_forcing, tiny, write_dataset
from tests.test_policy import TRAIN_SET
from tests.test_recurrence import CAPTIONS, IMAGE_INDEX
from training.objective import Part
from training.objectives import OBJECTIVES
from training.trainer import Trainer
from utils import PAD

pytestmark = pytest.mark.cuda
CUDA = Compute(torch.device("cuda"))


@pytest.fixture
def strict():
    """torch warns of every operation that makes the host wait for the GPU."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: [w for w in caught if "synchroniz" in str(w.message)]
    torch.cuda.set_sync_debug_mode("default")


def make(folder, objective: str, kind: str, **train) -> Trainer:
    config = tiny(
        folder,
        decoder={"kind": kind, "heads": 2},
        train={"objective": objective, "init_from": "some/best.pth", **train},
        search={"max_length": 5},
    )
    model = build_model(config, vocab_size=11).to(CUDA.device)
    return Trainer(OBJECTIVES[objective](model, config, CUDA, TRAIN_SET), steps_per_epoch=10)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_waits_for_the_gpu_only_to_score_samples(tmp_path, objective, kind, request):
    trainer = make(tmp_path, objective, kind, average=0.9)
    batch = Batch(IMAGES, CAPTIONS, (CAPTIONS != PAD).sum(dim=1), IMAGE_INDEX)
    # The first step starts libraries, and creates the optimiser's state.
    trainer.step([Part(batch, [0, 0, 0])], 1)
    waits = request.getfixturevalue("strict")
    sums = trainer.step([Part(batch, [0, 0, 0])], 1)
    copies = 0 if objective == "cross_entropy" else 1  # the sampled captions, which the host scores
    found = waits()
    assert len(found) <= copies, [str(w.message) for w in found]
    assert trainer.is_finite
    assert all(value.isfinite() for value in sums.values())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_computes_on_a_gpu_what_it_computes_on_the_cpu(kind, training):
    decoder = small_decoder(kind, dropout=0.0).train(training)
    grid = torch.randn(3, 9, 6)
    expected = teacher_forcing(decoder, grid, CAPTIONS, IMAGE_INDEX)
    rows = packed(CAPTIONS, IMAGE_INDEX, 3).to(CUDA)
    decoder.cuda()
    logits, _ = decoder(grid.cuda(), rows)
    at = rows.captions.cpu(), rows.steps.cpu()
    torch.testing.assert_close(logits.cpu(), expected[0][at], rtol=1e-3, atol=1e-4)
    logits.sum().backward()  # in evaluation mode, too, where cuDNN's LSTM has no gradient
    assert all(p.grad.isfinite().all() for p in decoder.parameters())


def test_features_that_lie_on_the_gpu_are_those_of_the_file(tmp_path):
    write_dataset(tmp_path / "data")
    store = FeatureStore(
        tmp_path / "cache",
        {"encoder": 1},
        lambda pixels: (pixels / 255).mean(dim=(2, 3)).unsqueeze(1),
        ImageFolder(tmp_path / "data" / "images"),
        ImageTransform(8, (0.0,) * 3, (1.0,) * 3),
    )
    names = sorted(os.listdir(tmp_path / "data" / "images"))
    grids = store.grids(dict.fromkeys(names, 1))
    held = held_if_they_fit(grids, CUDA)
    assert held.read([(names[1], 0)], pin_memory=True).is_cuda
    views = [(name, 0) for name in reversed(names)]
    assert torch.equal(held.read(views, pin_memory=True).cpu(), grids.read(views))
